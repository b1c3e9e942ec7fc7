// An answer with every token on the colour of the experts that wrote it: the picture, and the same as a table.
import { mixed } from "../colours.js";
import { figure, percent } from "../format.js";
import { html, useId, useRef, useState } from "../html.js";

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** [[name, weight]] of a token, the largest first; the base speaks where nobody else does. */
export const speakers = (weights) => {
  const found = Object.entries(weights ?? {}).filter(([, weight]) => weight > 0.0005).sort((a, b) => b[1] - a[1]);
  return found.length ? found : [["base", 1]];
};

const told = (weights) => speakers(weights).map(([name, weight]) => `${name} ${percent(weight)}`).join(", ");

/** `prompt` before `tokens` of {text, weights, confidence, logprob}; one stop for the keyboard, arrows go on from there. */
export function Tokens({ prompt, tokens, colours, label }) {
  const [at, setAt] = useState(null);
  const id = useId();
  const box = useRef(null);
  const move = (event) => {
    const step = STEPS[event.key];
    const end = { Home: 0, End: tokens.length - 1 }[event.key];
    if ((step === undefined && end === undefined) || !tokens.length) return;
    event.preventDefault();
    setAt(end ?? Math.max(0, Math.min(tokens.length - 1, (at ?? -1) + step)));
  };
  const overToken = (event) => {
    const index = event.target.dataset?.index;
    if (index !== undefined) setAt(Number(index));
  };
  return html`<div class="tokens-frame" onMouseLeave=${() => setAt(null)}>
    <div class="tokens" ref=${box} role="listbox" tabindex="0" aria-label=${label} aria-activedescendant=${at === null ? null : `${id}-${at}`}
      onKeyDown=${move} onMouseOver=${overToken} onBlur=${() => setAt(null)}>
      <span class="prompt" role="presentation">${prompt}</span>${tokens.map((token, index) => html`<${Token}
        key=${index} id=${`${id}-${index}`} token=${token} index=${index} isAt=${index === at} colours=${colours} />`)}
    </div>
    <${Reading} token=${at === null ? null : tokens[at]} colours=${colours} />
  </div>`;
}

function Token({ id, token, index, isAt, colours }) {
  const [leader] = speakers(token.weights)[0];
  const kind = `token${isAt ? " at" : ""}${colours.get(leader)?.isRepeated ? " repeated" : ""}`;
  return html`<span id=${id} class=${kind} role="option" aria-selected=${isAt} data-index=${index} style=${{ "--tint": mixed(Object.fromEntries(speakers(token.weights)), colours) }}
    aria-label=${`${token.text.trim() || "space"}: ${told(token.weights)}`}>${token.text}</span>`;
}

/** What is known of the token that the pointer or the keyboard is at. */
function Reading({ token, colours }) {
  if (!token) return html`<p class="reading quiet">Point at a token, or use the arrow keys, to see who wrote it.</p>`;
  return html`<div class="reading"><code class="piece">${JSON.stringify(token.text)}</code>
    ${speakers(token.weights).map(([name, weight]) => html`<span class="weight" key=${name}><${Dot} name=${name} colours=${colours} /> ${name} <b>${percent(weight)}</b></span>`)}
    ${token.confidence !== null && token.confidence !== undefined && html`<span class="quiet">confidence ${percent(token.confidence)}</span>`}
    ${token.logprob !== null && html`<span class="quiet">log-probability ${figure(token.logprob)}</span>`}
  </div>`;
}

export const Dot = ({ name, colours }) => html`<span class=${`dot${colours.get(name)?.isRepeated ? " repeated" : ""}`} aria-hidden="true" style=${{ "--tint": colours.get(name)?.colour }}></span>`;

/** Whose colour is whose. */
export function Legend({ names, colours }) {
  return html`<ul class="legend" aria-label="Colours of experts">${names.map((name) => html`<li key=${name}><${Dot} name=${name} colours=${colours} /> ${name}</li>`)}</ul>`;
}

/** The answer for those who do not see colours. */
export function TokenTable({ tokens }) {
  return html`<details class="as-table"><summary>Tokens as a table</summary><div class="scroll"><table>
    <thead><tr><th scope="col">Token</th><th scope="col">Experts</th><th scope="col">Confidence</th><th scope="col">Log-probability</th></tr></thead>
    <tbody>${tokens.map((token, index) => html`<tr key=${index}><td><code>${JSON.stringify(token.text)}</code></td><td>${told(token.weights)}</td>
      <td>${percent(token.confidence)}</td><td>${figure(token.logprob)}</td></tr>`)}</tbody>
  </table></div></details>`;
}

/** The share of each expert as one bar. */
export function ShareBar({ shares, colours }) {
  const shown = shares.filter((part) => part.share > 0.0005);
  return html`<div class="share-bar" role="img" aria-label=${`Shares: ${shown.map((part) => `${part.expert} ${percent(part.share)}`).join(", ")}`}>
    ${shown.map((part) => html`<span key=${part.expert} style=${{ width: `${part.share * 100}%`, "--tint": colours.get(part.expert)?.colour }}></span>`)}
  </div>`;
}
