// One number for each layer beside what it would be without the effect, with its interval.
import { figure as written } from "../format.js";
import { html } from "../html.js";
import { CATEGORICAL, NEUTRAL } from "../palette.js";
import { Figure, FRAME } from "./figure.js";
import { withNames } from "./key.js";

/** `points`: [{layer, estimate}]; the layer `at` is pointed out. Filled dots are beyond their null after correction over layers. */
export function Estimates({ title, name, points, at, valueLabel, caption, keys, onLayer }) {
  const rows = points.map(({ layer, estimate }) => ({ layer, value: estimate.value, corrected: estimate.corrected ?? estimate.value, low: estimate.low, high: estimate.high, null: estimate.null, nullLow: estimate.null_low ?? estimate.null, nullHigh: estimate.null_high ?? estimate.null, q: estimate.q_value ?? estimate.p_value }))
    .filter((row) => row.value !== null);
  const isFound = (row) => row.q !== null && row.q !== undefined && row.q < 0.05;
  // The null is of what was counted, the interval of what is left when chance is taken off: side by side, not one upon the other.
  const isCorrected = points.some(({ estimate }) => estimate.corrected !== null && estimate.corrected !== undefined);
  const [interval, aside] = isCorrected ? [CATEGORICAL[1], 8] : [CATEGORICAL[0], 0];
  const draw = ({ Plot, d3, width }) => {
    const svg = Plot.plot({
      ...FRAME, width, height: 230, marginLeft: 52, marginBottom: 36, marginTop: 26, marginRight: 24,
      x: { label: "layer", type: "band", tickSize: 0, domain: rows.map((row) => row.layer), ticks: rows.length > 30 ? rows.map((row) => row.layer).filter((_, index) => index % Math.ceil(rows.length / 24) === 0) : undefined },
      y: { label: valueLabel, grid: true, nice: true, zero: true },
      marks: [
        Plot.ruleX(rows.filter((row) => row.layer === at), { x: "layer", stroke: "currentColor", strokeOpacity: 0.14, strokeWidth: 18 }),
        Plot.ruleX(rows.filter((row) => row.nullLow !== null && row.nullLow !== undefined), { x: "layer", y1: "nullLow", y2: "nullHigh", stroke: NEUTRAL, strokeWidth: 7, strokeOpacity: 0.45 }),
        Plot.dot(rows.filter((row) => row.null !== null && row.null !== undefined), { x: "layer", y: "null", r: 3.5, fill: NEUTRAL, symbol: "diamond" }),
        Plot.ruleX(rows.filter((row) => row.low !== null && row.low !== undefined), { x: "layer", y1: "low", y2: "high", stroke: interval, strokeWidth: 1.5, dx: aside }),
        isCorrected ? Plot.dot(rows, { x: "layer", y: "corrected", r: 2.5, fill: interval, dx: aside }) : null,
        Plot.dot(rows, { x: "layer", y: "value", r: 4, stroke: CATEGORICAL[0], strokeWidth: 1.8, fill: (row) => (isFound(row) ? CATEGORICAL[0] : "white"), title: (row) => `layer ${row.layer}: ${written(row.value)}, without the effect ${written(row.null)}; less chance ${written(row.corrected)} [${written(row.low)}, ${written(row.high)}]` }),
      ],
    });
    if (onLayer) d3.select(svg).style("cursor", "pointer").on("click", (event) => nearest(svg, event, rows, onLayer));
    return withNames(svg, d3, [...(isCorrected ? [["measured", CATEGORICAL[0]], ["less chance, 95 % interval", interval, "line"]] : [[rows.some((row) => row.low !== null && row.low !== undefined) ? "measured, 95 % interval" : "measured", CATEGORICAL[0], "line"]]), ["without the effect", NEUTRAL, "band"]], { left: 52 });
  };
  const found = rows.filter(isFound);
  return html`<${Figure} title=${title} name=${name} draw=${draw} keys=${[...keys, at]} caption=${`${caption} Filled: q < .05 over the layers.`}
    summary=${`${found.length} of ${rows.length} layers are beyond what there is without the effect.`}
    columns=${["layer", valueLabel, "less chance", "low", "high", "without", "without low", "without high", "q"]} rows=${rows.map((row) => [row.layer, row.value, row.corrected, row.low, row.high, row.null, row.nullLow, row.nullHigh, row.q])} />`;
}

/** A click anywhere chooses the layer whose column it is in; the slider does the same for those who do not point. */
function nearest(svg, event, rows, onLayer) {
  const x = svg.scale("x");
  const place = event.offsetX;
  const distance = (row) => Math.abs(x.apply(row.layer) + x.bandwidth / 2 - place);
  onLayer(rows.reduce((best, row) => (distance(row) < distance(best) ? row : best)).layer);
}
