// A new job: its kind, a form of that kind's own schema, what it would take, and off it goes.
import { get, list, post } from "../api.js";
import { bytes, count, duration } from "../format.js";
import { html, useState } from "../html.js";
import { useAction, useLoaded } from "../loading.js";
import { Failure, Loaded } from "../parts/notice.js";
import { Fields } from "../parts/schema_form.js";
import { Value } from "../parts/value.js";
import { goTo, linkTo } from "../route.js";
import { apiSchema, jobKinds } from "../schema.js";

// What every kind has: it says how the job is queued, not what it does.
const QUEUEING = ["priority", "queue", "user", "metadata"];
const APART = [...QUEUEING, "dry_run", "kind"];

export function NewJob({ query }) {
  const kind = query.get("kind");
  const loaded = useLoaded(() => apiSchema(() => get("/openapi.json")), []);
  return html`<p class="crumb"><a href="#/jobs">Jobs</a></p><h1>New job</h1>
    <${Loaded} loaded=${loaded}>${(api) => {
      const kinds = jobKinds(api);
      const chosen = kinds.find((one) => one.kind === kind);
      return html`<div class="kinds">${kinds.map((one) => html`<a class="kind" key=${one.kind} href=${linkTo(["jobs", "new"], { kind: one.kind })} aria-current=${one === chosen ? "true" : null}><b>${one.kind.replaceAll("_", " ")}</b><span>${one.summary}</span></a>`)}</div>
        ${chosen && html`<${JobForm} key=${kind} kind=${kind} schema=${chosen.schema} api=${api} first=${Object.fromEntries([...query].filter(([name]) => name !== "kind"))} />`}`;
    }}<//>`;
}

/** `first` is entered already; `path` is where it is sent. */
export function JobForm({ kind, schema, api, first = {}, path = "/jobs", leaveOut = [] }) {
  const [value, setValue] = useState(first);
  const [estimate, setEstimate] = useState(null);
  const files = useLoaded((signal) => list("/files", { most: 300, signal }), []);
  const dry = useAction(async () => setEstimate(await post(path, { ...value, kind, dry_run: true })));
  const submit = useAction(async () => goTo(["jobs", (await post(path, { ...value, kind })).id]));
  const send = (event) => {
    event.preventDefault();
    (event.submitter?.name === "dry" ? dry : submit).run();
  };
  const common = { properties: Object.fromEntries(QUEUEING.filter((name) => schema.properties[name]).map((name) => [name, schema.properties[name]])) };
  const change = (next) => {
    setValue(next);
    setEstimate(null);
  };
  return html`<form class="panel" onSubmit=${send} aria-label=${`Job of kind ${kind}`}>
    <${Fields} schema=${schema} api=${api} value=${value} onChange=${change} files=${files} leaveOut=${[...APART, ...leaveOut]} />
    <details class="nested queueing"><summary>Queueing</summary><${Fields} schema=${common} api=${api} value=${value} onChange=${change} files=${files} /></details>
    <${Failure} error=${submit.error ?? dry.error ?? files.error} />
    ${estimate && html`<${Estimate} estimate=${estimate} />`}
    <div class="buttons"><button name="dry" disabled=${dry.isRunning}>${dry.isRunning ? "Reckoning…" : "What would it take?"}</button>
      <button class="primary" disabled=${submit.isRunning}>${submit.isRunning ? "Submitting…" : "Submit"}</button></div>
  </form>`;
}

/** A dry run's answer. */
function Estimate({ estimate }) {
  const { estimate: cost, warnings, files, num_steps: steps, num_epochs: epochs, num_tokens: tokens, plan } = estimate;
  return html`<section class="notice" aria-label="What it would take" role="status">
    <dl class="facts">
      ${cost && html`<div><dt>Time</dt><dd>${duration(cost.seconds)} <span class="quiet">${cost.basis}</span></dd></div><div><dt>Memory</dt><dd>${bytes(cost.peak_memory_bytes)}</dd></div>`}
      ${steps !== null && html`<div><dt>Steps</dt><dd>${count(steps)}${epochs !== null && html` <span class="quiet">${epochs} epochs</span>`}</dd></div>`}
      ${tokens !== null && html`<div><dt>Tokens</dt><dd>${count(tokens)}</dd></div>`}
    </dl>
    ${plan && html`<p>${plan}</p>`}
    ${warnings.map((warning) => html`<p class="flag" key=${warning}>${warning}</p>`)}
    ${cost && html`<p class="quiet">${cost.explanation}</p>`}
    ${Object.keys(files).length > 0 && html`<details><summary>Files</summary><${Value} value=${files} /></details>`}
  </section>`;
}
