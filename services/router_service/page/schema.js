// JSON schemas as FastAPI writes them: what a form has to know of a field.

/** The API's own description, asked for once. */
let described = null;
export function apiSchema(read) {
  described ??= read().catch((error) => {
    described = null;
    throw error;
  });
  return described;
}

/** `schema` with its reference followed and "or null" taken off; {…, isOptional} says that null is possible. */
export function resolved(schema, api) {
  let found = schema;
  let isOptional = false;
  const told = {};
  for (;;) {
    for (const key of ["description", "default", "title"]) if (!(key in told) && key in found) told[key] = found[key];
    const choices = found.anyOf?.filter((choice) => choice.type !== "null");
    if (found.$ref) found = at(found.$ref, api);
    else if (found.allOf?.length === 1) [found] = found.allOf;
    else if (choices && choices.length < found.anyOf.length) [isOptional, found] = [true, choices.length === 1 ? choices[0] : { ...found, anyOf: choices }];
    else return { ...found, ...told, isOptional };
  }
}

const at = (reference, api) => reference.replace(/^#\//, "").split("/").reduce((place, name) => place[name], api);

/** The kinds of jobs that can be submitted: [{kind, schema, summary}]. */
export function jobKinds(api) {
  const body = api.paths["/jobs"].post.requestBody.content["application/json"].schema;
  const union = body.discriminator ? body : resolved(body, api);
  return Object.entries(union.discriminator.mapping).map(([kind, reference]) => {
    const schema = at(reference, api);
    return { kind, schema, summary: (schema.description ?? "").split("\n")[0] };
  });
}

const FILE = /^\^file-/;
export const isFile = (schema) => schema.type === "string" && FILE.test(schema.pattern ?? "");

/** What the values of a map must be. */
export const valuesOf = (schema) => Object.values(schema.patternProperties ?? {})[0] ?? (typeof schema.additionalProperties === "object" ? schema.additionalProperties : null);

/** How a field is entered. */
export function formOf(schema, api) {
  if ("const" in schema) return "fixed";
  if (schema.oneOf || (schema.anyOf && schema.discriminator)) return "choice";
  if (schema.enum) return "select";
  if (schema.type === "boolean") return "check";
  if (schema.type === "integer" || schema.type === "number") return "number";
  if (isFile(schema)) return "file";
  if (schema.type === "string") return (schema.maxLength ?? 0) > 400 ? "long text" : "text";
  if (schema.type === "array") {
    const items = schema.items && resolved(schema.items, api);
    if (items && isFile(items)) return "files";
    if (items?.enum) return "checks";
    return items && ["string", "number", "integer"].includes(items.type) ? "list" : "json";
  }
  if (schema.type === "object" && schema.properties) return "fields";
  const values = schema.type === "object" && valuesOf(schema);
  return values && ["file", "text"].includes(formOf(resolved(values, api), api)) ? "map" : "json";
}
