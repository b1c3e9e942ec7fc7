// One layer of a trace: who goes where, over the tokens, from one token to the next, and together.
import { Activations } from "../charts/activations.js";
import { Heatmap } from "../charts/heatmap.js";
import { Lines } from "../charts/lines.js";
import { count, figure as written, many, percent, probability } from "../format.js";
import { html, useState } from "../html.js";
import { useLoaded } from "../loading.js";
import { CATEGORICAL, NEUTRAL } from "../palette.js";
import { Loaded } from "../parts/notice.js";

const AT_ONCE = 100;

/** Single numbers shown in the table, by their field, with what they mean. */
const NUMBERS = {
  "independence.cramers_v": "Cramér's V of domain and expert",
  "divergence.mean_distance": "Jensen-Shannon distance between domains, mean",
  "mutual_information.bits": "Mutual information of domain and expert, bits",
  "entropy.effective_experts": "Effective experts",
  "repetition.first": "First choice repeated in the next token",
  "repetition.first_or_second": "One of the first two repeated",
  "stickiness.popularity": "Repetition that popularity explains",
  "stickiness.excess": "Stickiness beyond popularity",
  "stickiness.excess_within": "Stickiness beyond the topic",
  "run_lengths.mean": "Length of runs, tokens",
  "overlap.share": "Experts shared with the token before",
  "vocabulary.specialisation": "Vocabulary specialisation",
  "load.max_violation": "MaxVio",
};

export function LayerPanel({ id, source, description, layer, part, over }) {
  const traced = description.layers.find((one) => one.layer === layer);
  const names = Array.from({ length: traced.num_experts }, (_, index) => description.experts[index] ?? String(index));
  const own = { id, source, layer, part, names, domains: description.domains };
  return html`
    <section class="panel"><${ByDomain} ...${own} /></section>
    ${source.choices && html`<section class="panel"><${OverTokens} ...${own} description=${description} /></section>`}
    <div class="side-by-side">
      <section class="panel"><${TransitionMatrix} ...${own} /></section>
      <section class="panel"><${Autocorrelation} ...${own} /></section>
      ${traced.top_k > 1 && html`<section class="panel"><${Together} ...${own} /></section>`}
    </div>
    <section class="panel"><${NumberTable} over=${over} layer=${layer} /></section>`;
}

/** One figure of a layer: `children({layer, found})` draws it, or it is said why it is not there. */
function OneFigure({ own, name, title, children }) {
  const { source, layer, part } = own;
  const loaded = useLoaded(async (signal) => ({ layer, found: await source.figure(name, layer, part, signal) }), [source, layer, part]);
  return html`<${Loaded} loaded=${loaded}>${(known) => (known.found.missing ? html`<h2>${title}</h2><p class="quiet">${known.found.missing}</p>` : children(known))}<//>`;
}

const sizes = (found) => `n = ${many(found.num_sequences, "prompt")}, ${many(found.num_tokens, "token")}.`;
const less = (matrix, other) => matrix.map((row, i) => row.map((value, j) => (value === null || other?.[i]?.[j] === null || other?.[i]?.[j] === undefined ? null : value - other[i][j])));

/** Cells whose q says that chance alone does not do this. */
const beyond = (estimate) => (estimate.q_value ?? []).flatMap((row, i) => row.flatMap((q, j) => (q !== null && q < 0.05 ? [[i, j]] : [])));

/** The columns that a matrix's table has beside its values. */
const besides = (estimate) => ({ names: ["low", "high", "without", "q"], of: (i, j) => [estimate.low, estimate.high, estimate.null, estimate.q_value].map((of) => of?.[i]?.[j] ?? null) });

function Shown({ label, value, options, onChange }) {
  return html`<label class="small-choice">${label} <select value=${value} onChange=${(event) => onChange(event.target.value)}>${Object.entries(options).map(([key, text]) => html`<option key=${key} value=${key}>${text}</option>`)}</select></label>`;
}

