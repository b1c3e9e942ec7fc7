// Lines over steps, lags or times.
import { html } from "../html.js";
import { Figure, FRAME } from "./figure.js";
import { withNames } from "./key.js";

/**
 * `series`: [{name, colour, points: [[x, y], ...], isDashed, dots}]; `bands`: [{name, colour, points: [[x, low, high]]}].
 */
export function Lines({ title, caption, summary, name, series, bands = [], x, y, height = 240, keys, zero = false, yDomain, children }) {
  const rows = [
    ...series.flatMap((line) => line.points.map(([at, value]) => [line.name, at, value, null, null])),
    ...bands.flatMap((band) => band.points.map(([at, low, high]) => [band.name, at, null, low, high])),
  ];
  const draw = ({ Plot, d3, width }) => {
    const svg = Plot.plot({
      ...FRAME, width, height, marginLeft: 52, marginBottom: 36, marginTop: 26,
      x: { label: x, nice: false }, y: { label: y, grid: true, zero, domain: yDomain, nice: true },
      marks: [
        ...bands.map((band) => Plot.areaY(band.points, { x: "0", y1: "1", y2: "2", fill: band.colour, fillOpacity: 0.3 })),
        ...series.map((line) => Plot.lineY(line.points, { x: "0", y: "1", stroke: line.colour, strokeWidth: line.dots ? 1.5 : 2, strokeDasharray: line.isDashed ? "5 4" : null })),
        ...series.filter((line) => line.dots).map((line) => Plot.dot(line.points, { x: "0", y: "1", fill: line.colour, r: 3 })),
      ],
    });
    const entries = [...series.map((line) => [line.name, line.colour, line.isDashed ? "dashes" : "line"]), ...bands.map((band) => [band.name, band.colour, "band"])];
    return entries.length > 1 ? withNames(svg, d3, entries, { left: 52 }) : svg;
  };
  return html`<${Figure} title=${title} caption=${caption} summary=${summary} name=${name} draw=${draw} keys=${keys}
    columns=${["series", x, y, "low", "high"]} rows=${rows}>${children}<//>`;
}
