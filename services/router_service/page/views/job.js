// One job: how far it is while it runs, its loss, its log, and what it has made.
import { Lines } from "../charts/lines.js";
import { download, get, post, text } from "../api.js";
import { eventStream } from "../event_stream.js";
import { ago, bytes, dateTime, duration, figure } from "../format.js";
import { html, useEffect, useRef, useState } from "../html.js";
import { useAction, useLoaded } from "../loading.js";
import { CATEGORICAL } from "../palette.js";
import { FINAL, JobProgress, JobStatus } from "../parts/job_status.js";
import { Failure, Loaded } from "../parts/notice.js";
import { Value } from "../parts/value.js";
import { linkTo } from "../route.js";

const AGAIN_MS = 700;
const MOST_EVENTS = 400;
const GRAPHS = new Set(["cooperation_graph", "image_cooperation"]);

export function JobDetail({ id }) {
  const path = `/jobs/${encodeURIComponent(id)}`;
  const loaded = useLoaded((signal) => get(path, { signal }), [id]);
  const events = useEvents(path, loaded.again);
  const job = loaded.value;
  return html`<p class="crumb"><a href="#/jobs">Jobs</a></p>
    <h1>${job ? `${job.kind.replaceAll("_", " ")} ${job.spec.name ?? ""}` : "Job"}</h1>
    <${Loaded} loaded=${loaded}>${() => html`<${Shown} job=${job} path=${path} events=${events} again=${loaded.again} />`}<//>`;
}

