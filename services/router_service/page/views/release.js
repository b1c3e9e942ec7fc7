// One release: what it serves, how good it is by domain, and the way to make it the active one.
import { download, get } from "../api.js";
import { ago, dateTime, loss } from "../format.js";
import { html, useState } from "../html.js";
import { useAction, useLoaded } from "../loading.js";
import { Failure, Loaded } from "../parts/notice.js";
import { ReleaseStatus } from "../parts/release_status.js";
import { Dot } from "../parts/tokens.js";
import { linkTo } from "../route.js";
import { Change } from "./experts.js";

export function ReleaseDetail({ id, catalog }) {
  const loaded = useLoaded((signal) => get(`/releases/${encodeURIComponent(id)}`, { signal }), [id]);
  const [asked, setAsked] = useState(null);
  const action = useAction((act) => act());
  const saving = useAction(() => download(`/releases/${id}/export`, `${id}.tar`));
  const active = catalog.releases.find((release) => release.status === "active");
  const again = () => {
    loaded.again();
    catalog.again();
  };
  return html`<p class="crumb"><a href="#/experts">Experts and releases</a></p><h1>${id}</h1>
    <${Loaded} loaded=${loaded}>${(release) => html`
      <section class="panel">
        <div class="head-row"><${ReleaseStatus} release=${release} /><span class="quiet">${release.note}</span><span class="push"></span>
          ${release.status !== "active" && html`<button type="button" class="primary" onClick=${() => setAsked({ kind: "activate", release })}>Activate</button>`}
          ${active && active.id !== id && html`<a class="button" href=${linkTo(["experts", "compare"], { a: active.id, b: id })}>Compare with ${active.id}</a>`}
          <button type="button" onClick=${() => saving.run()}>Export</button></div>
        <${Failure} error=${saving.error} />
        <dl class="facts">
          <div><dt>Base model</dt><dd>${release.base_model}</dd></div>
          <div><dt>Router</dt><dd>${release.router_kind}</dd></div>
          <div><dt>Cooperation graph</dt><dd>${release.graph_digest ? html`<a href=${linkTo(["graph", id])}>see it</a>` : "none"}</dd></div>
          <div><dt>Calibrated</dt><dd>${release.calibration_digest ? "yes" : "no"}</dd></div>
          <div><dt>Made</dt><dd>${ago(release.created_at)}</dd></div>
          <div><dt>Activated</dt><dd>${dateTime(release.activated_at)}</dd></div>
        </dl>
        <p class="quiet">Digest of what it serves: <code>${release.digest}</code></p>
      </section>
      <div class="side-by-side">
        <section class="panel"><h2>Experts</h2><table><tbody>${release.experts.map((expert) => html`<tr key=${expert.name}><th scope="row"><${Dot} name=${expert.name} colours=${catalog.colours} /> ${expert.name}</th><td>version ${expert.version}</td><td><code class="quiet">${expert.digest.slice(0, 12)}</code></td></tr>`)}</tbody></table></section>
        <section class="panel"><h2>Evaluation by domain</h2>${release.evaluation
          ? html`<table><thead><tr><th scope="col">Domain</th><th scope="col" class="num">Loss, nats per token</th></tr></thead><tbody>${Object.entries(release.evaluation.losses).map(([domain, nats]) => html`<tr key=${domain}><th scope="row">${domain}</th><td class="num">${loss(nats)}</td></tr>`)}</tbody></table><p class="quiet">Measured on: ${release.evaluation.data || "not said"}</p>`
          : html`<p class="quiet">Not evaluated. <a href=${linkTo(["jobs", "new"], { kind: "evaluation", release: id })}>Evaluate it</a> on held-out text: then its activation is guarded, too.</p>`}</section>
      </div>`}<//>
    ${asked && html`<${Change} asked=${asked} active=${active} action=${action} onClose=${() => { action.forget(); setAsked(null); }} onDone=${again} />`}`;
}
