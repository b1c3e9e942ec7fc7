// The API of the router service, as this page asks it: relative to where the page is, with the key if there is one.

const KEY = "amoe-api-key";

/** What the API answered instead of what was asked for, in its own words. */
export class ApiError extends Error {
  constructor(status, { message, code, param } = {}) {
    super(message ?? `The service answered ${status}.`);
    this.status = status;
    this.code = code ?? null;
    this.param = param ?? null;
  }
}

/** The key that the user gave, for as long as this tab is open; null if none was. */
export const apiKey = () => sessionStorage.getItem(KEY);

export function keepApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  listeners.key.forEach((listener) => listener());
}

const listeners = { wanted: new Set(), key: new Set() };

/** Call `listener` when the service wants a (or another) key; the result ends that. */
export function onKeyWanted(listener) {
  listeners.wanted.add(listener);
  return () => listeners.wanted.delete(listener);
}

/** Call `listener` when the user has given a key; the result ends that. */
export function onKeyGiven(listener) {
  listeners.key.add(listener);
  return () => listeners.key.delete(listener);
}

/** A response that is sound, or an ApiError. Paths begin with "/"; `json` is a body. */
export async function ask(path, { method, json, form, headers = {}, signal } = {}) {
  const key = apiKey();
  const sent = { ...headers };
  if (key) sent.authorization = `Bearer ${key}`;
  if (json !== undefined) sent["content-type"] = "application/json";
  const body = json !== undefined ? JSON.stringify(json) : form;
  let response;
  try {
    response = await fetch(`.${path}`, { method: method ?? (body === undefined ? "GET" : "POST"), headers: sent, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The service does not answer. Is it still running?", code: "unreachable" });
  }
  if (response.ok) return response;
  if (response.status === 401) listeners.wanted.forEach((listener) => listener());
  throw new ApiError(response.status, (await response.json().catch(() => ({}))).error);
}

export const get = async (path, options) => (await ask(path, options)).json();
export const text = async (path, options) => (await ask(path, options)).text();
export const post = async (path, json = {}, options = {}) => (await ask(path, { method: "POST", json, ...options })).json();
export const remove = async (path) => (await ask(path, { method: "DELETE" })).json();

/** Send files and fields as a form; values may be Files, lists of Files, or text. */
export async function send(path, fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const item of Array.isArray(value) ? value : [value]) if (item !== null && item !== undefined && item !== "") form.append(name, item);
  }
  return (await ask(path, { method: "POST", form })).json();
}

/** The items of all pages of a list, `most` at most. */
export async function list(path, { most = 1000, signal } = {}) {
  const items = [];
  const joint = path.includes("?") ? "&" : "?";
  for (let after = null; ; ) {
    const limit = Math.min(most - items.length, 100);
    const page = await get(`${path}${joint}limit=${limit}${after === null ? "" : `&after=${encodeURIComponent(after)}`}`, { signal });
    items.push(...page.data);
    if (!page.has_more || items.length >= most) return items;
    after = page.data.at(-1).id;
  }
}

/** Fetch a file and hand it to the browser to be saved: a plain link could not carry the key. */
export async function download(path, filename) {
  save(await (await ask(path)).blob(), filename);
}

/** Offer a Blob as a file. */
export function save(blob, filename) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
