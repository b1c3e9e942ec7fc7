// Expert analysis: the traces there are, a new one brought in, and the panel of one of them or of the live log.
import { get } from "../api.js";
import { ago, count } from "../format.js";
import { html, useState } from "../html.js";
import { useAction, useLoaded } from "../loading.js";
import { Confirm } from "../parts/dialog.js";
import { Drop } from "../parts/drop.js";
import { Empty, Failure, Loaded } from "../parts/notice.js";
import { Fields } from "../parts/schema_form.js";
import { goTo, linkTo } from "../route.js";
import { apiSchema } from "../schema.js";
import { importTrace, listTraces, removeTrace } from "../traces.js";
import { Trace } from "./trace.js";

const EVERY_MS = 3000;
const LOOKS = { ready: "good", failed: "bad", importing: "busy" };

export function Analysis({ route }) {
  const [, id] = route.parts;
  return id ? html`<${Trace} key=${id} id=${id} query=${route.query} />` : html`<${TraceList} />`;
}

export const TraceStatus = ({ trace }) => html`<span class=${`badge ${LOOKS[trace.status] ?? ""}`}>${trace.status}</span>`;

function TraceList() {
  const loaded = useLoaded(listTraces, [], { everyMs: EVERY_MS });
  return html`<div class="head-row"><h1>Expert analysis</h1><span class="push"></span><a class="button" href=${linkTo(["analysis", "live"])}>The live routing log</a></div>
    <${Loaded} loaded=${loaded}>${(traces) => (traces.length ? html`<${Traces} traces=${traces} again=${loaded.again} />`
      : html`<${Empty} title="No traces yet"><p>A trace records which experts every token went to. Bring one in below, <a href=${linkTo(["jobs", "new"], { kind: "trace" })}>record one</a> over prompts of several domains, or look at <a href=${linkTo(["analysis", "live"])}>the live routing log</a>.</p><//>`)}<//>
    <${Import} again=${loaded.again} />`;
}

function Traces({ traces, again }) {
  const [asked, setAsked] = useState(null);
  const action = useAction((act) => act());
  const forget = () => {
    action.forget();
    setAsked(null);
  };
  return html`<div class="panel scroll"><table class="stacked"><thead><tr><th scope="col">Trace</th><th scope="col">Status</th><th scope="col">From</th><th scope="col" class="num">Sequences</th><th scope="col" class="num">Tokens</th><th scope="col" class="num">Layers</th><th scope="col">Made</th><th scope="col"><span class="sr-only">Actions</span></th></tr></thead>
    <tbody>${traces.map((trace) => html`<tr key=${trace.id}>
      <th scope="row"><a href=${linkTo(["analysis", trace.id])}>${trace.name}</a></th><td data-label="Status"><${TraceStatus} trace=${trace} />${isFlagged(trace) && html` <span class="badge warn">degenerate layers</span>`}</td>
      <td data-label="From">${trace.source ?? "–"}</td><td class="num" data-label="Sequences">${count(trace.description?.num_sequences)}</td><td class="num" data-label="Tokens">${count(trace.description?.num_tokens)}</td><td class="num" data-label="Layers">${count(trace.description?.layers.length)}</td>
      <td class="quiet" data-label="Made">${ago(trace.created_at)}</td><td><button type="button" class="small" onClick=${() => setAsked(trace)}>Delete</button></td></tr>`)}</tbody></table></div>
    ${asked && html`<${Confirm} title=${`Delete ${asked.name}?`} yes="Delete" action=${action} onClose=${forget} onYes=${async () => { const done = await removeTrace(asked.id); again(); return done; }}><p>The trace and its analysis are gone then.</p><//>`}`;
}

const isFlagged = (trace) => trace.description?.findings.some((finding) => finding.severity === "degenerate");

function Import({ again }) {
  const [files, setFiles] = useState([]);
  const [name, setName] = useState("");
  const [options, setOptions] = useState({});
  const schema = useLoaded(() => apiSchema(() => get("/openapi.json")), []);
  const bring = useAction(async () => {
    const made = await importTrace(name, files, options);
    setFiles([]);
    again();
    goTo(["analysis", made.trace.id]);
  });
  const took = (dropped) => {
    setFiles([...files.filter((file) => !dropped.some((other) => other.name === file.name)), ...dropped]);
    if (!name) setName(dropped[0].name.replace(/\.[a-z.]+$/i, ""));
  };
  return html`<section class="panel"><h2>Bring in a trace</h2>
    <${Drop} label="Drop a trace here" hint="llama.cpp's tensor_trace.bin or token-NNNNN.json, moe_routes.jsonl, a fingerprint .json, or tar archives of these whose folders tell domains (domain-1-code/…)" onFiles=${took} isBusy=${bring.isRunning} />
    ${files.length > 0 && html`<form class="import-form" onSubmit=${(event) => { event.preventDefault(); bring.run(); }}>
      <p>${files.length === 1 ? html`<code>${files[0].name}</code>` : `${files.length} files, from ${files[0].name} on`}</p>
      <label>Name <input type="text" required value=${name} onInput=${(event) => setName(event.target.value)} /></label>
      ${schema.value && html`<details class="nested options"><summary>What the files do not say</summary><${Fields} schema=${schema.value.components.schemas.ImportOptions} api=${schema.value} value=${options} onChange=${setOptions} /></details>`}
      <div class="buttons"><button type="button" onClick=${() => setFiles([])}>Cancel</button><button class="primary" disabled=${bring.isRunning}>${bring.isRunning ? "Sending…" : "Import"}</button></div></form>`}
    <${Failure} error=${bring.error} /></section>`;
}
