// How a release is, in a word.
import { html } from "../html.js";

const LOOKS = { active: "good", staged: "busy" };

export const ReleaseStatus = ({ release }) => html`<span class=${`badge ${LOOKS[release.status] ?? ""}`}>${release.status}</span>`;
