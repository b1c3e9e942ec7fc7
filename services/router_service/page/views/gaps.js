// Gaps: what the mixture was asked and could not answer well, and the way to an expert for it.
import { get, list, post } from "../api.js";
import { Lines } from "../charts/lines.js";
import { ago, count, figure, percent } from "../format.js";
import { html, useState } from "../html.js";
import { useAction, useLoaded } from "../loading.js";
import { CATEGORICAL } from "../palette.js";
import { Confirm } from "../parts/dialog.js";
import { Empty, Failure, Loaded } from "../parts/notice.js";
import { goTo, linkTo, refine } from "../route.js";
import { apiSchema, jobKinds } from "../schema.js";
import { JobForm } from "./new_job.js";

const STATUSES = ["open", "closed", "dismissed", "merged"];
const LOOKS = { open: "warn", closed: "good" };

export function Gaps({ route }) {
  const [, id, step] = route.parts;
  if (step === "expert") return html`<${CreateExpert} id=${id} />`;
  return id ? html`<${GapDetail} key=${id} id=${id} />` : html`<${GapList} status=${route.query.get("status") ?? ""} />`;
}

const Status = ({ gap }) => html`<span class=${`badge ${LOOKS[gap.status] ?? ""}`}>${gap.status}</span>`;
const trend = (ratio) => (ratio > 1.15 ? "↗ more" : ratio < 0.87 ? "↘ fewer" : "→ steady");

function GapList({ status }) {
  const loaded = useLoaded((signal) => list(`/gaps${status ? `?status=${status}` : ""}`, { most: 200, signal }), [status]);
  const analyse = useAction(async () => goTo(["jobs", (await post("/jobs", { kind: "gap_analysis" })).id]));
  return html`<div class="head-row"><h1>Gaps</h1><span class="push"></span>
      <label>Status <select value=${status} onChange=${(event) => refine({ status: event.target.value })}><option value="">all</option>${STATUSES.map((name) => html`<option key=${name}>${name}</option>`)}</select></label>
      <button type="button" disabled=${analyse.isRunning} onClick=${() => analyse.run()}>Look for gaps now</button></div>
    <${Failure} error=${analyse.error} />
    <${Loaded} loaded=${loaded}>${(gaps) => (gaps.length
      ? html`<div class="cards">${gaps.map((gap) => html`<a class="panel card" key=${gap.id} href=${linkTo(["gaps", gap.id])}>
          <div class="head-row"><h2>${gap.keywords.slice(0, 3).join(", ") || gap.domain}</h2><${Status} gap=${gap} /></div>
          <p class="quiet">${gap.keywords.slice(3, 10).join(", ")}</p>
          <dl class="facts"><div><dt>Prompts</dt><dd>${count(gap.num_prompts)}</dd></div><div><dt>Trend</dt><dd>${trend(gap.trend)}</dd></div><div><dt>Taken for</dt><dd>${gap.domain}</dd></div><div><dt>Last seen</dt><dd>${ago(gap.last_seen_at)}</dd></div></dl></a>`)}</div>`
      : html`<${Empty} title=${status ? `No gap is ${status}` : "No gaps found yet"}><p>Requests that a calibrated release flags are gathered, and clusters of them become gaps. Ask for something that the experts do not know in the <a href="#/playground">Playground</a> a few dozen times, then look for gaps.</p><//>`)}<//>`;
}

function GapDetail({ id }) {
  const loaded = useLoaded((signal) => get(`/gaps/${encodeURIComponent(id)}`, { signal }), [id]);
  // Where a service is too old to make experts for gaps, nothing of it is shown.
  const schema = useLoaded(() => apiSchema(() => get("/openapi.json")), []);
  const canCreate = Boolean(schema.value?.paths["/gaps/{gap_id}/expert"]);
  return html`<p class="crumb"><a href="#/gaps">Gaps</a></p>
    <${Loaded} loaded=${loaded}>${(gap) => html`<div class="head-row"><h1>${gap.keywords.slice(0, 4).join(", ") || gap.id}</h1><${Status} gap=${gap} /><span class="push"></span><${Decisions} gap=${gap} canCreate=${canCreate} again=${loaded.again} /></div>
      <${Report} gap=${gap} />`}<//>`;
}

