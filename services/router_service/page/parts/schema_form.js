// A form made of a JSON schema: whatever the API can be asked for can be asked for here, by the API's own words.
import { send } from "../api.js";
import { html, useId, useState } from "../html.js";
import { useAction } from "../loading.js";
import { formOf, resolved, valuesOf } from "../schema.js";
import { Failure } from "./notice.js";

const title = (name) => name.replaceAll("_", " ");

/** Fields for the properties of `schema`; `value` holds only what was entered, all else keeps the API's defaults. */
export function Fields({ schema, api, value, onChange, files, leaveOut = [] }) {
  const required = new Set(schema.required ?? []);
  const set = (name) => (entered) => {
    const next = { ...value };
    if (entered === undefined) delete next[name];
    else next[name] = entered;
    onChange(next);
  };
  const names = Object.keys(schema.properties).filter((name) => !leaveOut.includes(name));
  const fields = names.map((name) => [name, resolved(schema.properties[name], api)]).filter(([, field]) => formOf(field, api) !== "fixed");
  fields.sort(([a], [b]) => required.has(b) - required.has(a));
  return html`<div class="fields">${fields.map(([name, field]) => html`<${Field} key=${name} name=${name} schema=${field} api=${api} value=${value?.[name]} onChange=${set(name)} isRequired=${required.has(name)} files=${files} />`)}</div>`;
}

function Field({ name, schema, api, value, onChange, isRequired, files }) {
  const id = useId();
  const form = formOf(schema, api);
  const own = { id, label: title(name), schema, api, value, onChange, isRequired, files };
  if (form === "fields") {
    return html`<details class="nested"><summary>${title(name)}</summary>${schema.description && html`<p class="quiet">${schema.description}</p>`}
      <${Fields} schema=${schema} api=${api} value=${value ?? {}} files=${files} onChange=${(entered) => onChange(Object.keys(entered).length ? entered : undefined)} /></details>`;
  }
  if (form === "choice") return html`<${Choice} name=${name} ...${own} />`;
  const Input = INPUTS[form];
  const help = schema.description && html`<p class="help" id=${`${id}-help`}>${schema.description}</p>`;
  if (form === "check") return html`<div class="field check"><${Input} ...${own} /><label for=${id}>${title(name)}</label>${help}</div>`;
  return html`<div class=${`field${WIDE.has(form) ? " wide-field" : ""}`}><label for=${id}>${title(name)}${isRequired && html` <span class="required" title="required">*</span>`}</label><${Input} ...${own} />${help}</div>`;
}

const WIDE = new Set(["map", "json", "long text", "files"]);
const shown = (value) => (value === undefined || value === null || value === "" ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));
const aids = (id, schema, isRequired) => ({ id, required: isRequired, "aria-describedby": schema.description ? `${id}-help` : null });

const INPUTS = {
  text: ({ id, schema, value, onChange, isRequired }) => html`<input type="text" ...${aids(id, schema, isRequired)} placeholder=${shown(schema.default)} maxlength=${schema.maxLength} value=${value ?? ""} onInput=${(event) => onChange(event.target.value || undefined)} />`,
  "long text": ({ id, schema, value, onChange, isRequired }) => html`<textarea rows="3" ...${aids(id, schema, isRequired)} maxlength=${schema.maxLength} value=${value ?? ""} onInput=${(event) => onChange(event.target.value || undefined)}></textarea>`,
  number: ({ id, schema, value, onChange, isRequired }) => html`<input type="number" ...${aids(id, schema, isRequired)} step=${schema.type === "integer" ? 1 : "any"} min=${schema.minimum ?? schema.exclusiveMinimum} max=${schema.maximum ?? schema.exclusiveMaximum}
    placeholder=${shown(schema.default)} value=${value ?? ""} onInput=${(event) => onChange(event.target.value === "" ? undefined : Number(event.target.value))} />`,
  check: ({ id, schema, value, onChange }) => html`<input type="checkbox" ...${aids(id, schema, false)} checked=${value ?? schema.default ?? false} onChange=${(event) => onChange(event.target.checked === (schema.default ?? false) ? undefined : event.target.checked)} />`,
  select: ({ id, schema, value, onChange, isRequired }) => html`<select ...${aids(id, schema, isRequired)} value=${value ?? ""} onChange=${(event) => onChange(event.target.value || undefined)}>
    <option value="">${isRequired ? "choose…" : `default${shown(schema.default) ? `: ${shown(schema.default)}` : ""}`}</option>${schema.enum.map((choice) => html`<option key=${choice}>${choice}</option>`)}</select>`,
  file: FileChoice,
  files: ({ id, label, schema, value, onChange, files }) => html`<div id=${id} class="row">${(value ?? []).map((file, index) => html`<${FileChoice} key=${index} id=${`${id}-${index}`} name=${`${label} ${index + 1}`} schema=${schema} value=${file} files=${files} onChange=${(entered) => onChange(shortened(value.map((before, at) => (at === index ? entered : before))))} />`)}
    <${FileChoice} key="new" id=${`${id}-new`} name=${`Another of ${label}`} schema=${schema} files=${files} onChange=${(entered) => entered && onChange([...(value ?? []), entered])} /></div>`,
  checks: ({ id, schema, api, value, onChange }) => html`<div id=${id} class="row">${resolved(schema.items, api).enum.map((choice) => html`<label key=${choice}><input type="checkbox" checked=${value?.includes(choice)} onChange=${(event) => onChange(shortened(event.target.checked ? [...(value ?? []), choice] : value.filter((other) => other !== choice)))} /> ${choice}</label>`)}</div>`,
  list: ListInput,
  map: MapInput,
  json: JsonInput,
};

