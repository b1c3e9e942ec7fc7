// One answer as it is written, token by token, from whichever route knows the speaker that was asked for.
import { ApiError } from "./api.js";
import { eventStream } from "./event_stream.js";

/**
 * Who is to speak: {kind: "active"}, {kind: "release", release}, or {kind: "experts", weights: {name: weight}}; an
 * expert set may be the base alone. Yields {token: {text, weights, confidence, logprob}} and, last, {routing, details}.
 */
export function generate({ prompt, who, parameters, signal }) {
  return who.kind === "release" ? ofRelease(prompt, who.release, parameters, signal) : ofActive(prompt, who, parameters, signal);
}

async function* ofActive(prompt, who, { maxTokens, temperature, seed }, signal) {
  const speakers = who.kind === "experts" ? named(who.weights) : {};
  const parameters = { max_new_tokens: maxTokens, temperature, seed, details: true, ...speakers };
  for await (const event of eventStream("/generate_stream", { json: { inputs: prompt, parameters }, signal })) {
    refuse(event);
    const { text, routing, confidence, logprob, special } = event.token;
    if (!special) yield { token: { text, weights: routing, confidence, logprob } };
    if (event.routing) yield { routing: event.routing, details: event.details };
  }
}

const named = (weights) => ("base" in weights ? { adapter_id: "base" } : { experts: weights });

/** TGI's routes know the active release alone; any other is a model of OpenAI's. */
async function* ofRelease(prompt, release, { maxTokens, temperature, seed }, signal) {
  const json = { model: release, prompt, max_tokens: maxTokens, temperature, seed, stream: true, logprobs: 0, routing: { details: true } };
  let generated = 0;
  for await (const event of completions(json, signal)) {
    refuse(event);
    const [choice] = event.choices;
    if (!choice) continue;
    if (choice.routing?.weights) {
      generated += 1;
      const logprob = choice.logprobs?.token_logprobs[0] ?? null;
      yield { token: { text: choice.text, weights: choice.routing.weights, confidence: choice.routing.confidence, logprob } };
    }
    if (choice.finish_reason) {
      yield { routing: choice.routing, details: { finish_reason: choice.finish_reason, generated_tokens: generated } };
    }
  }
}

const completions = (json, signal) => eventStream("/v1/completions", { json, signal });

/** An answer may break off in the middle: then an event says why. */
function refuse(event) {
  if (event.error) throw new ApiError(200, event.error);
}