function Decisions({ gap, canCreate, again }) {
  const [asked, setAsked] = useState(null);
  const [into, setInto] = useState("");
  const others = useLoaded((signal) => list("/gaps?status=open", { most: 200, signal }), [gap.id]);
  const action = useAction((act) => act());
  const close = () => {
    action.forget();
    setAsked(null);
  };
  const decide = (path, body) => async () => {
    const done = await post(`/gaps/${gap.id}/${path}`, body);
    again();
    return done;
  };
  if (gap.status !== "open") return null;
  const choices = (others.value ?? []).filter((other) => other.id !== gap.id);
  return html`<div class="buttons left">
      ${canCreate && html`<a class="button primary-link" href=${linkTo(["gaps", gap.id, "expert"])}>Create an expert</a>`}
      ${choices.length > 0 && html`<button type="button" onClick=${() => { setInto(choices[0].id); setAsked("merge"); }}>Merge</button>`}
      <button type="button" onClick=${() => setAsked("dismiss")}>Dismiss</button></div>
    ${asked === "dismiss" && html`<${Confirm} title="Dismiss this gap?" yes="Dismiss" action=${action} onYes=${decide("dismiss")} onClose=${close}><p>Nothing is to be done about it. Its requests will not make a gap again.</p><//>`}
    ${asked === "merge" && html`<${Confirm} title="Merge this gap" yes="Merge" action=${action} onYes=${decide("merge", { into })} onClose=${close}>
      <p><label>Its requests go to <select value=${into} onChange=${(event) => setInto(event.target.value)}>${choices.map((other) => html`<option key=${other.id} value=${other.id}>${other.keywords.slice(0, 3).join(", ") || other.id} (${other.num_prompts})</option>`)}</select></label></p><//>`}`;
}

function Report({ gap }) {
  const { report } = gap;
  const byDay = Object.entries(report.trend?.by_day ?? {});
  return html`<section class="panel"><dl class="facts">
      <div><dt>Prompts</dt><dd>${count(gap.num_prompts)}</dd></div>
      <div><dt>Trend</dt><dd>${trend(gap.trend)} <span class="quiet">${figure(gap.trend)} times</span></dd></div>
      <div><dt>Taken for</dt><dd>${gap.domain} <span class="quiet">${percent(report.domain?.share)}</span></dd></div>
      <div><dt>Nearest expert</dt><dd>${report.nearest_expert ? `${report.nearest_expert.expert}, ${percent(report.nearest_expert.share)}` : "none"}</dd></div>
      <div><dt>Proposed name</dt><dd>${gap.expert_name}</dd></div>
      <div><dt>Above known domains</dt><dd>${figure(report.losses?.nats_above_known)} <span class="quiet">nats per token</span></dd></div>
      <div><dt>Found by</dt><dd><a href=${linkTo(["jobs", gap.job])}>an analysis</a></dd></div>
      ${gap.closed_by && html`<div><dt>Closed by</dt><dd><a href=${linkTo(["jobs", gap.closed_by.job])}>a job</a>${gap.closed_by.release && html` in <a href=${linkTo(["experts", gap.closed_by.release])}>${gap.closed_by.release}</a>`}</dd></div>`}
    </dl></section>
    <div class="side-by-side">
      <section class="panel"><h2>Typical prompts</h2>${report.typical_prompts?.length
        ? html`<ul class="prompts">${report.typical_prompts.map((prompt) => html`<li key=${prompt}><pre>${prompt}</pre> <a href=${linkTo(["playground"], { prompt })}>try it</a></li>`)}</ul>`
        : html`<p class="quiet">Prompts are not kept here: the setting <code>router_service.store_prompts</code> decides that.</p>`}</section>
      <section class="panel">${byDay.length > 1
        ? html`<${Lines} title="Requests by day" name=${`${gap.id}-trend`} x="day" y="requests" zero series=${[{ name: "requests", colour: CATEGORICAL[0], points: byDay.map(([day, number]) => [new Date(day), number]), dots: true }]} keys=${[gap.id]} caption=${`${count(gap.num_prompts)} requests.`} />`
        : html`<h2>Requests by day</h2><p class="quiet">${byDay.length ? `All ${count(byDay[0][1])} came on ${byDay[0][0]}.` : "Not counted by day."}</p>`}
        <${DataRequest} request=${report.data_request} /></section>
    </div>`;
}

function DataRequest({ request }) {
  if (!request) return null;
  return html`<h2>Data that an expert would need</h2><p>${count(request.num_examples)} examples. ${request.kind}</p>`;
}

/** The wizard: where examples come from, what the expert is called, and the job that does the rest. */
function CreateExpert({ id }) {
  const loaded = useLoaded(async (signal) => ({ gap: await get(`/gaps/${encodeURIComponent(id)}`, { signal }), api: await apiSchema(() => get("/openapi.json")) }), [id]);
  return html`<p class="crumb"><a href="#/gaps">Gaps</a> / <a href=${linkTo(["gaps", id])}>${id}</a></p><h1>Create an expert</h1>
    <${Loaded} loaded=${loaded}>${({ gap, api }) => html`
      <ol class="steps"><li><b>Data.</b> Upload examples as training files, or name a teacher that writes them.</li><li><b>Training.</b> One job trains the expert and gives it a row of the gate; nothing else is retrained.</li><li><b>Proof.</b> It is released only if held-out examples gain beyond doubt and no other domain loses.</li></ol>
      <${DataRequest} request=${gap.report.data_request} />
      <${JobForm} kind="expert_creation" schema=${jobKinds(api).find((one) => one.kind === "expert_creation").schema} api=${api} first=${{ name: gap.expert_name.replaceAll("_", "-").slice(0, 63) }} path=${`/gaps/${gap.id}/expert`} leaveOut=${["gap"]} />`}<//>`;
}
