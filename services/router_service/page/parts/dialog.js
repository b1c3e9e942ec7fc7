// A question that the page must have answered before it goes on.
import { html, useEffect, useId, useRef } from "../html.js";

/** A modal window; `onClose` is called however it is left. */
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(null);
  const id = useId();
  useEffect(() => {
    const opened = dialog.current;
    opened.showModal();
    return () => opened.close();
  }, []);
  return html`<dialog ref=${dialog} aria-labelledby=${id} onClose=${onClose} onCancel=${onClose}>
    <h2 id=${id}>${title}</h2>
    ${children}
  </dialog>`;
}

/** Ask before something that is not lightly undone. `onYes` may take its time; the window stays until then. */
export function Confirm({ title, yes, action, onYes, onClose, children }) {
  const confirm = async () => {
    if ((await action.run(onYes)) !== undefined) onClose();
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    ${children}
    ${action.error && html`<div class="notice failure" role="alert">${action.error.message}</div>`}
    <div class="buttons">
      <button type="button" onClick=${onClose}>Cancel</button>
      <button type="button" class="primary" disabled=${action.isRunning} onClick=${confirm}>${yes}</button>
    </div>
  <//>`;
}
