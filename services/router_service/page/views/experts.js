// Experts and releases: what there is, what is served, where it is resident; one release closely; two compared.
import { get, post, remove } from "../api.js";
import { ago, bytes, loss } from "../format.js";
import { html, useState } from "../html.js";
import { useAction, useLoaded } from "../loading.js";
import { useCatalog } from "../parts/catalog.js";
import { Confirm } from "../parts/dialog.js";
import { ImportPanel } from "../parts/import_panel.js";
import { Empty, Failure, Loaded } from "../parts/notice.js";
import { ReleaseStatus } from "../parts/release_status.js";
import { Dot } from "../parts/tokens.js";
import { goTo, linkTo } from "../route.js";
import { Comparison } from "./comparison.js";
import { ReleaseDetail } from "./release.js";

const EVERY_MS = 5000;

export function Experts({ route }) {
  const catalog = useCatalog();
  const [, place] = route.parts;
  if (place === "compare") return html`<${Comparison} a=${route.query.get("a")} b=${route.query.get("b")} catalog=${catalog} />`;
  if (place) return html`<${ReleaseDetail} key=${place} id=${place} catalog=${catalog} />`;
  return html`<h1>Experts and releases</h1>
    <${Loaded} loaded=${catalog}>${() => html`<${Overview} catalog=${catalog} />`}<//>`;
}

function Overview({ catalog }) {
  const replicas = useLoaded((signal) => get("/replicas", { signal }), [], { everyMs: EVERY_MS });
  return html`
    <section class="panel"><h2>Releases</h2><${Releases} catalog=${catalog} /></section>
    <section class="panel"><h2>Experts</h2><${ExpertTable} catalog=${catalog} replicas=${replicas.value?.data ?? []} /><${Failure} error=${replicas.error} /></section>
    <${ImportPanel} onDone=${catalog.again} />`;
}

function Releases({ catalog }) {
  const { releases, colours } = catalog;
  const [asked, setAsked] = useState(null);
  const [pair, setPair] = useState([]);
  const action = useAction((act) => act());
  const active = releases.find((release) => release.status === "active");
  const domains = [...new Set(releases.flatMap((release) => Object.keys(release.evaluation?.losses ?? {})))].sort();
  if (!releases.length) return html`<${Empty} title="No release yet"><p>A release is what is served. <a href="#/jobs/new?kind=expert">Train an expert</a> with <i>add to release</i>, or import one below.</p><//>`;
  const choose = (id) => setPair(pair.includes(id) ? pair.filter((other) => other !== id) : [...pair.slice(-1), id]);
  return html`<div class="buttons left tools">
      <button type="button" onClick=${() => setAsked({ kind: "rollback" })} disabled=${releases.length < 2}>Roll back</button>
      <button type="button" disabled=${pair.length !== 2} onClick=${() => goTo(["experts", "compare"], { a: pair[0], b: pair[1] })}>Compare ${pair.length === 2 ? pair.join(" and ") : "two releases"}</button>
    </div>
    <div class="scroll"><table class="stacked"><thead><tr><th scope="col"><span class="sr-only">Compare</span></th><th scope="col">Release</th><th scope="col">Experts</th>
      ${domains.map((domain) => html`<th scope="col" class="num" key=${domain} title="held-out loss, nats per token">${domain}</th>`)}<th scope="col">Made</th><th scope="col"><span class="sr-only">Actions</span></th></tr></thead>
    <tbody>${releases.map((release) => html`<tr key=${release.id}>
      <td><input type="checkbox" aria-label=${`Compare ${release.id}`} checked=${pair.includes(release.id)} onChange=${() => choose(release.id)} /></td>
      <th scope="row"><a href=${linkTo(["experts", release.id])}>${release.id}</a><br /><${ReleaseStatus} release=${release} /></th>
      <td><span class="expert-names">${release.experts.map((expert) => html`<span key=${expert.name}><${Dot} name=${expert.name} colours=${colours} /> ${expert.name}${expert.version > 1 ? `@${expert.version}` : ""}</span>`)}</span></td>
      ${domains.map((domain) => html`<td class="num" key=${domain} data-label=${domain}>${loss(release.evaluation?.losses[domain])}</td>`)}
      <td class="quiet" data-label="Made">${ago(release.created_at)}</td>
      <td>${release.status !== "active" && html`<button type="button" class="small" onClick=${() => setAsked({ kind: "activate", release })}>Activate</button>`}</td>
    </tr>`)}</tbody></table></div>
    ${domains.length > 0 && html`<p class="quiet">Numbers are held-out losses by domain, nats per token; lower is better. Only those on the same data compare.</p>`}
    ${domains.length === 0 && html`<p class="quiet">None is evaluated yet: an <a href="#/jobs/new?kind=evaluation">evaluation</a> tells losses by domain, and guards what is activated afterwards.</p>`}
    ${asked && html`<${Change} key=${asked.kind} asked=${asked} active=${active} action=${action} onClose=${() => { action.forget(); setAsked(null); }} onDone=${catalog.again} />`}`;
}

