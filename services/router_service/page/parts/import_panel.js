// What comes from elsewhere: a LoRA adapter as an expert, or a whole release.
import { send } from "../api.js";
import { html, useState } from "../html.js";
import { useAction } from "../loading.js";
import { Drop } from "./drop.js";
import { Failure } from "./notice.js";

export function ImportPanel({ onDone }) {
  const [files, setFiles] = useState([]);
  const [done, setDone] = useState(null);
  const takeRelease = useAction(async (archive) => {
    const release = await send("/releases/import", { archive });
    setDone(`${release.id} is taken in, and staged.`);
    onDone();
  });
  const took = (dropped) => {
    setDone(null);
    const archive = dropped.find((file) => file.name.endsWith(".tar"));
    if (archive) takeRelease.run(archive);
    else setFiles([...files.filter((file) => !dropped.some((other) => other.name === file.name)), ...dropped]);
  };
  const finished = (told) => {
    setFiles([]);
    setDone(told);
    onDone();
  };
  return html`<section class="panel"><h2>Import</h2>
    <${Drop} label="Drop an adapter or a release here" hint="adapter_config.json and adapter_model.safetensors as PEFT saves them, with example texts (.jsonl) if it is to be routed to; or a release's .tar" accept=".json,.safetensors,.jsonl,.txt,.csv,.tar" onFiles=${took} isBusy=${takeRelease.isRunning} />
    <${Failure} error=${takeRelease.error} />
    ${done && html`<p class="notice" role="status">${done}</p>`}
    ${files.length > 0 && html`<${AdapterForm} files=${files} onDone=${finished} onCancel=${() => setFiles([])} />`}
  </section>`;
}

const isAdapter = (file) => /^adapter_(config\.json|model.*\.safetensors)$/.test(file.name);

function AdapterForm({ files, onDone, onCancel }) {
  const [fields, setFields] = useState({ name: "", domain: "", add_to_release: true, activate: false });
  const set = (name) => (event) => setFields({ ...fields, [name]: event.target.type === "checkbox" ? event.target.checked : event.target.value });
  const take = useAction(async () => {
    const expert = await send("/experts", { ...fields, activate: fields.activate && fields.add_to_release, files: files.filter(isAdapter), exemplars: files.find((file) => !isAdapter(file)) });
    onDone(`${expert.name} version ${expert.latest_version} is registered${expert.release ? `, in ${expert.release}` : ""}.`);
  });
  return html`<form class="import-form" onSubmit=${(event) => { event.preventDefault(); take.run(); }}>
    <ul>${files.map((file) => html`<li key=${file.name}><code>${file.name}</code> <span class="quiet">${isAdapter(file) ? "adapter" : "example texts"}</span></li>`)}</ul>
    <div class="fields"><div class="field"><label for="import-name">Name</label><input id="import-name" type="text" required pattern="[a-z0-9]([a-z0-9_\\-]*[a-z0-9])?" value=${fields.name} onInput=${set("name")} /></div>
      <div class="field"><label for="import-domain">Domain</label><input id="import-domain" type="text" value=${fields.domain} onInput=${set("domain")} /></div>
      <div class="field"><label><input type="checkbox" checked=${fields.add_to_release} onChange=${set("add_to_release")} /> Make a release with it</label>
      <label><input type="checkbox" checked=${fields.activate} disabled=${!fields.add_to_release} onChange=${set("activate")} /> Activate that</label></div></div>
    <${Failure} error=${take.error} />
    <div class="buttons"><button type="button" onClick=${onCancel}>Cancel</button><button class="primary" disabled=${take.isRunning}>${take.isRunning ? "A replica verifies it…" : "Import"}</button></div>
  </form>`;
}
