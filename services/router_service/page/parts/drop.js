// Files from the user's machine: dropped here, or chosen as usual.
import { html, useId, useState } from "../html.js";

/** `onFiles` gets a list of Files, never an empty one. */
export function Drop({ label, hint, accept, onFiles, isBusy }) {
  const [isOver, setOver] = useState(false);
  const id = useId();
  const take = (files) => files.length && onFiles([...files]);
  const dropped = (event) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files);
  };
  const picked = (event) => {
    take([...event.target.files]);
    event.target.value = "";
  };
  return html`<div class=${`drop${isOver ? " over" : ""}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${dropped}>
    <label for=${id}><b>${isBusy ? "Sending…" : label}</b></label>
    <p class="quiet">${hint}</p>
    <input id=${id} type="file" multiple accept=${accept} disabled=${isBusy} onChange=${picked} />
  </div>`;
}
