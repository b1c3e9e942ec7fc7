// A cooperation graph as a graph: experts as nodes, who recruits whom as arrows, inhibition dashed.
import { figure as written } from "../format.js";
import { html } from "../html.js";
import { CATEGORICAL } from "../palette.js";
import { Figure } from "./figure.js";
import { withNames } from "./key.js";

const NODE = 19;
const MOST_WIDTH = 6;
const MOST_EDGES = 120;
const TICKS = 240;
const [RECRUITS, INHIBITS] = [CATEGORICAL[0], CATEGORICAL[5]];

/** `adjacency[i][j]`: how much of i's weight is added to j's. */
export function Network({ title, caption, name, adjacency, experts, colours, keys }) {
  const edges = adjacency
    .flatMap((row, i) => row.map((value, j) => ({ from: experts[i], to: experts[j], value, i, j })))
    .filter((edge) => edge.i !== edge.j && edge.value !== 0)
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const draw = ({ d3, width }) => drawn(d3, Math.min(width, 640), edges.slice(0, MOST_EDGES), experts, colours);
  const strongest = edges.slice(0, 3).map((edge) => `${edge.from} ${edge.value > 0 ? "recruits" : "inhibits"} ${edge.to} (${written(edge.value)})`);
  return html`<${Figure} title=${title} caption=${`${caption} ${edges.length > MOST_EDGES ? `The ${MOST_EDGES} strongest of ${edges.length} edges are drawn.` : `${edges.length} edges.`}`}
    summary=${strongest.join("; ") || "No edge is left."} name=${name} draw=${draw} keys=${keys} columns=${["expert", "recruits", "A"]} rows=${edges.map((edge) => [edge.from, edge.to, edge.value])} />`;
}

function drawn(d3, width, edges, experts, colours) {
  const height = Math.max(300, Math.min(440, width * 0.75));
  const strongest = Math.max(...edges.map((edge) => Math.abs(edge.value)), 1e-12);
  const circle = (index) => (2 * Math.PI * index) / experts.length - Math.PI / 2;
  // From the same places on a circle every time, so that one graph always looks the same.
  const nodes = experts.map((id, index) => ({ id, x: width / 2 + 120 * Math.cos(circle(index)), y: height / 2 + 120 * Math.sin(circle(index)) }));
  const links = edges.map((edge) => ({ ...edge, source: edge.from, target: edge.to }));
  d3.forceSimulation(nodes)
    .force("link", d3.forceLink(links).id((node) => node.id).distance(150).strength((link) => 0.02 + (0.2 * Math.abs(link.value)) / strongest))
    .force("charge", d3.forceManyBody().strength(-700)).force("x", d3.forceX(width / 2).strength(0.06)).force("y", d3.forceY(height / 2).strength(0.1))
    .force("apart", d3.forceCollide(NODE * 2)).stop().tick(TICKS);
  for (const node of nodes) {
    node.x = Math.max(NODE + 34, Math.min(width - NODE - 34, node.x));
    node.y = Math.max(NODE + 8, Math.min(height - NODE - 18, node.y));
  }
  const svg = d3.create("svg").attr("width", width).attr("height", height).attr("viewBox", `0 0 ${width} ${height}`).attr("font-size", 12).attr("font-family", "system-ui, sans-serif").attr("fill", "currentColor");
  const defs = svg.append("defs");
  for (const [id, colour] of [["recruits", RECRUITS], ["inhibits", INHIBITS]]) {
    defs.append("marker").attr("id", `arrow-${id}`).attr("viewBox", "0 0 10 10").attr("refX", 9).attr("refY", 5).attr("markerWidth", 11).attr("markerHeight", 11).attr("markerUnits", "userSpaceOnUse").attr("orient", "auto").append("path").attr("d", "M0,1L10,5L0,9z").attr("fill", colour);
  }
  svg.append("g").attr("fill", "none").selectAll("path").data(links).join("path").attr("d", arc)
    .attr("stroke", (link) => (link.value > 0 ? RECRUITS : INHIBITS)).attr("stroke-opacity", 0.75)
    .attr("stroke-width", (link) => 0.8 + (MOST_WIDTH * Math.abs(link.value)) / strongest).attr("stroke-dasharray", (link) => (link.value > 0 ? null : "6 4"))
    .attr("marker-end", (link) => `url(#arrow-${link.value > 0 ? "recruits" : "inhibits"})`)
    .append("title").text((link) => `${link.from} ${link.value > 0 ? "recruits" : "inhibits"} ${link.to}: ${written(link.value)}`);
  const node = svg.append("g").selectAll("g").data(nodes).join("g").attr("transform", (one) => `translate(${one.x},${one.y})`);
  node.append("circle").attr("r", NODE).attr("fill", (one) => colours.get(one.id)?.colour ?? "#8c8c8c").attr("stroke", "currentColor").attr("stroke-width", 1.2).attr("stroke-dasharray", (one) => (colours.get(one.id)?.isRepeated ? "4 3" : null));
  node.append("text").attr("text-anchor", "middle").attr("y", NODE + 14).attr("font-weight", 600).text((one) => one.id);
  return withNames(svg.node(), d3, [["recruits", RECRUITS, "line"], ["inhibits", INHIBITS, "dashes"]]);
}

/** Bent, so that two opposite arrows lie apart, and ending at the rim of its node. */
function arc({ source, target }) {
  const [dx, dy] = [target.x - source.x, target.y - source.y];
  const length = Math.hypot(dx, dy) || 1;
  const [mx, my] = [(source.x + target.x) / 2 - dy * 0.16, (source.y + target.y) / 2 + dx * 0.16];
  const [ex, ey] = [target.x - mx, target.y - my];
  const toEnd = Math.hypot(ex, ey) || 1;
  const [sx, sy] = [mx - source.x, my - source.y];
  const toStart = Math.hypot(sx, sy) || 1;
  const at = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;
  return length ? `M${at(source.x + (sx / toStart) * NODE, source.y + (sy / toStart) * NODE)}Q${at(mx, my)} ${at(target.x - (ex / toEnd) * (NODE + 2), target.y - (ey / toEnd) * (NODE + 2))}` : "";
}
