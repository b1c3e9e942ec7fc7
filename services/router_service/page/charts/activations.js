// Which experts each token of a sequence was given to, one column a token: strong is the first choice, or a large weight.
import { figure as written } from "../format.js";
import { html } from "../html.js";
import { CATEGORICAL } from "../palette.js";
import { Figure, FRAME } from "./figure.js";
import { withRamp } from "./key.js";

const NAMES = { prompt: "prompt", generated: "generated" };

/** `tokens`: [{position, phase, experts, weights, text}]. */
export function Activations({ title, name, tokens, expertNames, caption, keys, children }) {
  const hasWeights = tokens.some((token) => token.weights);
  const cells = tokens.flatMap((token) => token.experts.map((expert, rank) => ({ position: token.position, expert: expertNames[expert] ?? String(expert), rank: rank + 1, weight: token.weights?.[rank] ?? null, phase: token.phase, token: token.text ?? token.token_id ?? "" })));
  const topK = Math.max(1, ...cells.map((cell) => cell.rank));
  const strength = (cell) => (hasWeights ? cell.weight ?? 0 : 1 - (0.8 * (cell.rank - 1)) / topK);
  const draw = ({ Plot, d3, width, isDark }) => {
    const tall = Math.max(5, Math.min(22, 330 / expertNames.length));
    const left = Math.min(120, 26 + 6.6 * Math.max(...expertNames.map((text) => text.length)));
    const positions = tokens.map((token) => token.position);
    const every = Math.ceil(positions.length / Math.max(3, (width - left) / 44));
    const most = hasWeights ? Math.max(...cells.map(strength), 1e-9) : 1;
    const shade = d3.interpolateRgb(isDark ? "#1f2a33" : "#dde8f0", isDark ? "#8fd0f5" : CATEGORICAL[0]);
    const change = tokens.find((token, index) => index > 0 && token.phase !== tokens[index - 1].phase);
    const svg = Plot.plot({
      ...FRAME, width, height: 56 + tall * expertNames.length, marginLeft: left, marginBottom: 36, marginTop: 20, marginRight: 12,
      x: { domain: positions, label: "token", ticks: positions.filter((_, index) => index % every === 0), tickSize: 3, padding: 0 },
      y: { domain: expertNames, label: "expert", labelAnchor: "top", labelArrow: "none", tickSize: 0, padding: 0, ticks: expertNames.filter((_, index) => index % Math.ceil(12 / tall) === 0) },
      color: { type: "identity" },
      marks: [
        Plot.frame({ stroke: "currentColor", strokeOpacity: 0.15 }),
        Plot.cell(cells, { x: "position", y: "expert", inset: 0.4, fill: (cell) => shade(strength(cell) / most), title: (cell) => `token ${cell.position}${cell.token === "" ? "" : ` (${cell.token})`}, ${cell.phase}: expert ${cell.expert}, choice ${cell.rank}${cell.weight === null ? "" : `, weight ${written(cell.weight)}`}` }),
        change ? Plot.ruleX([change.position], { stroke: CATEGORICAL[5], strokeWidth: 2, dx: -0.5 * ((width - left - 12) / positions.length) }) : null,
        change ? Plot.text([change.position], { x: (position) => position, frameAnchor: "top", dy: -13, textAnchor: "start", text: [`${NAMES[change.phase] ?? change.phase} →`] }) : null,
      ],
    });
    return withRamp(svg, d3, { label: hasWeights ? "gate weight" : "rank of the choice", colour: (value) => shade(hasWeights ? value / most : 1 - (0.8 * (value - 1)) / topK), domain: hasWeights ? [0, most] : [1, topK], format: written, left: Math.min(left, 60) });
  };
  return html`<${Figure} title=${title} name=${name} draw=${draw} keys=${keys} caption=${caption} summary=${`${tokens.length} tokens, ${topK} experts each.`}
    columns=${["token", "phase", "id or text", "choice", "expert", "weight"]} rows=${cells.map((cell) => [cell.position, cell.phase, cell.token, cell.rank, cell.expert, cell.weight])}>${children}<//>`;
}
