// The choice of who is to answer: the active release, another one, or a set of experts with weights.
import { html, useId } from "../html.js";

const ACTIVE = "active";
const OWN = "own";

/** `value` is {choice, weights}: "active", a release's or an expert's name, or "own" for weights by hand. */
export function SpeakerChoice({ label, value, onChange, releases, experts }) {
  const id = useId();
  const others = releases.filter((release) => release.status !== ACTIVE);
  return html`<div class="speaker">
    <label for=${id}>${label}</label>
    <select id=${id} value=${value.choice} onChange=${(event) => onChange({ ...value, choice: event.target.value })}>
      <option value=${ACTIVE}>The active release</option>
      ${others.length > 0 && html`<optgroup label="Another release">${others.map((release) => html`<option key=${release.id} value=${`release:${release.id}`}>${release.id} (${release.status})</option>`)}</optgroup>`}
      <optgroup label="One alone"><option value="one:base">base</option>${experts.map((name) => html`<option key=${name} value=${`one:${name}`}>${name}</option>`)}</optgroup>
      <option value=${OWN} disabled=${!experts.length}>Experts with weights of my own</option>
    </select>
    ${value.choice === OWN && html`<fieldset class="weights"><legend>Weights (0 is silent)</legend>
      ${experts.map((name) => html`<label key=${name}>${name} <input type="number" min="0" max="10" step="0.1" value=${value.weights[name] ?? 0}
        onInput=${(event) => onChange({ ...value, weights: { ...value.weights, [name]: Number(event.target.value) } })} /></label>`)}
    </fieldset>`}
  </div>`;
}

/** What `generate` is to be told of a choice. */
export function speakerOf({ choice, weights }) {
  if (choice === ACTIVE) return { kind: ACTIVE };
  if (choice === OWN) return { kind: "experts", weights: Object.fromEntries(Object.entries(weights).filter(([, weight]) => weight > 0)) };
  const [kind, name] = [choice.slice(0, choice.indexOf(":")), choice.slice(choice.indexOf(":") + 1)];
  return kind === "release" ? { kind, release: name } : { kind: "experts", weights: { [name]: 1 } };
}
