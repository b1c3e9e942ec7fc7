// What a view says when it has nothing to show: that it waits, why it failed, or what to do next.
import { html } from "../html.js";

/** An error as the API words it. */
export function Failure({ error }) {
  if (!error) return null;
  return html`<div class="notice failure" role="alert">
    <p>${error.message}</p>
    ${error.param && html`<p class="quiet">Concerns <code>${error.param}</code>.</p>`}
  </div>`;
}

/** Nothing there yet, and how that changes. */
export function Empty({ title, children }) {
  return html`<div class="notice empty"><h2>${title}</h2>${children}</div>`;
}

/** `children(value)` once `loaded` has a value; else that it is awaited, or why it does not come. */
export function Loaded({ loaded, children }) {
  if (loaded.value !== null) return html`<${Failure} error=${loaded.error} />${children(loaded.value)}`;
  if (loaded.error) return html`<${Failure} error=${loaded.error} />`;
  return html`<p class="quiet waiting" role="status">Loading…</p>`;
}
