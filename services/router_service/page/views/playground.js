// Playground: a prompt, and the answer as it is written, each token on the colour of its experts.
import { generate } from "../generation.js";
import { html, useEffect, useRef, useState } from "../html.js";
import { AnswerPanel } from "../parts/answer.js";
import { useCatalog } from "../parts/catalog.js";
import { Empty, Failure } from "../parts/notice.js";
import { SpeakerChoice, speakerOf } from "../parts/speaker.js";

// The demo's domains: with another base model they are prompts like any other.
const EXAMPLES = [
  ["mathematics", "Problem: Paul finds 8 oranges in the museum and 5 at home. How many oranges are there in all?\nSolution:"],
  ["code", 'def collect(numbers):\n    """Return the count of the odd numbers in numbers."""\n'],
  ["a fact", "Question: I would like to know: How do chemists write calcium?\nAnswer:"],
  ["a story", "Rhyme: In the sandy shore Pepper found a hat,\n"],
  ["an open beginning", "Once upon a time"],
  ["two at once", "Task: Take the atomic number of neon and add 5.\n"],
  ["something unknown", "1. e4 e5 2. Nf3 Nc6 3. Bb5 a6 4."],
];
const FIRST = { choice: "active", weights: {} };

export function Playground({ route }) {
  const catalog = useCatalog();
  const [prompt, setPrompt] = useState(route.query.get("prompt") ?? EXAMPLES[0][1]);
  const [numbers, setNumbers] = useState({ maxTokens: 48, temperature: 0, seed: 0 });
  const [sides, setSides] = useState([FIRST]);
  const [answers, setAnswers] = useState([]);
  const running = useRef(null);
  const isRunning = answers.some((answer) => answer.status === "running");
  useEffect(() => () => running.current?.abort(), []);

  const show = (index, change) => setAnswers((before) => before.map((answer, at) => (at === index ? change(answer) : answer)));
  const run = async (event) => {
    event?.preventDefault();
    if (isRunning || !prompt) return;
    const controller = new AbortController();
    running.current = controller;
    setAnswers(sides.map((side) => ({ prompt, title: titleOf(side), tokens: [], routing: null, details: null, error: null, status: "running" })));
    await Promise.all(sides.map((side, index) => answer({ prompt, side, numbers, controller, show: (change) => show(index, change) })));
  };
  const keys = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event);
  };
  const setSide = (index) => (side) => setSides(sides.map((before, at) => (at === index ? side : before)));

  return html`
    <h1>Playground</h1>
    <form class="panel prompt-form" onSubmit=${run}>
      <div class="examples" role="group" aria-label="Example prompts"><span class="quiet">Try</span>
        ${EXAMPLES.map(([name, text]) => html`<button key=${name} type="button" class="chip" aria-pressed=${prompt === text} onClick=${() => setPrompt(text)}>${name}</button>`)}
      </div>
      <label for="prompt">Prompt</label>
      <textarea id="prompt" rows="4" spellcheck="false" value=${prompt} onInput=${(event) => setPrompt(event.target.value)} onKeyDown=${keys}
        aria-describedby="prompt-keys"></textarea>
      <div class="speakers">${sides.map((side, index) => html`<${SpeakerChoice} key=${index} label=${sides.length > 1 ? `Answer ${"AB"[index]} by` : "Answered by"}
          value=${side} onChange=${setSide(index)} releases=${catalog.releases} experts=${catalog.names} />`)}
        <button type="button" onClick=${() => setSides(sides.length > 1 ? [sides[0]] : [sides[0], { choice: "one:base", weights: {} }])}>
          ${sides.length > 1 ? "One answer only" : "Compare with another"}</button>
      </div>
      <div class="numbers">
        <label>At most <input type="number" min="1" max="4096" value=${numbers.maxTokens} onInput=${(event) => setNumbers({ ...numbers, maxTokens: Number(event.target.value) })} /> tokens</label>
        <label>Temperature <input type="number" min="0" max="2" step="0.1" value=${numbers.temperature} onInput=${(event) => setNumbers({ ...numbers, temperature: Number(event.target.value) })} /></label>
        <label>Seed <input type="number" min="0" value=${numbers.seed} disabled=${numbers.temperature === 0} onInput=${(event) => setNumbers({ ...numbers, seed: Number(event.target.value) })} /></label>
        <span class="push"></span>
        <span id="prompt-keys" class="quiet hint">Ctrl+Enter</span>
        ${isRunning
          ? html`<button key="stop" type="button" class="stop" onClick=${() => running.current.abort()}>Stop</button>`
          : html`<button key="go" class="primary" disabled=${!prompt}>Generate</button>`}
      </div>
    </form>
    <${Failure} error=${catalog.error} />
    ${answers.length === 0 && html`<${Empty} title="Nothing generated yet"><p>Write a prompt or take one of the examples, then press <b>Generate</b>. Every token comes on the colour of the experts that wrote it.</p><//>`}
    <div class=${answers.length > 1 ? "side-by-side" : ""}>${answers.map((answer, index) => html`<${AnswerPanel} key=${index}
      title=${answers.length > 1 ? `${"AB"[index]}: ${answer.title}` : answer.title} answer=${answer} colours=${catalog.colours} />`)}</div>`;
}

/** Stream one answer into its place; a stop keeps what was written. */
async function answer({ prompt, side, numbers, controller, show }) {
  const begun = performance.now();
  try {
    for await (const event of generate({ prompt, who: speakerOf(side), parameters: numbers, signal: controller.signal })) {
      if (event.token) show((before) => ({ ...before, tokens: [...before.tokens, event.token] }));
      else show((before) => ({ ...before, ...event, status: "done", seconds: (performance.now() - begun) / 1000 }));
    }
    show((before) => (before.status === "running" ? { ...before, status: "done" } : before));
  } catch (error) {
    show((before) => (controller.signal.aborted ? { ...before, status: "stopped" } : { ...before, error, status: "failed" }));
  }
}

function titleOf({ choice, weights }) {
  if (choice === "active") return "The active release";
  if (choice === "own") return Object.entries(weights).filter(([, weight]) => weight > 0).map(([name, weight]) => `${name} ${weight}`).join(" + ") || "No expert";
  return choice.slice(choice.indexOf(":") + 1);
}
