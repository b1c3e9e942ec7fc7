// How a job is, in a word and as a bar.
import { duration, percent } from "../format.js";
import { html } from "../html.js";

const LOOKS = { succeeded: "good", failed: "bad", cancelled: "", queued: "", paused: "warn", validating: "busy", running: "busy" };
export const FINAL = new Set(["succeeded", "failed", "cancelled"]);

export function JobStatus({ job }) {
  const asked = job.cancel_requested ? ", to be cancelled" : job.pause_requested ? ", to be paused" : "";
  return html`<span class=${`badge ${LOOKS[job.status] ?? ""}`}>${job.status}${FINAL.has(job.status) ? "" : asked}</span>`;
}

/** Steps done of all; a job that is at something without steps says what. */
export function JobProgress({ job }) {
  const { step, total_steps: total, phase, seconds_left: left } = job.progress;
  if (FINAL.has(job.status) && !total) return null;
  const text = [phase && !FINAL.has(job.status) ? phase : null, total ? `${step} of ${total}` : null, left && !FINAL.has(job.status) ? `${duration(left)} left` : null].filter(Boolean);
  return html`<div class="progress">
    ${total ? html`<progress max=${total} value=${step} aria-label="Steps done">${percent(step / total)}</progress>` : null}
    <span class="quiet">${text.join(", ")}</span>
  </div>`;
}
