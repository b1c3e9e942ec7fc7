// The expert analysis panel: one trace, layer by layer, every figure beside what it would be without the effect.
import { save } from "../api.js";
import { Estimates } from "../charts/estimates.js";
import { count, many } from "../format.js";
import { html, useEffect, useMemo } from "../html.js";
import { useAction, useLoaded } from "../loading.js";
import { Empty, Failure, Loaded } from "../parts/notice.js";
import { linkTo, refine } from "../route.js";
import { liveSource, traceSource } from "../traces.js";
import { TraceStatus } from "./analysis.js";
import { LayerPanel } from "./layer.js";

const EVERY_MS = 2000;
const PARTS = { all: "prompt and generated tokens", prompt: "prompt tokens", generated: "generated tokens" };
const SEVERITIES = { degenerate: "failure", warning: "caution", info: "" };
const PER_LAYER = [
  ["independence.cramers_v", "Domains and experts: Cramér's V", "Cramér's V", "Bias-corrected; 0: experts do not depend on the domain. Interval over prompts, null by domains permuted between prompts."],
  ["stickiness.excess_within", "Stickiness beyond the topic", "repetition − shuffled", "How much more often a token's first choice is that of the token before, than with tokens shuffled within their prompt."],
];

export function Trace({ id, query }) {
  const source = useMemo(() => (id === "live" ? liveSource(query.get("since")) : traceSource(id)), [id, query.get("since")]);
  const trace = useLoaded((signal) => source.trace(signal), [source]);
  const isOnItsWay = trace.value?.status === "importing";
  useEffect(() => {
    const timer = isOnItsWay ? setTimeout(trace.again, EVERY_MS) : null;
    return () => clearTimeout(timer);
  }, [trace.value]);
  return html`<p class="crumb"><a href="#/analysis">Expert analysis</a></p>
    <div class="head-row"><h1>${trace.value?.name ?? (id === "live" ? "The live routing log" : "Trace")}</h1>${trace.value && html`<${TraceStatus} trace=${trace.value} />`}<span class="push"></span><${Reports} id=${id} source=${source} trace=${trace.value} /></div>
    <${Loaded} loaded=${trace}>${(found) => html`<${Found} id=${id} trace=${found} source=${source} query=${query} />`}<//>`;
}

function Found({ id, trace, source, query }) {
  if (trace.status === "failed") return html`<${Failure} error=${{ message: trace.error?.message ?? "It could not be brought in." }} />${trace.job && html`<p><a href=${linkTo(["jobs", trace.job])}>The job that tried</a> says more.</p>`}`;
  if (trace.status !== "ready") return html`<${Empty} title="It is being brought in"><p>${trace.job ? html`<a href=${linkTo(["jobs", trace.job])}>Its job</a> says how far it is.` : "This takes a moment."} What was found is shown here when it is done.</p><//>`;
  const { description, live } = trace;
  return html`${live && html`<${Since} live=${live} query=${query} />`}<section class="panel"><dl class="facts">
      <div><dt>From</dt><dd>${description.source}</dd></div><div><dt>Model</dt><dd>${description.model ?? "not said"}</dd></div>
      <div><dt>Prompts</dt><dd>${count(description.num_sequences)}</dd></div><div><dt>Tokens</dt><dd>${count(description.num_tokens)}</dd></div>
      <div><dt>Layers</dt><dd>${count(description.layers.length)}</dd></div><div><dt>Experts, top-k</dt><dd>${range(description.layers.map((layer) => layer.num_experts))}, ${range(description.layers.map((layer) => layer.top_k))}</dd></div>
      <div><dt>Domains</dt><dd>${description.domains.join(", ") || "none"}</dd></div><div><dt>Gate weights</dt><dd>${description.has_weights ? "recorded" : "not recorded"}</dd></div></dl></section>
    <${Findings} findings=${description.findings} />
    <${Figures} id=${id} description=${description} source=${source} query=${query} />`;
}

