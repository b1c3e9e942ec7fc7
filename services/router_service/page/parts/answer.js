// One answer of the playground: its tokens while they come, and what is known of it at the end.
import { figure, percent } from "../format.js";
import { html } from "../html.js";
import { Failure } from "./notice.js";
import { Dot, Legend, ShareBar, Tokens, TokenTable } from "./tokens.js";

const ENDS = { eos_token: "ended by itself", stop: "ended by itself", length: "reached the length asked for", stop_sequence: "met a stop text" };

/** `answer`: {prompt, tokens, routing, details, error, status, seconds}. */
export function AnswerPanel({ title, answer, colours }) {
  const names = [...new Set(answer.tokens.flatMap((token) => Object.keys(token.weights ?? {})))];
  return html`<section class="panel answer" aria-label=${title} data-status=${answer.status}>
    <h2>${title}</h2>
    <${Tokens} prompt=${answer.prompt} tokens=${answer.tokens} colours=${colours} label=${`${title}: tokens`} />
    <${Failure} error=${answer.error} />
    ${answer.routing ? html`<${Outcome} answer=${answer} colours=${colours} />` : html`<${Legend} names=${names} colours=${colours} />`}
    ${answer.tokens.length > 0 && answer.status !== "running" && html`<${TokenTable} tokens=${answer.tokens} />`}
    <p class="sr-only" role="status">${spoken(answer)}</p>
  </section>`;
}

function Outcome({ answer, colours }) {
  const { routing, details, seconds } = answer;
  const shares = [...routing.attribution].sort((a, b) => b.share - a.share);
  return html`<div class="outcome">
    <${ShareBar} shares=${shares} colours=${colours} />
    <ul class="shares">${shares.filter((part) => part.share > 0.0005).map((part) => html`<li key=${part.expert}><${Dot} name=${part.expert} colours=${colours} /> ${part.expert} <b>${percent(part.share, 1)}</b></li>`)}</ul>
    ${routing.gap && html`<p class="flag"><b>Gap:</b> the prompt is outside of what this release knows. Requests like it are gathered under <a href="#/gaps">Gaps</a>.</p>`}
    <dl class="facts">
      <div><dt>Confidence</dt><dd>${percent(routing.confidence)}</dd></div>
      <div><dt>Domain</dt><dd>${routing.domain ?? "–"}${routing.domain_probability !== null && routing.domain_probability !== undefined && html` <span class="quiet">${percent(routing.domain_probability)}</span>`}</dd></div>
      <div><dt>Gap</dt><dd>${routing.gap === null || routing.gap === undefined ? "not known" : routing.gap ? "flagged" : "no"}</dd></div>
      <div><dt>Release</dt><dd>${routing.release ? html`<a href=${`#/experts/${routing.release}`}>${routing.release}</a>` : "none"}</dd></div>
      <div><dt>Tokens</dt><dd>${details?.generated_tokens} <span class="quiet">${ENDS[details?.finish_reason] ?? details?.finish_reason}</span></dd></div>
      <div><dt>Speed</dt><dd>${figure(details?.generated_tokens / seconds)} tokens/s</dd></div>
    </dl>
  </div>`;
}

function spoken({ status, routing, tokens }) {
  if (status === "running") return "Writing";
  if (status === "stopped") return `Stopped after ${tokens.length} tokens`;
  if (!routing) return "";
  const shares = routing.attribution.filter((part) => part.share > 0.0005).map((part) => `${part.expert} ${percent(part.share)}`);
  return `Done: ${tokens.map((token) => token.text).join("")}. Written by ${shares.join(", ")}.`;
}
