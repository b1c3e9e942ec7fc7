// Load: what the service and its replicas are doing now, and over the last minutes that this view was open.
import { get, text } from "../api.js";
import { Lines } from "../charts/lines.js";
import { bytes, count, duration, figure, percent } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { useLoaded } from "../loading.js";
import { CATEGORICAL } from "../palette.js";
import { Empty, Failure, Loaded } from "../parts/notice.js";
import { buckets, quantile, readMetrics, total } from "../prometheus.js";

const EVERY_MS = 2000;
const KEPT = 150;
const STATES = { up: "good", draining: "warn", down: "bad" };

export function Load() {
  const loaded = useLoaded(async (signal) => {
    const [metrics, replicas, jobs, ready] = await Promise.all([text("/metrics", { signal }), get("/replicas", { signal }), get("/jobs?limit=100", { signal }), get("/ready", { signal }).catch(() => null)]);
    return { at: Date.now(), metrics: readMetrics(metrics), replicas: replicas.data, jobs: jobs.data, ready };
  }, [], { everyMs: EVERY_MS });
  const [readings, setReadings] = useState([]);
  useEffect(() => { if (loaded.value) setReadings((before) => [...before, reading(loaded.value, before.at(-1))].slice(-KEPT)); }, [loaded.value]);
  return html`<div class="head-row"><h1>Load</h1><span class="quiet">every ${duration(EVERY_MS / 1000)} while you look</span></div>
    <${Loaded} loaded=${loaded}>${(now) => html`<${Now} now=${now} latest=${readings.at(-1)} /><${Course} readings=${readings} /><${Replicas} replicas=${now.replicas} />`}<//>`;
}

/** What is drawn of one look; rates and quantiles are of what came since the look before. */
function reading({ at, metrics, replicas }, before) {
  const tokens = (metrics.amoe_tokens_total ?? []).find((one) => one.labels.kind === "generated")?.value ?? 0;
  const times = { first: buckets(metrics, "amoe_first_token_seconds"), whole: buckets(metrics, "amoe_request_seconds"), token: buckets(metrics, "amoe_output_token_seconds") };
  const seconds = before ? (at - before.at) / 1000 : null;
  return {
    at, tokens, times,
    inFlight: total(metrics, "amoe_requests_in_flight"),
    running: replicas.reduce((sum, replica) => sum + replica.load.running, 0),
    waiting: replicas.reduce((sum, replica) => sum + replica.load.waiting, 0),
    tokensPerS: seconds ? Math.max(0, tokens - before.tokens) / seconds : null,
    first50: before && quantile(0.5, times.first, before.times.first),
    first95: before && quantile(0.95, times.first, before.times.first),
    token50: before && quantile(0.5, times.token, before.times.token),
  };
}

function Now({ now, latest }) {
  const { metrics, replicas, jobs, ready } = now;
  const waiting = jobs.filter((job) => job.status === "queued").length;
  const running = jobs.filter((job) => ["running", "validating"].includes(job.status)).length;
  const times = buckets(metrics, "amoe_first_token_seconds");
  const whole = buckets(metrics, "amoe_request_seconds");
  const slots = replicas.reduce((sum, replica) => sum + (replica.num_slots ?? 0), 0);
  const tiles = [
    ["Requests being answered", count(total(metrics, "amoe_requests_in_flight"))],
    ["Sequences waiting", count(latest?.waiting ?? 0)],
    ["Tokens per second", figure(latest?.tokensPerS === null ? 0 : Math.round((latest?.tokensPerS ?? 0) * 10) / 10)],
    ["First token, median", duration(quantile(0.5, times)), `95 %: ${duration(quantile(0.95, times))}`],
    ["Whole answer, median", duration(quantile(0.5, whole)), `95 %: ${duration(quantile(0.95, whole))}`],
    ["Slots taken", slots ? `${replicas.reduce((sum, replica) => sum + replica.resident.length, 0)} of ${slots}` : "–"],
    ["Jobs", `${running} running`, `${waiting} queued`],
    ["Active release", ready?.release ?? "none", ready?.trouble],
  ];
  return html`<section class="panel" aria-label="Now"><dl class="facts tiles">${tiles.map(([name, value, more]) => html`<div key=${name}><dt>${name}</dt><dd>${value}${more && html` <span class="quiet">${more}</span>`}</dd></div>`)}</dl>
    <p class="quiet">Times since this router service started: ${count(total(metrics, "amoe_request_seconds_count"))} requests.</p></section>`;
}