/** The job's history as it is told; whoever shows the job asks for it again a moment after something happened. */
function useEvents(path, again) {
  const [events, setEvents] = useState([]);
  useEffect(() => {
    const controller = new AbortController();
    let timer = null;
    const soon = () => { timer ??= setTimeout(() => { timer = null; again(); }, AGAIN_MS); };
    (async () => {
      for await (const event of eventStream(`${path}/events`, { signal: controller.signal })) {
        setEvents((before) => [...before, event].slice(-MOST_EVENTS));
        soon();
      }
      again();
    })().catch(() => {}); // the job itself is asked for too, and says what is wrong
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [path]);
  return events;
}

function Shown({ job, path, events, again }) {
  const isFinal = FINAL.has(job.status);
  return html`
    <section class="panel" aria-label="State" data-status=${job.status}>
      <div class="head-row"><${JobStatus} job=${job} /><code class="quiet">${job.id}</code><span class="push"></span><${Controls} job=${job} path=${path} again=${again} /></div>
      <${JobProgress} job=${job} />
      ${job.error && html`<div class="notice failure" role="alert"><p>${job.error.message}</p>${job.error.advice && html`<p>${job.error.advice}</p>`}</div>`}
      <dl class="facts">
        <div><dt>Submitted</dt><dd>${ago(job.created_at)} <span class="quiet">${dateTime(job.created_at)}</span></dd></div>
        <div><dt>${isFinal ? "Took" : "Running for"}</dt><dd>${job.started_at ? duration((new Date(job.finished_at ?? Date.now()) - new Date(job.started_at)) / 1000) : "–"}</dd></div>
        <div><dt>Loss</dt><dd>${figure(job.progress.loss)}</dd></div>
        <div><dt>Attempt</dt><dd>${job.attempt}</dd></div>
        <div><dt>Queue, priority</dt><dd>${job.queue}, ${job.priority}</dd></div>
      </dl>
      ${GRAPHS.has(job.kind) && job.status === "succeeded" && html`<p><a href=${linkTo(["graph", job.id])}>See its cooperation graph</a></p>`}
    </section>
    <${LossCurve} job=${job} path=${path} />
    <div class="side-by-side">
      ${job.result && html`<section class="panel"><h2>Result</h2><${Value} value=${job.result} /></section>`}
      <section class="panel"><h2>What was asked for</h2><${Value} value=${job.spec} /></section>
      <${Artifacts} job=${job} path=${path} />
    </div>
    <${History} events=${events} />
    <${Log} path=${path} id=${job.id} />`;
}

function Controls({ job, path, again }) {
  const action = useAction(async (verb) => { await post(`${path}/${verb}`); again(); });
  if (FINAL.has(job.status)) return null;
  const buttons = job.status === "paused" ? [["resume", "Resume"], ["cancel", "Cancel job"]] : [["pause", "Pause"], ["cancel", "Cancel job"]];
  return html`<div class="buttons left">${buttons.map(([verb, label]) => html`<button key=${verb} type="button" class=${verb === "cancel" ? "danger" : ""} disabled=${action.isRunning} onClick=${() => action.run(verb)}>${label}</button>`)}</div>
    <${Failure} error=${action.error} />`;
}

function LossCurve({ job, path }) {
  const loaded = useLoaded((signal) => get(`${path}/metrics?max_points=600`, { signal }), [path, job.progress.step, job.status]);
  const points = loaded.value?.data ?? [];
  const of = (key) => points.filter((point) => typeof point.figures[key] === "number").map((point) => [point.step, point.figures[key]]);
  const series = [
    { name: "training loss", colour: CATEGORICAL[0], points: of("loss") },
    { name: "validation loss", colour: CATEGORICAL[5], points: of("eval_loss"), dots: true },
  ].filter((line) => line.points.length);
  if (!series.length) return html`<${Failure} error=${loaded.error} />`;
  const last = series[0].points.at(-1);
  return html`<section class="panel"><${Lines} title="Loss" name=${`${job.id}-loss`} series=${series} x="step" y="loss (nats)" keys=${[points.length, last?.[0]]}
    caption=${`${points.length} points of ${job.progress.total_steps ?? last?.[0]} steps, one run.`} summary=${`From ${figure(series[0].points[0][1])} at step ${series[0].points[0][0]} to ${figure(last[1])} at step ${last[0]}.`} /></section>`;
}

function Artifacts({ job, path }) {
  const loaded = useLoaded((signal) => get(`${path}/artifacts`, { signal }), [path, job.status]);
  const saving = useAction((file) => download(`${path}/artifacts/${file.path.split("/").map(encodeURIComponent).join("/")}`, file.path.split("/").at(-1)));
  return html`<section class="panel"><h2>Artifacts</h2><${Failure} error=${saving.error} />
    <${Loaded} loaded=${loaded}>${({ data }) => (data.length
      ? html`<div class="scroll"><table><tbody>${data.map((file) => html`<tr key=${file.path}><th scope="row"><button type="button" class="link" onClick=${() => saving.run(file)}>${file.path}</button></th><td class="num">${bytes(file.num_bytes)}</td></tr>`)}</tbody></table></div>`
      : html`<p class="quiet">${FINAL.has(job.status) ? "It published no files." : "Nothing yet: files are there once it publishes them."}</p>`)}<//></section>`;
}

function History({ events }) {
  const told = events.filter((event) => event.type !== "metrics");
  return html`<section class="panel"><h2>History</h2>
    <ol class="history">${told.map((event) => html`<li key=${event.id} class=${event.level}><time class="quiet">${new Date(event.at).toLocaleTimeString("sv")}</time> ${event.message}</li>`)}</ol>
    <p class="sr-only" role="status">${told.at(-1)?.message}</p></section>`;
}

function Log({ path, id }) {
  const [isOpen, setOpen] = useState(false);
  const loaded = useLoaded(async (signal) => (isOpen ? text(`${path}/logs`, { signal }) : null), [id, isOpen]);
  const box = useRef(null);
  useEffect(() => { if (box.current) box.current.scrollTop = box.current.scrollHeight; }, [loaded.value]);
  return html`<details class="panel" onToggle=${(event) => setOpen(event.target.open)}><summary>Log of the workers</summary>
    ${isOpen && html`<div class="buttons left"><button type="button" class="small" onClick=${loaded.again}>Read again</button></div><${Failure} error=${loaded.error} />
    <pre class="log" ref=${box} tabindex="0" aria-label="Log">${loaded.value || "Nothing was logged."}</pre>`}</details>`;
}
