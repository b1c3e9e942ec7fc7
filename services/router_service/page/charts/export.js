// A figure as a file: a picture that stands by itself, or the numbers in it.
import { save } from "../api.js";

const HEAD = 34;
const INK = "#1a2128";
const PAPER = "#ffffff";
const SCALE = 2;

/** The drawing on paper, under its title, with colours that need no page around it. */
function standalone(svg, title) {
  const [width, height] = [svg.width.baseVal.value, svg.height.baseVal.value];
  const space = "http://www.w3.org/2000/svg";
  const outer = document.createElementNS(space, "svg");
  const own = { xmlns: space, width, height: height + HEAD, viewBox: `0 0 ${width} ${height + HEAD}`, color: INK, fill: INK, "font-family": "system-ui, sans-serif" };
  for (const [name, value] of Object.entries(own)) outer.setAttribute(name, value);
  const paper = document.createElementNS(space, "rect");
  for (const [name, value] of Object.entries({ width: "100%", height: "100%", fill: PAPER })) paper.setAttribute(name, value);
  const heading = document.createElementNS(space, "text");
  for (const [name, value] of Object.entries({ x: 12, y: 22, "font-size": 14, "font-weight": 600 })) heading.setAttribute(name, value);
  heading.textContent = title;
  const drawing = svg.cloneNode(true);
  drawing.setAttribute("y", HEAD);
  drawing.style.color = INK;
  outer.append(paper, heading, drawing);
  return { text: new XMLSerializer().serializeToString(outer), width, height: height + HEAD };
}

export function saveSvg(svg, title, name) {
  save(new Blob([standalone(svg, title).text], { type: "image/svg+xml" }), `${name}.svg`);
}

export async function savePng(svg, title, name) {
  const { text, width, height } = standalone(svg, title);
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * SCALE, height * SCALE];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  save(await new Promise((done) => { canvas.toBlob(done, "image/png"); }), `${name}.png`);
}

/** `rows` of values under `columns`, as RFC 4180 has it. */
export function saveCsv(columns, rows, name) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns, ...rows].map((row) => row.map(cell).join(","));
  save(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }), `${name}.csv`);
}