function ByDomain(own) {
  const [shown, setShown] = useState("share");
  return html`<${OneFigure} own=${own} name="frequency" title="Domains and experts">${({ layer, found }) => {
    const isSigned = shown === "difference";
    return html`<${Heatmap} title=${`Domains and experts, layer ${layer}`} name=${`${own.id}-domains-layer-${layer}-${own.part}-${shown}`} rowNames=${own.domains} columnNames=${own.names} rowLabel="domain" columnLabel="expert"
      matrix=${isSigned ? less(found.share.value, found.share.null) : found.share.value} valueLabel=${isSigned ? "share less that of all domains" : "share of the domain's choices"} isSigned=${isSigned} format=${(value) => (isSigned ? written(Number(value.toFixed(3))) : percent(value, 1))}
      marks=${beyond(found.share)} extra=${besides(found.share)} keys=${[layer, own.part, shown, found]} summary=${mostUsed(found.share.value, own)}
      caption=${`${sizes(found)} ${found.sequences_by_domain.map((number, index) => `${own.domains[index]}: ${many(number, "prompt")}`).join(", ")}. ${found.share.q_value ? "Framed: q < .05. " : ""}${found.share.low ? "Intervals over prompts are in the table." : "Too few prompts for intervals."}`}>
      <${Shown} label="Show" value=${shown} onChange=${setShown} options=${{ share: "shares", difference: "differences to all domains" }} /><//>`;
  }}<//>`;
}

function mostUsed(share, { domains, names }) {
  return share.map((row, index) => {
    const best = row.indexOf(Math.max(...row));
    return `${domains[index]}: most to ${names[best]}, ${percent(row[best])}`;
  }).join("; ");
}

function OverTokens({ id, source, layer, names, description }) {
  const [sequence, setSequence] = useState(0);
  // Where each page began: positions may have gaps, so the one before cannot be reckoned.
  const [begins, setBegins] = useState([0]);
  const from = begins.at(-1);
  const loaded = useLoaded((signal) => source.choices({ layer, sequence, from, count: AT_ONCE }, signal), [source, layer, sequence, from]);
  const prompts = useLoaded((signal) => source.prompts(signal), [source]);
  const move = (event) => {
    setSequence(Number(event.target.value));
    setBegins([0]);
  };
  return html`<${Loaded} loaded=${loaded}>${(found) => html`<${Activations} title=${`Activations over the tokens, layer ${layer}`} name=${`${id}-activations-layer-${layer}-sequence-${sequence}`} tokens=${found.tokens} expertNames=${names} keys=${[found]}
      caption=${`One prompt of ${count(description.num_sequences)}, of domain ${found.domain}: ${found.tokens.length ? `tokens ${found.tokens[0].position} to ${found.tokens.at(-1).position}` : "no tokens here"}.`}>
      <div class="row small-choice"><label>Prompt <select value=${sequence} onChange=${move}>${(prompts.value ?? [found]).map((one) => html`<option key=${one.sequence} value=${one.sequence}>${one.sequence}: ${one.domain}, ${one.prompt.slice(0, 50)}</option>`)}</select></label>
        <button type="button" class="small" disabled=${begins.length === 1} onClick=${() => setBegins(begins.slice(0, -1))}>Earlier tokens</button>
        <button type="button" class="small" disabled=${found.tokens.length < AT_ONCE} onClick=${() => setBegins([...begins, found.tokens.at(-1).position + 1])}>Later tokens</button></div><//>`}<//>`;
}

function TransitionMatrix(own) {
  const [shown, setShown] = useState("probability");
  return html`<${OneFigure} own=${own} name="transitions" title="From one token to the next">${({ layer, found }) => {
    const isSigned = shown === "difference";
    return html`<${Heatmap} title=${`From one token to the next, layer ${layer}`} name=${`${own.id}-transitions-layer-${layer}-${own.part}-${shown}`} rowNames=${own.names} columnNames=${own.names} rowLabel="from expert" columnLabel="to expert"
      matrix=${isSigned ? less(found.probability.value, found.probability.null) : found.probability.value} valueLabel=${isSigned ? "probability less popularity" : "P(next first choice | first choice)"} isSigned=${isSigned} format=${(value) => written(Number(value.toFixed(2)))}
      marks=${beyond(found.probability)} extra=${besides(found.probability)} keys=${[layer, own.part, shown, found]} summary=${`The diagonal is staying with an expert.`}
      caption=${`${sizes(found)} Rows sum to 1. ${found.mixing_tokens === null ? "" : `The chain forgets in about ${written(found.mixing_tokens)} tokens.`}`}>
      <${Shown} label="Show" value=${shown} onChange=${setShown} options=${{ probability: "probabilities", difference: "differences to popularity" }} /><//>`;
  }}<//>`;
}

