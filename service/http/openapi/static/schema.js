// Schemas as nested lists: their names are shown at once, their contents when they are opened.

import { element } from "../playground/dom.js";

let components = {};

export function use(document) {
  components = document.components;
}

// What a reference of the document refers to; anything else as it is.
export function resolved(node) {
  const path = node?.$ref?.split("/").slice(2);
  return path ? path.reduce((found, name) => found[name], components) : node;
}

const nameOf = (schema) => schema.$ref?.split("/").at(-1);

// Text of the document: paragraphs, with `code` in them.
export function text(source = "") {
  return source.split("\n\n").map((paragraph) =>
    element("p", {}, ...paragraph.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part))),
  );
}

// The type in a few words.
export function kind(schema) {
  const name = nameOf(schema);
  if (name) return name;
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) return schema.anyOf.map(kind).join(" | ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  if (schema.type === "object" && schema.additionalProperties?.constructor === Object) {
    return `object of ${kind(schema.additionalProperties)}`;
  }
  return [schema.type ?? "anything"].flat().join(" | ") + (schema.format ? ` (${schema.format})` : "");
}

const LIMITS = { minimum: "from", maximum: "to", minItems: "at least", maxItems: "at most", pattern: "matches", default: "default" };

const limits = (schema) =>
  Object.entries(LIMITS)
    .filter(([name]) => schema[name] !== undefined)
    .map(([name, word]) => `${word} ${schema[name]}`)
    .join(", ");

export function facts(entries) {
  return element("dl", { class: "facts" }, ...entries.map(([name, mark, schema, description]) =>
    element("div", { class: "fact" },
      element("dt", {}, name, mark ? element("small", {}, ` ${mark}`) : ""),
      element("dd", {},
        element("span", { class: "kind" }, [kind(schema), limits(schema)].filter(Boolean).join(", ")),
        ...text(description ?? schema.description),
        ...parts(schema).map(closed)))));
}

// The schemas that a schema's name or words do not show.
function parts(schema) {
  if (nameOf(schema)) return [schema];
  const inner = [...(schema.anyOf ?? []), schema.items, schema.additionalProperties, schema.properties && schema];
  return inner.filter((each) => each instanceof Object && (each.properties || parts(each).length));
}

function closed(schema) {
  const details = element("details", {}, element("summary", {}, nameOf(schema) ?? kind(schema)));
  details.addEventListener("toggle", () => details.append(opened(resolved(schema))), { once: true });
  return element("div", { class: "schema" }, details);
}

// A schema with its fields, or with its parts to open.
export function opened(schema) {
  if (nameOf(schema)) return closed(schema);
  const fields = Object.entries(schema.properties ?? {}).map(([name, field]) => [
    name, schema.required?.includes(name) ? "" : "optional", field,
  ]);
  return element("div", { class: "schema" },
    element("p", { class: "kind" }, [kind(schema), limits(schema)].filter(Boolean).join(", ")),
    ...text(schema.description),
    ...(fields.length ? [facts(fields)] : parts(schema).map(closed)));
}

// A value that fits, for people to begin with.
export function sample(schema, depth = 0) {
  if (schema.examples) return schema.examples[0];
  if (schema.$ref) return sample(resolved(schema), depth + 1);
  if (schema.anyOf) return sample(schema.anyOf[0], depth);
  if (schema.enum) return schema.enum[0];
  const type = [schema.type].flat()[0];
  if (type === "array") return Array.from({ length: schema.minItems ?? 0 }, () => sample(schema.items, depth + 1));
  if (type === "object") {
    const names = Object.keys(schema.properties ?? {}).filter((name) => schema.required?.includes(name));
    return Object.fromEntries(names.map((name) => [name, sample(schema.properties[name], depth + 1)]));
  }
  return { string: "", boolean: false, integer: schema.minimum ?? 0, number: 0 }[type] ?? null;
}