const shortened = (items) => {
  const left = items.filter((item) => item !== undefined);
  return left.length ? left : undefined;
};

/** Values with commas between them. */
function ListInput({ id, schema, api, value, onChange, isRequired }) {
  const isNumber = ["number", "integer"].includes(resolved(schema.items, api).type);
  const [text, setText] = useState((value ?? []).join(", "));
  const read = (event) => {
    setText(event.target.value);
    const parts = event.target.value.split(",").map((part) => part.trim()).filter(Boolean);
    onChange(parts.length ? parts.map((part) => (isNumber && !Number.isNaN(Number(part)) ? Number(part) : part)) : undefined);
  };
  return html`<input type="text" ...${aids(id, schema, isRequired)} placeholder=${(schema.default ?? []).join(", ") || "a, b, …"} value=${text} onInput=${read} />`;
}

/** Rows of a name and a value. */
function MapInput({ id, label, schema, api, value, onChange, files }) {
  const [rows, setRows] = useState(() => [...Object.entries(value ?? {}), ["", undefined]]);
  const isFile = formOf(resolved(valuesOf(schema), api), api) === "file";
  const change = (index, row) => {
    const next = rows.map((before, at) => (at === index ? row : before));
    if (next.at(-1)[0] && next.at(-1)[1]) next.push(["", undefined]);
    setRows(next);
    const entered = Object.fromEntries(next.filter(([name, item]) => name && item));
    onChange(Object.keys(entered).length ? entered : undefined);
  };
  return html`<div id=${id}>${rows.map(([name, item], index) => html`<div class="row" key=${index}>
    <input type="text" aria-label=${`${label}: name`} placeholder="name" value=${name} onInput=${(event) => change(index, [event.target.value, item])} />
    ${isFile ? html`<${FileChoice} id=${`${id}-${index}`} name=${`File of ${name || "a name"}`} schema=${{}} value=${item} files=${files} onChange=${(entered) => change(index, [name, entered])} />`
      : html`<input type="text" aria-label=${`${label}: value`} value=${item ?? ""} onInput=${(event) => change(index, [name, event.target.value])} />`}
  </div>`)}</div>`;
}

/** What no other input can hold, as JSON. */
function JsonInput({ id, schema, value, onChange, isRequired }) {
  const [text, setText] = useState(value === undefined ? "" : JSON.stringify(value));
  const [isBroken, setBroken] = useState(false);
  const read = (event) => {
    setText(event.target.value);
    try {
      onChange(event.target.value.trim() ? JSON.parse(event.target.value) : undefined);
      setBroken(false);
    } catch {
      setBroken(true);
    }
  };
  return html`<textarea rows="2" ...${aids(id, schema, isRequired)} aria-invalid=${isBroken} placeholder=${shown(schema.default) || "JSON"} value=${text} onInput=${read}></textarea>${isBroken && html`<p class="help required">This is not JSON yet.</p>`}`;
}

/** A file that was uploaded before, or one that is uploaded now; `name` where no label stands beside it. */
function FileChoice({ id, name, schema, value, onChange, files, isRequired }) {
  const upload = useAction(async (file) => {
    const made = await send("/files", { purpose: "fine-tune", file });
    await files.again();
    return made.id;
  });
  const picked = async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    const made = await upload.run(file);
    if (made) onChange(made);
  };
  const known = files.value ?? [];
  return html`<span class="row file-choice"><select ...${aids(id, schema, isRequired && !value)} aria-label=${name} value=${value ?? ""} onChange=${(event) => onChange(event.target.value || undefined)}>
      <option value="">${known.length ? "choose a file…" : "no file was uploaded yet"}</option>
      ${value && !known.some((file) => file.id === value) && html`<option value=${value}>${value}</option>`}
      ${known.map((file) => html`<option key=${file.id} value=${file.id}>${file.filename}, ${file.id.slice(5, 11)}</option>`)}</select>
    <label class="button small">${upload.isRunning ? "Uploading…" : "Upload"}<input type="file" class="sr-only" onChange=${picked} /></label></span>
    <${Failure} error=${upload.error} />`;
}

/** One of several forms, told apart by a field. */
function Choice({ id, name, schema, api, value, onChange, files }) {
  const by = schema.discriminator.propertyName;
  const kinds = Object.keys(schema.discriminator.mapping);
  const chosen = value?.[by] ?? schema.default?.[by] ?? kinds[0];
  const own = resolved({ $ref: schema.discriminator.mapping[chosen] }, api);
  return html`<fieldset class="nested"><legend>${title(name)}</legend><label for=${id}>${title(by)} <select id=${id} value=${chosen} onChange=${(event) => onChange({ [by]: event.target.value })}>${kinds.map((kind) => html`<option key=${kind}>${kind}</option>`)}</select></label>
    <${Fields} schema=${own} api=${api} value=${value ?? {}} files=${files} leaveOut=${[by]} onChange=${(entered) => onChange({ ...entered, [by]: chosen })} /></fieldset>`;
}
