// The frame of every figure: title, drawing, caption with its n, the numbers as a table, and files of it.
import { figure as written } from "../format.js";
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../html.js";
import { saveCsv, savePng, saveSvg } from "./export.js";
import { library } from "./library.js";

const SMALLEST = 280;
const MOST_ROWS = 500;

/**
 * `draw({Plot, d3, width, isDark})` makes an SVG element and is called again when `keys` or the width change;
 * `columns` and `rows` are the numbers in it, `summary` says in a sentence what is to be seen.
 */
export function Figure({ title, caption, summary, name, draw, keys, columns, rows, children }) {
  const place = useRef(null);
  const svg = useRef(null);
  const width = useWidth(place);
  const isDark = useIsDark();
  const [error, setError] = useState(null);
  const id = useId();
  useEffect(() => {
    if (!width) return undefined;
    let isCurrent = true;
    library().then(({ Plot, d3 }) => {
      if (!isCurrent || !place.current) return;
      svg.current = draw({ Plot, d3, width: Math.max(SMALLEST, width), isDark });
      // One picture with one name: the names that Plot gives to its parts would be read as noise.
      for (const part of svg.current.querySelectorAll("[aria-label], [aria-description]")) ["aria-label", "aria-description"].forEach((name) => part.removeAttribute(name));
      svg.current.setAttribute("role", "img");
      svg.current.setAttribute("aria-label", `${title}. ${summary ?? ""}`);
      place.current.replaceChildren(svg.current);
    }).catch(setError);
    return () => { isCurrent = false; };
  }, [width, isDark, ...keys]);
  return html`<figure class="figure" aria-labelledby=${id}>
    <div class="figure-head"><h2 id=${id}>${title}</h2>
      <div class="exports" role="group" aria-label=${`Save ${title}`}>
        <button type="button" class="small" onClick=${() => savePng(svg.current, title, name)}>PNG</button>
        <button type="button" class="small" onClick=${() => saveSvg(svg.current, title, name)}>SVG</button>
        <button type="button" class="small" onClick=${() => saveCsv(columns, rows, name)}>CSV</button>
      </div>
    </div>
    ${children}
    ${error && html`<p class="notice failure" role="alert">${error.message}</p>`}
    <div class="drawing scroll" ref=${place}></div>
    ${caption && html`<figcaption>${caption}</figcaption>`}
    <${Numbers} columns=${columns} rows=${rows} />
  </figure>`;
}

/** What the drawing shows, to be read. */
function Numbers({ columns, rows }) {
  const [isOpen, setOpen] = useState(false);
  return html`<details class="as-table" onToggle=${(event) => setOpen(event.target.open)}><summary>As a table</summary>
    ${isOpen && html`<div class="scroll table-frame" tabindex="0"><table><thead><tr>${columns.map((column) => html`<th scope="col" key=${column}>${column}</th>`)}</tr></thead>
      <tbody>${rows.slice(0, MOST_ROWS).map((row, index) => html`<tr key=${index}>${row.map((value, at) => html`<td key=${at} class=${typeof value === "number" ? "num" : null}>${typeof value === "number" ? written(value) : value ?? "–"}</td>`)}</tr>`)}</tbody></table>
      ${rows.length > MOST_ROWS && html`<p class="quiet">The first ${MOST_ROWS} of ${rows.length} rows: the CSV has them all.</p>`}</div>`}
  </details>`;
}

function useWidth(place) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(place.current);
    return () => observer.disconnect();
  }, []);
  return width;
}

export function useIsDark() {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [isDark, setDark] = useState(query.matches);
  useEffect(() => {
    const changed = (event) => setDark(event.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  return isDark;
}

/** What all drawings have in common; the class name is fixed because the page's policy knows the style by its digest. */
export const FRAME = { className: "plot", style: { background: "transparent", fontSize: "12px", overflow: "visible" } };
