// Traces and what was found in them, as the API gives them; the live routing log speaks the same language.
import { get, list, remove, send, text } from "./api.js";

const MOST_PROMPTS = 1000;
const MOST_POSITIONS = 2000;

export const listTraces = (signal) => list("/traces", { most: 300, signal });
export const importTrace = (name, files, options) => send("/traces", { name, files, options: JSON.stringify(options) });
export const removeTrace = (id) => remove(`/traces/${encodeURIComponent(id)}`);

/** A recorded trace: its row, what was found over all layers, one figure of a layer, prompts, tokens, the report. */
export function traceSource(id) {
  const path = `/traces/${encodeURIComponent(id)}`;
  return {
    trace: (signal) => get(path, { signal }),
    overview: async (signal) => (await get(`${path}/analysis`, { signal })).overview,
    figure: (name, layer, part, signal) => unlessMissing(async () => (await get(`${path}/analysis/${name}?layer=${layer}&phase=${part}`, { signal })).data),
    prompts: async (signal) => (await get(`${path}/sequences?count=${MOST_PROMPTS}`, { signal })).data,
    choices: ({ layer, sequence, from, count }, signal) => firstTokens(`${path}/choices?layer=${layer}&sequence=${sequence}&from=${from}`, count, signal),
    report: () => text(`${path}/report`),
  };
}

/** The newest requests of the routing log: one layer, whose experts are the release's. It is analysed once, whole. */
export function liveSource(since) {
  let asked = null;
  const whole = () => {
    asked ??= get(`/analysis${since ? `?since=${encodeURIComponent(since)}` : ""}`).catch((error) => {
      asked = null;
      throw error;
    });
    return asked;
  };
  return {
    trace: async () => {
      const { overview, num_requests: requests, is_whole: isWhole, since: from } = await whole();
      return { name: "The live routing log", status: "ready", description: overview.description, live: { requests, isWhole, from } };
    },
    overview: async () => (await whole()).overview,
    figure: async (name, _layer, part) => {
      const { parts } = (await whole()).layer;
      return parts[part][name] ?? { missing: parts[part].missing[name] ?? "It is not there." };
    },
  };
}

/** `count` tokens at most. Where positions have a gap at the start, as many are asked for as may be. */
async function firstTokens(path, count, signal) {
  const found = await get(`${path}&count=${count}`, { signal });
  if (found.tokens.length) return found;
  const more = await get(`${path}&count=${MOST_POSITIONS}`, { signal });
  return { ...more, tokens: more.tokens.slice(0, count) };
}

/** A figure that cannot be made is no failure: {missing: why}. */
async function unlessMissing(read) {
  try {
    return await read();
  } catch (error) {
    if (error.status === 404) return { missing: error.message };
    throw error;
  }
}