/** What a change of the active release does, and the question whether to. */
export function Change({ asked, active, action, onClose, onDone }) {
  const [isForced, setForced] = useState(false);
  const isRollback = asked.kind === "rollback";
  const change = async () => {
    // Only from the release that is shown here as the active one: another person's change is not undone unseen.
    const expected = { if_active: active?.id ?? null };
    const made = await post(isRollback ? "/releases/rollback" : `/releases/${asked.release.id}/activate`, isRollback ? expected : { ...expected, force: isForced });
    onDone();
    return made;
  };
  return html`<${Confirm} title=${isRollback ? "Roll back?" : `Activate ${asked.release.id}?`} yes=${isRollback ? "Roll back" : "Activate"} action=${action} onYes=${change} onClose=${onClose}>
    <p>${isRollback ? `The release that was active before ${active?.id} answers new requests again.` : `New requests are answered by ${asked.release.id} instead of ${active?.id ?? "none"}.`} Those in the making end on the release that they began with.</p>
    ${!isRollback && html`<p><label><input type="checkbox" checked=${isForced} onChange=${(event) => setForced(event.target.checked)} /> Even if it is worse in a domain than is tolerated</label></p>`}
  <//>`;
}

function ExpertTable({ catalog, replicas }) {
  const { experts, colours } = catalog;
  const pin = useAction(async (expert) => {
    await (expert.pinned ? remove : post)(`/experts/${expert.name}/pin`);
    catalog.again();
  });
  if (!experts.length) return html`<${Empty} title="No experts yet"><p><a href="#/jobs/new?kind=expert">Train one</a> from a file, or import a LoRA adapter below.</p><//>`;
  return html`<${Failure} error=${pin.error} /><div class="scroll"><table class="stacked"><thead><tr><th scope="col">Expert</th><th scope="col">Domain</th><th scope="col">Version</th><th scope="col" class="num">Rank</th><th scope="col" class="num">Size</th><th scope="col">Resident on</th><th scope="col"><span class="sr-only">Actions</span></th></tr></thead>
    <tbody>${experts.map((expert) => {
      const version = expert.versions.at(-1);
      const homes = replicas.filter((replica) => replica.resident.some((adapter) => adapter.name === expert.name));
      return html`<tr key=${expert.name}>
        <th scope="row"><${Dot} name=${expert.name} colours=${colours} /> ${expert.name}</th>
        <td data-label="Domain">${expert.domain ?? html`<span class="quiet">–</span>`}</td>
        <td data-label="Version">${expert.active_version ? `${expert.active_version} of ${expert.latest_version}` : html`<span class="quiet">not in the active release</span>`}${version && !version.has_evidence && html`<br /><span class="badge warn">cannot be routed to</span>`}</td>
        <td class="num" data-label="Rank">${version?.rank}</td><td class="num" data-label="Size">${bytes(version?.num_bytes)}</td>
        <td data-label="Resident on">${homes.length ? homes.map((replica) => replica.id).join(", ") : html`<span class="quiet">no slot yet</span>`}</td>
        <td><button type="button" class="small" aria-pressed=${expert.pinned} title="Keep it in a slot on every replica" onClick=${() => pin.run(expert)}>${expert.pinned ? "Unpin" : "Pin"}</button></td>
      </tr>`;
    })}</tbody></table></div>`;
}