/** The live log's window. */
function Since({ live, query }) {
  const windows = { 1: "hour", 24: "day", 168: "week" };
  const hours = query.get("hours") ?? "24";
  const choose = (event) => refine({ hours: event.target.value, since: new Date(Date.now() - event.target.value * 3_600_000).toISOString() });
  return html`<p class="row"><label>Of the last <select value=${hours} onChange=${choose}>${Object.entries(windows).map(([value, name]) => html`<option key=${value} value=${value}>${name}</option>`)}</select></label>
    <span class="quiet">${many(live.requests, "request")} that the router decided${live.isWhole ? "" : ", the newest of more"}.</span></p>`;
}

const range = (numbers) => (numbers.length ? [...new Set([Math.min(...numbers), Math.max(...numbers)])].join("–") : "–");

/** What is wrong with the trace, before anything is read out of it. */
function Findings({ findings }) {
  if (!findings?.length) return null;
  return html`<section aria-label="What was found out about the trace itself">${findings.map((finding, index) => html`<div key=${index} class=${`notice ${SEVERITIES[finding.severity] ?? ""}`}>
    <p><b>${finding.severity === "degenerate" ? "Degenerate, no figure is made of it: " : finding.severity === "warning" ? "Mind: " : ""}</b>${finding.message}${finding.layers?.length > 0 && html` <span class="quiet">${finding.layers.length > 1 ? "Layers" : "Layer"} ${finding.layers.join(", ")}.</span>`}</p></div>`)}</section>`;
}

function Figures({ id, description, source, query }) {
  const overview = useLoaded((signal) => source.overview(signal), [source]);
  return html`<${Loaded} loaded=${overview}>${(found) => {
    if (!found.layers.length) {
      return id === "live" && !found.skipped.length
        ? html`<${Empty} title="No request was logged in this time"><p>Ask something in the <a href="#/playground">Playground</a> a few times, then look again.</p><//>`
        : html`<${Empty} title="No figure is made of this trace"><p>${found.skipped[0]?.reason ?? "It has no layer with tokens."} So nothing is drawn of it.</p><//>`;
    }
    const parts = Object.keys(found.parts);
    const part = parts.includes(query.get("part")) ? query.get("part") : parts[0];
    const wanted = Number(query.get("layer") ?? found.layers[0]);
    const layer = found.layers.includes(wanted) ? wanted : found.layers[0];
    const choose = (number) => refine({ layer: number });
    const over = found.parts[part].over_layers;
    return html`
      ${found.skipped.length > 0 && !isSaid(description) && html`<div class="notice failure"><p>${found.skipped.length} of ${found.skipped.length + found.layers.length} layers are left out: ${found.skipped[0].reason}</p></div>`}
      <div class="panel controls"><label>Tokens <select value=${part} onChange=${(event) => refine({ part: event.target.value })}>${parts.map((name) => html`<option key=${name} value=${name}>${PARTS[name] ?? name}</option>`)}</select></label>
        ${found.layers.length > 1 && html`<label class="slider">Layer <input type="range" min="0" max=${found.layers.length - 1} value=${found.layers.indexOf(layer)} aria-valuetext=${`layer ${layer}`} onInput=${(event) => choose(found.layers[Number(event.target.value)])} /><output>${layer}</output></label>`}
        <span class="quiet">${many(found.parts[part].num_sequences, "prompt")}, ${many(found.parts[part].num_tokens, "token")}</span></div>
      ${found.layers.length > 1 && html`<div class="side-by-side">${PER_LAYER.filter(([key]) => over[key]?.length).map(([key, title, label, caption]) => html`<section class="panel" key=${key}><${Estimates} title=${title} name=${`${id}-${key}-${part}`} points=${over[key]} at=${layer} valueLabel=${label} caption=${caption} keys=${[id, part]} onLayer=${choose} /></section>`)}</div>`}
      <${LayerPanel} id=${id} source=${source} description=${description} layer=${layer} part=${part} over=${over} />`;
  }}<//>`;
}

/** Degenerate layers are told by the trace's own findings. */
const isSaid = (description) => description.findings?.some((finding) => finding.severity === "degenerate");

function Reports({ source, trace, id }) {
  const saving = useAction(async () => save(new Blob([await source.report()], { type: "text/html" }), `${trace.name}.html`));
  if (trace?.status !== "ready" || id === "live") return null;
  return html`<button type="button" disabled=${saving.isRunning} onClick=${() => saving.run()}>${saving.isRunning ? "Fetching…" : "Report"}</button><${Failure} error=${saving.error} />`;
}
