// One operation: its parameters, bodies and answers, and a form that sends it.

import { element } from "../playground/dom.js";
import { fetchWithKey, isUsed } from "../playground/key.js";
import { facts, opened, resolved, sample, text } from "./schema.js";

export function operation(method, path, described) {
  const parameters = described.parameters.map(resolved);
  const body = element("div", { class: "body" }, ...text(described.description));
  if (parameters.length) {
    body.append(element("h3", {}, "Parameters"), facts(parameters.map((each) => [
      each.name, `${each.in}${each.required ? ", required" : ""}`, each.schema, each.description,
    ])));
  }
  const content = described.requestBody?.content ?? {};
  if (described.requestBody) {
    body.append(element("h3", {}, described.requestBody.required ? "Body" : "Body, optional"), ...media(content));
  }
  body.append(
    element("h3", {}, "Answers"),
    element("div", { class: "answers" }, ...Object.entries(described.responses).map(answer)),
    element("h3", {}, "Try it"),
    form(method, path, parameters, content),
  );
  return body;
}

// Content types of one schema stand together.
function media(content) {
  const types = new Map();
  for (const [type, { schema }] of Object.entries(content)) {
    const key = JSON.stringify(schema);
    types.set(key, [...(types.get(key) ?? []), type]);
  }
  return [...types].map(([schema, names]) =>
    element("div", {}, element("h4", {}, element("code", {}, names.join(", "))), opened(JSON.parse(schema))));
}

function answer([status, response]) {
  const { description, headers = {}, content = {} } = resolved(response);
  const failed = Number(status) >= 400 ? " failed" : "";
  return element("details", {},
    element("summary", {}, element("span", { class: `status${failed}` }, status), ` ${description}`),
    facts(Object.entries(headers).map(([name, header]) => {
      const { schema, required, description: words } = resolved(header);
      return [name, required ? "header" : "header, optional", schema, words];
    })),
    ...media(content));
}

const labelled = (name, input) => element("label", {}, name, input);
const quoted = (value) => `'${value.replaceAll("'", `'\\''`)}'`;

function form(method, path, parameters, content) {
  // A page may not set Accept-Encoding; the browser does.
  const fields = parameters.filter(({ name }) => name !== "accept-encoding").map((each) => {
    const input = element("input", { required: each.required, autocomplete: "off" });
    if (each.name === "model" && each.in === "path") input.value = "mnist";
    return { ...each, input };
  });
  const type = element("select", {}, ...Object.keys(content).map((kind) => element("option", {}, kind)));
  // Of all types, JSON alone has an example to send.
  if (content["application/json"]) type.value = "application/json";
  const file = element("input", { type: "file" });
  const typed = element("textarea", { spellcheck: "false" });
  const source = element("div", {});
  const curl = element("pre", { tabindex: "0", "aria-label": "The call as curl" });
  const result = element("output", {});
  const isText = () => type.value === "application/json";

  // The request as it is in the form now.
  const request = () => {
    let target = path;
    const query = new URLSearchParams();
    const headers = {};
    for (const { name, in: place, input } of fields) {
      if (place === "path") target = target.replace(`{${name}}`, encodeURIComponent(input.value));
      else if (input.value && place === "query") query.append(name, input.value);
      else if (input.value) headers[name] = input.value;
    }
    const url = new URL(target.slice(1) + (query.size ? `?${query}` : ""), document.baseURI).href;
    const words = [];
    let body;
    if (type.value === "multipart/form-data") {
      body = new FormData();
      if (file.files[0]) body.append("image", file.files[0]);
      words.push(`-F image=@${quoted(file.files[0]?.name ?? "FILE")}`);
    } else if (type.value && isText() ? typed.value : type.value) {
      headers["content-type"] = type.value;
      body = isText() ? typed.value : file.files[0];
      words.push(isText() ? `--data-raw ${quoted(body)}` : `--data-binary @${quoted(file.files[0]?.name ?? "FILE")}`);
    }
    const named = Object.entries(headers).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`);
    if (isUsed()) named.push('-H "authorization: Bearer $MNIST_KEY"');
    const verb = method === "HEAD" ? "-I" : `-X ${method}`;
    return { url, options: { method, headers, body }, curl: ["curl", verb, quoted(url), ...named, ...words].join(" ") };
  };
  const show = () => { curl.textContent = request().curl; };
  const choose = () => {
    const kind = content[type.value];
    if (!kind) return;
    if (isText() && !typed.value) typed.value = JSON.stringify(sample(kind.schema));
    source.replaceChildren(labelled(isText() ? "Body" : "File", isText() ? typed : file));
  };
  choose();

  const send = element("button", { class: "main" }, "Send");
  const shown = element("form", { class: "try" },
    element("div", { class: "fields" }, ...fields.map(({ name, in: place, input }) => labelled(`${name} (${place})`, input)),
      ...(type.options.length ? [labelled("content-type", type)] : [])),
    source, curl, element("div", {}, send), result);
  shown.addEventListener("input", show);
  addEventListener("key", show);
  type.addEventListener("change", () => { choose(); show(); });
  shown.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { url, options } = request();
    result.replaceChildren(element("p", { class: "quiet" }, "Waiting for the answer."));
    result.replaceChildren(...(await answered(url, options)));
  });
  show();
  return shown;
}

async function answered(url, options) {
  const began = performance.now();
  let response, content;
  try {
    response = await fetchWithKey(url, options);
    content = await response.text();
  } catch {
    return [element("p", { class: "status failed" }, "The server does not answer.")];
  }
  const took = `${(performance.now() - began).toFixed(1)} ms`;
  if (response.headers.get("content-type") === "application/json" && content.length < 100_000) {
    content = JSON.stringify(JSON.parse(content), null, 1);
  }
  const headers = [...response.headers].map((header) => header.join(": ")).join("\n");
  return [
    element("p", { class: `status${response.ok ? "" : " failed"}` }, `${response.status} ${response.statusText} in ${took}`),
    element("pre", { tabindex: "0", "aria-label": "Headers of the answer" }, headers),
    ...(content ? [element("pre", { tabindex: "0", "aria-label": "Body of the answer" }, content.slice(0, 100_000))] : []),
  ];
}
