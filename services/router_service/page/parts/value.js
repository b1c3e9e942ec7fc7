// Any JSON, to be read by people: names and values, what is nested folded away.
import { figure } from "../format.js";
import { html } from "../html.js";

const LONG = 80;

export function Value({ value }) {
  if (value === null || value === undefined) return html`<span class="quiet">none</span>`;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return html`<span title=${value}>${figure(value)}</span>`;
  if (typeof value === "string") return value.length > LONG && !value.includes(" ") ? html`<code>${value}</code>` : value;
  if (Array.isArray(value)) return value.every((item) => item === null || typeof item !== "object") ? inLine(value) : html`<${Nested} entries=${value.map((item, index) => [index + 1, item])} />`;
  return html`<${Names} entries=${Object.entries(value)} />`;
}

const inLine = (items) => (items.length ? items.map((item) => (typeof item === "number" ? figure(item) : String(item))).join(", ") : html`<span class="quiet">none</span>`);

function Names({ entries }) {
  if (!entries.length) return html`<span class="quiet">none</span>`;
  return html`<dl class="names">${entries.map(([name, value]) => html`<div key=${name}><dt>${String(name).replaceAll("_", " ")}</dt><dd>${isLarge(value) ? html`<${Nested} entries=${Object.entries(value)} />` : html`<${Value} value=${value} />`}</dd></div>`)}</dl>`;
}

const isLarge = (value) => value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length > 0;

const Nested = ({ entries }) => html`<details><summary>${entries.length} ${entries.length === 1 ? "entry" : "entries"}</summary><${Names} entries=${entries} /></details>`;