function Course({ readings }) {
  if (readings.length < 3) return html`<${Empty} title="Looking…"><p>The course of load is drawn from what this view sees while it is open. Generate something in the <a href="#/playground">Playground</a>, in another tab.</p><//>`;
  const start = readings[0].at;
  const of = (key, scale = 1) => readings.filter((one) => one[key] !== null && one[key] !== undefined).map((one) => [(one.at - start) / 1000, one[key] * scale]);
  const keys = [readings.length, readings.at(-1).at];
  const caption = `${readings.length} looks, ${EVERY_MS / 1000} s apart.`;
  return html`<div class="side-by-side">
    <section class="panel"><${Lines} title="Requests" name="load-requests" x="seconds" y="sequences" zero height=${200} keys=${keys} caption=${caption} yDomain=${peak(readings, ["inFlight", "running", "waiting"])}
      series=${[{ name: "being answered", colour: CATEGORICAL[0], points: of("inFlight") }, { name: "running on replicas", colour: CATEGORICAL[2], points: of("running") }, { name: "waiting on replicas", colour: CATEGORICAL[5], points: of("waiting"), isDashed: true }]} /></section>
    <section class="panel"><${Lines} title="Tokens" name="load-tokens" x="seconds" y="tokens per second" zero height=${200} keys=${keys} caption=${caption} yDomain=${peak(readings, ["tokensPerS"])}
      series=${[{ name: "generated", colour: CATEGORICAL[0], points: of("tokensPerS") }]} /></section>
    ${readings.some((one) => one.first50) && html`<section class="panel"><${Lines} title="Latency" name="load-latency" x="seconds" y="milliseconds" zero height=${200} keys=${keys} caption="Of the requests that ended between two looks; from histogram buckets, so rounded."
      series=${[{ name: "first token, median", colour: CATEGORICAL[0], points: of("first50", 1000), dots: true }, { name: "first token, 95 %", colour: CATEGORICAL[5], points: of("first95", 1000), dots: true, isDashed: true }, { name: "per token, median", colour: CATEGORICAL[2], points: of("token50", 1000), dots: true }]} /></section>`}
  </div>`;
}

/** From zero, and never so close that idleness looks like noise. */
const peak = (readings, keys) => [0, Math.max(4, ...readings.flatMap((one) => keys.map((key) => one[key] ?? 0)))];

function Replicas({ replicas }) {
  if (!replicas.length) return html`<${Failure} error=${{ message: "No expert replica is known: nothing can be generated." }} />`;
  return html`<section class="panel"><h2>Replicas</h2><div class="scroll"><table class="stacked"><thead><tr><th scope="col">Replica</th><th scope="col" class="num">Running</th><th scope="col" class="num">Waiting</th><th scope="col">Slots</th><th scope="col">Adapters</th><th scope="col">KV cache</th></tr></thead>
    <tbody>${replicas.map((replica) => html`<tr key=${replica.id}><th scope="row">${replica.id} <span class=${`badge ${STATES[replica.state] ?? ""}`}>${replica.state}</span></th>
      <td class="num" data-label="Running">${replica.load.running}</td><td class="num" data-label="Waiting">${replica.load.waiting}</td>
      <td data-label="Slots">${replica.num_slots !== null && html`<meter min="0" max=${replica.num_slots} value=${replica.resident.length} aria-label="Slots taken"></meter> ${replica.resident.length} of ${replica.num_slots}`}</td>
      <td data-label="Adapters">${bytes(replica.resident_bytes)}</td><td data-label="KV cache">${percent(replica.kv_usage)}</td></tr>`)}</tbody></table></div></section>`;
}
