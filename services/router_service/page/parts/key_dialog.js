// Where the service wants an API key: it is asked for once and kept for as long as the tab is open.
import { apiKey, keepApiKey } from "../api.js";
import { html, useState } from "../html.js";
import { Dialog } from "./dialog.js";

export function KeyDialog({ onClose }) {
  const [key, setKey] = useState("");
  const keep = (event) => {
    event.preventDefault();
    onClose();
    keepApiKey(key.trim());
  };
  return html`<${Dialog} title="API key" onClose=${onClose}>
    <form onSubmit=${keep}>
      <p>${apiKey() ? "The service does not take the key that was given." : "This service wants an API key."} It is kept in this tab only, until it is closed.</p>
      <label>Key <input type="password" autocomplete="off" autofocus required value=${key} onInput=${(event) => setKey(event.target.value)} /></label>
      <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary">Use this key</button></div>
    </form>
  <//>`;
}
