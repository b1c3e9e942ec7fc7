// Cooperation graphs: of a release that has one, and of the jobs that learned one, epoch by epoch.
import { get, list } from "../api.js";
import { Heatmap } from "../charts/heatmap.js";
import { Network } from "../charts/network.js";
import { expertColours } from "../colours.js";
import { ago, figure, percent, signed } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { useLoaded } from "../loading.js";
import { useCatalog } from "../parts/catalog.js";
import { Empty, Loaded } from "../parts/notice.js";
import { goTo, linkTo } from "../route.js";

// Where each kind of job keeps its report, and what is a graph in it.
const REPORTS = {
  cooperation_graph: { path: "report/report.json", read: (report) => ({ experts: report.experts, epochs: report.history ?? [report.adjacency], unit: "A", gains: report.gains_over, onWhole: report.gain_on_whole_documents, beats: report.beats_controls, sparsity: report.sparsity }) },
  image_cooperation: { path: "experiment/report.json", read: (report) => ({ experts: report.epochs[0].adjacency?.map((_, index) => `expert ${index}`), epochs: report.epochs.map((epoch) => epoch.adjacency).filter(Boolean), unit: "A", facts: { accuracy: percent(report.accuracy, 1), "test loss": figure(report.test_loss) }, sparsity: report.edges?.exact_zeros }) },
};

export function Graph({ route }) {
  const catalog = useCatalog();
  const [, place] = route.parts;
  const sources = useLoaded(async (signal) => {
    const jobs = await Promise.all(Object.keys(REPORTS).map((kind) => list(`/jobs?kind=${kind}&status=succeeded`, { most: 50, signal })));
    return jobs.flat().filter((job) => job.kind !== "image_cooperation" || job.spec.graph !== "none");
  }, []);
  const releases = catalog.releases.filter((release) => release.graph_digest);
  return html`<div class="head-row"><h1>Cooperation graph</h1><span class="push"></span></div>
    <${Loaded} loaded=${sources}>${(jobs) => {
      const places = [...releases.map((release) => [release.id, `${release.id} (${release.status})`]), ...jobs.map((job) => [job.id, `${job.kind.replaceAll("_", " ")}, ${ago(job.finished_at)}`])];
      if (!places.length) {
        return html`<${Empty} title="No graph was learned yet"><p>A cooperation graph says which expert recruits or inhibits which. <a href=${linkTo(["jobs", "new"], { kind: "cooperation_graph" })}>Learn one over the active release</a>, or <a href=${linkTo(["jobs", "new"], { kind: "image_cooperation" })}>over image experts</a>, which takes a minute on the built-in digits.</p><//>`;
      }
      const chosen = place ?? places[0][0];
      return html`<p><label>Graph of <select value=${chosen} onChange=${(event) => goTo(["graph", event.target.value])}>${places.map(([id, label]) => html`<option key=${id} value=${id}>${label}</option>`)}</select></label></p>
        <${GraphOf} key=${chosen} id=${chosen} jobs=${jobs} catalog=${catalog} />`;
    }}<//>`;
}

function GraphOf({ id, jobs, catalog }) {
  const loaded = useLoaded(async (signal) => {
    if (id.startsWith("release-")) {
      const graph = await get(`/releases/${id}/graph`, { signal });
      return { experts: graph.experts, epochs: [graph.adjacency], sparsity: graph.sparsity };
    }
    const job = jobs.find((one) => one.id === id) ?? await get(`/jobs/${id}`, { signal });
    const { path, read } = REPORTS[job.kind];
    return read(await get(`/jobs/${id}/artifacts/${path}`, { signal }));
  }, [id]);
  return html`<${Loaded} loaded=${loaded}>${(graph) => html`<${Shown} id=${id} graph=${graph} known=${catalog.colours} />`}<//>`;
}

