// Jobs: what was and is done, one of them closely, or a new one.
import { list } from "../api.js";
import { ago } from "../format.js";
import { html } from "../html.js";
import { useLoaded } from "../loading.js";
import { Empty, Loaded } from "../parts/notice.js";
import { JobProgress, JobStatus } from "../parts/job_status.js";
import { linkTo, refine } from "../route.js";
import { JobDetail } from "./job.js";
import { NewJob } from "./new_job.js";

const EVERY_MS = 2000;
const STATUSES = ["queued", "validating", "running", "paused", "succeeded", "failed", "cancelled"];

export function Jobs({ route }) {
  const [, id] = route.parts;
  if (id === "new") return html`<${NewJob} query=${route.query} />`;
  return id ? html`<${JobDetail} key=${id} id=${id} />` : html`<${JobList} query=${route.query} />`;
}

function JobList({ query }) {
  const status = query.get("status") ?? "";
  const loaded = useLoaded((signal) => list(`/jobs${status ? `?status=${status}` : ""}`, { most: 200, signal }), [status], { everyMs: EVERY_MS });
  return html`<div class="head-row"><h1>Jobs</h1><span class="push"></span>
      <label>Status <select value=${status} onChange=${(event) => refine({ status: event.target.value })}>
        <option value="">all</option>${STATUSES.map((name) => html`<option key=${name}>${name}</option>`)}</select></label>
      <a class="button" href="#/jobs/new">New job</a></div>
    <${Loaded} loaded=${loaded}>${(jobs) => jobs.length
      ? html`<div class="panel scroll"><table class="jobs"><thead><tr><th scope="col">Job</th><th scope="col">Status</th><th scope="col" class="wide">Progress</th><th scope="col" class="wide">Submitted</th></tr></thead>
          <tbody>${jobs.map((job) => html`<${JobRow} key=${job.id} job=${job} />`)}</tbody></table></div>`
      : html`<${Empty} title=${status ? `No job is ${status}` : "No jobs yet"}>
          <p>A job trains an expert, makes a router, evaluates a release, looks for gaps. <a href="#/jobs/new">Submit one</a>, or from a terminal: <code>adaptive-moe jobs submit</code>.</p><//>`}
    <//>`;
}

/** What a job is about, in its own words. */
export const subject = (job) => job.spec.name ?? job.spec.gap ?? job.spec.release ?? job.spec.setting ?? job.spec.router ?? "";

function JobRow({ job }) {
  return html`<tr>
    <th scope="row"><a href=${linkTo(["jobs", job.id])}>${job.kind.replaceAll("_", " ")}</a> ${subject(job)}<br /><code class="quiet">${job.id.slice(0, 12)}</code></th>
    <td><${JobStatus} job=${job} /><div class="narrow"><${JobProgress} job=${job} /></div></td>
    <td class="wide"><${JobProgress} job=${job} /></td>
    <td class="quiet wide">${ago(job.created_at)}</td>
  </tr>`;
}
