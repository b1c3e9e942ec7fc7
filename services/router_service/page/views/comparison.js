// Two releases: everything in which they differ.
import { get } from "../api.js";
import { figure, loss } from "../format.js";
import { html } from "../html.js";
import { useLoaded } from "../loading.js";
import { Loaded } from "../parts/notice.js";
import { Dot } from "../parts/tokens.js";
import { goTo, linkTo } from "../route.js";

export function Comparison({ a, b, catalog }) {
  const loaded = useLoaded((signal) => get(`/releases/${encodeURIComponent(a)}/compare/${encodeURIComponent(b)}`, { signal }), [a, b]);
  const choice = (label, value, change) => html`<label>${label} <select value=${value} onChange=${(event) => change(event.target.value)}>${catalog.releases.map((release) => html`<option key=${release.id}>${release.id}</option>`)}</select></label>`;
  return html`<p class="crumb"><a href="#/experts">Experts and releases</a></p>
    <div class="head-row"><h1>From ${a} to ${b}</h1><span class="push"></span>${choice("From", a, (id) => goTo(["experts", "compare"], { a: id, b }))} ${choice("to", b, (id) => goTo(["experts", "compare"], { a, b: id }))}</div>
    <${Loaded} loaded=${loaded}>${(found) => (found.same_content ? html`<p class="notice">They serve the same: nothing differs.</p>` : html`<${Differences} found=${found} colours=${catalog.colours} />`)}<//>`;
}

function Differences({ found, colours }) {
  const { experts, router, graph, calibration, evaluation } = found;
  const names = (list) => list.map((expert) => html`<span class="expert-name" key=${expert.name}><${Dot} name=${expert.name} colours=${colours} /> ${expert.name}@${expert.version}</span> `);
  return html`<section class="panel"><h2>Experts</h2>
      <dl class="names">
        <div><dt>Added</dt><dd>${experts.added.length ? names(experts.added) : html`<span class="quiet">none</span>`}</dd></div>
        <div><dt>Removed</dt><dd>${experts.removed.length ? names(experts.removed) : html`<span class="quiet">none</span>`}</dd></div>
        <div><dt>Changed</dt><dd>${experts.changed.length ? experts.changed.map((change) => html`<div key=${change.name}>${change.name}: version ${change.a.version} to ${change.b.version}</div>`) : html`<span class="quiet">none</span>`}</dd></div>
        <div><dt>Unchanged</dt><dd>${experts.unchanged.join(", ") || html`<span class="quiet">none</span>`}</dd></div>
      </dl></section>
    <section class="panel"><h2>Losses by domain</h2>${evaluation
      ? html`<table><thead><tr><th scope="col">Domain</th><th scope="col" class="num">${found.a}</th><th scope="col" class="num">${found.b}</th><th scope="col" class="num">Difference</th></tr></thead>
          <tbody>${Object.entries(evaluation.domains).map(([domain, change]) => html`<tr key=${domain}><th scope="row">${domain} ${evaluation.regressions.includes(domain) && html`<span class="badge bad">worse than tolerated</span>`}</th><td class="num">${loss(change.a)}</td><td class="num">${loss(change.b)}</td><td class="num">${change.difference > 0 ? "+" : ""}${loss(change.difference)}</td></tr>`)}</tbody></table>
          <p class="quiet">Nats per token; up to ${figure(evaluation.tolerance)} more is tolerated.</p>`
      : html`<p class="quiet">Nothing to compare: one of them is not evaluated, or not on the same data. <a href=${linkTo(["jobs", "new"], { kind: "evaluation", release: found.b })}>Evaluate ${found.b}</a>.</p>`}</section>
    <section class="panel"><h2>The rest</h2><dl class="names">
      <div><dt>Router</dt><dd>${router ? html`another one${router.settings && Object.keys(router.settings).length > 0 && html`: ${Object.entries(router.settings).map(([name, change]) => html`<div key=${name}><code>${name}</code> ${JSON.stringify(change.a)} to ${JSON.stringify(change.b)}</div>`)}`}` : "the same"}</dd></div>
      <div><dt>Cooperation graph</dt><dd>${graph ? (graph.b ? (graph.a ? "another one" : "added") : "taken away") : "the same"}</dd></div>
      <div><dt>Calibration</dt><dd>${calibration ? (calibration.b ? (calibration.a ? "another one" : "added") : "taken away") : "the same"}</dd></div>
    </dl></section>`;
}
