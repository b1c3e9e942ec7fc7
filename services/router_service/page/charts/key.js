// What a figure's colours mean, drawn into the figure itself so that it goes with it into files.
const SWATCH = 11;
const LINE = 19;
const RAMP = { width: 190, height: 10, steps: 38 };

/** Make room of `extra` below the drawing and give its place and d3's selection of it. */
function below(svg, d3, extra) {
  const [width, height] = [svg.width.baseVal.value, svg.height.baseVal.value];
  svg.setAttribute("height", height + extra);
  svg.setAttribute("viewBox", `0 0 ${width} ${height + extra}`);
  return { place: d3.select(svg).append("g").attr("transform", `translate(0,${height})`).attr("font-size", 12).attr("fill", "currentColor").attr("text-anchor", "start"), width };
}

/** A line of [name, colour, form]; form "line", "dashes" or "band" where it is no filled square. */
export function withNames(svg, d3, entries, { left = 12 } = {}) {
  const { place, width } = below(svg, d3, 0);
  let [x, y] = [left, 6];
  for (const [name, colour, form] of entries) {
    const length = name.length * 6.8 + SWATCH + 22;
    if (x + length > width && x > left) [x, y] = [left, y + LINE];
    if (form === "line" || form === "dashes") place.append("line").attr("x1", x).attr("x2", x + SWATCH + 2).attr("y1", y + SWATCH / 2).attr("y2", y + SWATCH / 2).attr("stroke", colour).attr("stroke-width", 2.5).attr("stroke-dasharray", form === "dashes" ? "3 2" : null);
    else place.append("rect").attr("x", x).attr("y", y).attr("width", SWATCH).attr("height", SWATCH).attr("rx", 2).attr("fill", colour).attr("fill-opacity", form === "band" ? 0.3 : 1);
    place.append("text").attr("x", x + SWATCH + 6).attr("y", y + SWATCH - 1).text(name);
    x += length;
  }
  return grown(svg, y + LINE);
}

/** The colours from `domain[0]` to its last, with what they measure. */
export function withRamp(svg, d3, { label, colour, domain, format, left = 12 }) {
  const { place } = below(svg, d3, 0);
  const [low, high] = [domain[0], domain.at(-1)];
  place.append("text").attr("x", left).attr("y", 14).text(label);
  const value = d3.scaleLinear([0, RAMP.steps - 1], [low, high]);
  for (let step = 0; step < RAMP.steps; step += 1) {
    place.append("rect").attr("x", left + (step * RAMP.width) / RAMP.steps).attr("y", 20).attr("width", RAMP.width / RAMP.steps + 0.5).attr("height", RAMP.height).attr("fill", colour(value(step)));
  }
  const ticks = domain.length > 2 ? domain : [low, high];
  ticks.forEach((tick, index) => {
    const share = (tick - low) / (high - low || 1);
    place.append("text").attr("x", left + share * RAMP.width).attr("y", 43).attr("text-anchor", index === 0 ? "start" : index === ticks.length - 1 ? "end" : "middle").text(format(tick));
  });
  return grown(svg, 50);
}

function grown(svg, extra) {
  const [width, height] = [svg.width.baseVal.value, svg.height.baseVal.value];
  svg.setAttribute("height", height + extra);
  svg.setAttribute("viewBox", `0 0 ${width} ${height + extra}`);
  return svg;
}