function Shown({ id, graph, known }) {
  const last = graph.epochs.length - 1;
  const [epoch, setEpoch] = useState(last);
  const isOfKnown = graph.experts.every((name) => known.has(name));
  const colours = useMemo(() => (isOfKnown ? known : expertColours(graph.experts)), [isOfKnown, known, graph]);
  // One scale over all epochs, or a slider would change the colours' meaning. What training starts from is often far off.
  const largest = Math.max(...graph.epochs.slice(last > 0 ? 1 : 0).flat(2).map(Math.abs)) || 1;
  const at = (index) => (index === 0 && last > 0 ? "before training" : last > 0 ? `after epoch ${index}` : "as released");
  const heatmap = (index, title) => html`<${Heatmap} title=${title} name=${`${id}-adjacency-${index}`} matrix=${graph.epochs[index]} rowNames=${graph.experts} columnNames=${graph.experts} rowLabel="expert" columnLabel="recruits"
    valueLabel="A" isSigned format=${edge} domain=${[-largest, largest]} keys=${[id, index]} caption=${`Row i, column j: how much of expert i's gate weight is added to j's. ${exactZeros(graph.epochs[index])}`}
    summary=${strongest(graph.epochs[index], graph.experts)} />`;
  return html`${last > 0 && html`<section class="panel"><h2>Before and after</h2><div class="side-by-side">${heatmap(0, "Before training")}${heatmap(last, `After epoch ${last}`)}</div></section>`}
    <section class="panel">
      <div class="head-row"><h2>The graph ${at(epoch)}</h2><span class="push"></span>
      ${last > 0 && html`<label class="slider">Epoch <input type="range" min="0" max=${last} value=${epoch} onInput=${(event) => setEpoch(Number(event.target.value))} /> <output>${epoch}</output></label>`}</div>
      <div class="side-by-side"><${Network} title=${`Who recruits whom, ${at(epoch)}`} name=${`${id}-graph-${epoch}`} adjacency=${graph.epochs[epoch]} experts=${graph.experts} colours=${colours} keys=${[id, epoch, colours]} caption="Widths by |A|." />
      ${heatmap(epoch, `Adjacency ${at(epoch)}`)}</div>
    </section>
    <${Worth} graph=${graph} />`;
}

/** What the graph is good for, as its job measured it. */
function Worth({ graph }) {
  if (!graph.gains && !graph.facts) return null;
  const interval = ([mean, low, high]) => `${signed(mean)} [${signed(low)}, ${signed(high)}]`;
  return html`<section class="panel"><h2>What it is worth</h2>
    ${graph.beats === false && html`<p class="notice caution">It does not beat its controls, so it stays off.</p>`}
    ${graph.gains && html`<table><thead><tr><th scope="col">Learned graph</th><th scope="col">Gain, nats per token, 95 % interval</th></tr></thead><tbody>
      ${Object.entries(graph.gains).map(([name, gain]) => html`<tr key=${name}><th scope="row">over ${name}</th><td>${interval(gain)}</td></tr>`)}
      ${graph.onWhole && html`<tr><th scope="row">over no graph, whole documents</th><td>${interval(graph.onWhole)}</td></tr>`}</tbody></table>`}
    ${graph.facts && html`<dl class="facts">${Object.entries(graph.facts).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`}
  </section>`;
}

/** What is exactly zero is told from what rounds to it. */
const edge = (value) => (value === 0 ? "0" : value.toFixed(2).replace("-0.00", "0.00"));

function exactZeros(matrix) {
  const off = matrix.flatMap((row, i) => row.filter((_, j) => i !== j));
  return `${percent(off.filter((value) => value === 0).length / (off.length || 1))} of the ${off.length} edges are exactly zero.`;
}

function strongest(matrix, experts) {
  const edges = matrix.flatMap((row, i) => row.map((value, j) => [Math.abs(value), `${experts[i]} to ${experts[j]} ${figure(value)}`])).filter(([size]) => size > 0);
  return edges.length ? `Strongest: ${edges.sort((a, b) => b[0] - a[0]).slice(0, 3).map(([, text]) => text).join("; ")}.` : "All zero.";
}