function Autocorrelation(own) {
  const [shown, setShown] = useState("indicator");
  return html`<${OneFigure} own=${own} name="autocorrelation" title="Autocorrelation">${({ layer, found }) => {
    const series = found[shown];
    const along = (values) => (values ? found.lags.map((lag, index) => [lag, values[index]]).filter(([, value]) => value !== null) : []);
    const between = (low, high) => (low && high ? found.lags.map((lag, index) => [lag, low[index], high[index]]).filter(([, a, b]) => a !== null && b !== null) : []);
    const bands = [
      { name: "95 % without the effect", colour: NEUTRAL, points: between(series.null_low, series.null_high) },
      { name: "95 % interval", colour: CATEGORICAL[0], points: between(series.low, series.high) },
    ].filter((band) => band.points.length);
    const lines = [{ name: shown === "indicator" ? "autocorrelation" : "repetition", colour: CATEGORICAL[0], points: along(series.value), dots: true }];
    if (series.null) lines.push({ name: "without the effect", colour: NEUTRAL, points: along(series.null), isDashed: true });
    return html`<${Lines} title=${`Autocorrelation, layer ${layer}`} name=${`${own.id}-autocorrelation-layer-${layer}-${own.part}-${shown}`} series=${lines} bands=${bands} x="lag, tokens" y=${shown === "indicator" ? "autocorrelation" : "P(same first choice)"} height=${280} zero keys=${[layer, own.part, shown, found]}
      summary=${`At lag 1 ${written(series.value[0])}, without the effect ${written(series.null?.[0])}.`} caption=${`${sizes(found)} Null: tokens shuffled within their prompt. Popularity alone repeats ${percent(found.popularity, 1)} of first choices.`}>
      <${Shown} label="Of" value=${shown} onChange=${setShown} options=${{ indicator: "being chosen", repetition: "the first choice" }} /><//>`;
  }}<//>`;
}

function Together(own) {
  const [shown, setShown] = useState("probability");
  return html`<${OneFigure} own=${own} name="coactivation" title="Chosen together">${({ layer, found }) => {
    const isSigned = shown === "difference";
    const strongest = found.strongest[0];
    return html`<${Heatmap} title=${`Chosen together, layer ${layer}`} name=${`${own.id}-coactivation-layer-${layer}-${own.part}-${shown}`} rowNames=${own.names} columnNames=${own.names} rowLabel="given expert" columnLabel="also expert"
      matrix=${isSigned ? less(found.probability.value, found.probability.null) : found.probability.value} valueLabel=${isSigned ? "share less popularity" : "share of the row's tokens"} isSigned=${isSigned} format=${(value) => written(Number(value.toFixed(2)))}
      marks=${beyond(found.probability)} extra=${besides(found.probability)} keys=${[layer, own.part, shown, found]} summary=${strongest ? `Most above popularity: ${own.names[strongest.expert]} with ${own.names[strongest.other]}, ${percent(strongest.value)}` : ""}
      caption=${`${sizes(found)} All pairs; of the tokens that have the row's expert, how many have the column's too.`}>
      <${Shown} label="Show" value=${shown} onChange=${setShown} options=${{ probability: "shares", difference: "differences to popularity" }} /><//>`;
  }}<//>`;
}

/** Every single number of the layer beside its null. */
function NumberTable({ over, layer }) {
  const rows = Object.entries(NUMBERS).flatMap(([key, label]) => {
    const estimate = over[key]?.find((one) => one.layer === layer)?.estimate;
    return estimate ? [[label, estimate]] : [];
  });
  const interval = (low, high) => (low === null || low === undefined ? "" : html` <span class="quiet interval">[${written(low)}, ${written(high)}]</span>`);
  return html`<h2>Layer ${layer} in numbers</h2><div class="scroll"><table class="stacked"><thead><tr><th scope="col">Figure</th><th scope="col">Counted</th><th scope="col">Without the effect, 95 %</th><th scope="col">Less chance, 95 % interval</th><th scope="col">q</th></tr></thead>
    <tbody>${rows.map(([label, estimate]) => html`<tr key=${label}><th scope="row">${label}</th><td data-label="Counted">${written(estimate.value)}</td><td data-label="Without it">${written(estimate.null)}${interval(estimate.null_low, estimate.null_high)}</td><td data-label="Less chance">${written(estimate.corrected ?? estimate.value)}${interval(estimate.low, estimate.high)}</td><td data-label="q">${probability(estimate.q_value ?? estimate.p_value)}</td></tr>`)}</tbody></table></div>`;
}
