// Joins the sheet, the endpoints and the views.

import * as api from "./api.js";
import { cardOf } from "./card.js";
import { byId, element } from "./dom.js";
import * as key from "./key.js";
import { Pad } from "./pad.js";
import { copy, snippets } from "./snippets.js";
import * as view from "./view.js";

const PAUSE_MS = 60; // from a change to its request; one request is under way at a time
const EXAMPLES = [
  ...Array.from({ length: 10 }, (_, digit) => [`mnist-${digit}.png`, `${digit}`]),
  ["mnist-unsure.png", "9 that is hard to read"],
  ["mnist-number.png", "number 1492"],
];
const defaultModel = document.documentElement.dataset.model;

let mode = "predict";
let timer = 0;
let underWay = null; // the AbortController of the request
let isStale = false; // the content has changed since the request under way was made
let turn = 0; // of the content; an answer to an earlier one is not shown
let sent = null; // the request behind what is shown
let heat = false;
let language = "curl";
let sources = null;
let versions = new Map();

const pad = new Pad(byId("pad"), changed);

const chosen = () => {
  const [model, version] = [byId("model").value, byId("version").value];
  return { model: model === defaultModel ? "" : model, version };
};

function changed(isNew) {
  byId("undo").disabled = !pad.history.length;
  byId("clear").disabled = pad.isEmpty;
  byId("invite").hidden = !pad.isEmpty;
  if (isNew) {
    turn++;
    underWay?.abort();
    byId("boxes").replaceChildren();
  }
  isStale = true;
  if (pad.isEmpty) showNothing();
  else schedule();
}

function showNothing() {
  clearTimeout(timer);
  timer = 0;
  isStale = false;
  sent = null;
  view.showNothing();
  view.showEvidence(null);
  byId("heat").disabled = true;
  showSnippet();
}

function schedule() {
  if (!underWay && !timer) timer = setTimeout(ask, PAUSE_MS);
}

async function ask() {
  timer = 0;
  isStale = false;
  const mine = turn;
  const controller = (underWay = new AbortController());
  const asked = mode;
  try {
    const request = api.request(asked, ...(await pad.file()), chosen());
    if (mine === turn) await show(asked, request, mine, controller.signal);
  } catch (error) {
    if (mine === turn && error.name !== "AbortError") view.showError(error.message);
  } finally {
    underWay = null;
    if (isStale && !pad.isEmpty) schedule();
  }
}

async function show(asked, request, mine, signal) {
  sent = request;
  showSnippet();
  const answer = await api.send(request, signal);
  if (mine !== turn) return;
  byId("seen").hidden = asked === "read";
  if (asked === "read") {
    byId("heat").disabled = true;
    view.showReading(answer, pad);
    return;
  }
  view.showPrediction(answer);
  const pixels = await view.pixelsOf(answer);
  if (mine !== turn) return;
  byId("heat").disabled = !pixels;
  if (!heat || !pixels) return;
  const found = await api.evidence(pixels, answer.predictions[0], chosen(), answer.times.model, signal);
  if (mine === turn) view.showEvidence(found);
}

function again() {
  turn++;
  underWay?.abort();
  isStale = true;
  if (pad.isEmpty) showNothing();
  else schedule();
}

async function open(blob, name) {
  try {
    await pad.open(blob, name);
  } catch (error) {
    view.showError(error.message);
  }
}

// The sheet and its tools
byId("undo").addEventListener("click", () => pad.undo());
byId("clear").addEventListener("click", () => pad.clear());
byId("pen").addEventListener("input", (event) => (pad.pen = Number(event.target.value)));
byId("choose").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file, file.name);
  event.target.value = "";
});
addEventListener("keydown", (event) => {
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) {
    event.preventDefault();
    pad.undo();
  }
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) open(file, file.name);
});
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
byId("mode").addEventListener("change", (event) => setMode(event.target.value));
byId("as-number").addEventListener("click", () => setMode("read"));

function setMode(value) {
  mode = value;
  byId("mode").querySelector(`[value=${value}]`).checked = true;
  byId("seen").hidden = value === "read";
  if (value === "read") view.showEvidence(null);
  again();
}

for (const [file, name] of EXAMPLES) {
  const image = element("img", { src: `playground/${file}`, alt: "", height: "28" });
  const button = element("button", { type: "button", "aria-label": `Test image: ${name}` }, image);
  button.addEventListener("click", async () => {
    const answer = await fetch(`playground/${file}`);
    if (file === "mnist-number.png") setMode("read");
    else if (mode === "read") setMode("predict");
    await open(await answer.blob(), file);
  });
  byId("examples").append(button);
}

// What counted
byId("heat").addEventListener("click", () => {
  heat = !heat;
  byId("heat").setAttribute("aria-pressed", String(heat));
  if (heat) again();
  else view.showEvidence(null);
});

// The same call
const tabs = [...byId("tabs").children];
const languageOf = (tab) => tab.id.replace("tab-", "");

tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    next.focus();
    selectTab(next);
  });
});

function selectTab(tab) {
  language = languageOf(tab);
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  byId("snippet").setAttribute("aria-labelledby", tab.id);
  byId("copied").textContent = "";
  showSource();
}

async function showSnippet() {
  const request = sent;
  byId("copied").textContent = "";
  const made = request && (await snippets(request, key.isUsed()));
  if (request !== sent) return;
  sources = made;
  showSource();
}

function showSource() {
  byId("copy").disabled = !sources;
  byId("save").hidden = !sources || sources.isSmall;
  byId("source").textContent = sources ? sources.shown[language] : "Draw something, and the request that was sent appears here.";
  if (!byId("save").hidden) {
    URL.revokeObjectURL(byId("save").href);
    byId("save").href = URL.createObjectURL(sent.file);
    byId("save").download = sent.name;
  }
}

byId("copy").addEventListener("click", async () => {
  try {
    await copy(sources.sources[language]);
    byId("copied").textContent = sources.isSmall ? "Copied, with the whole picture in it." : "Copied; it reads the picture from the folder it runs in.";
  } catch (error) {
    byId("copied").textContent = error.message;
  }
});

// The model
byId("model").addEventListener("change", () => {
  listVersions();
  showCard();
  again();
});
byId("version").addEventListener("change", () => {
  showCard();
  again();
});
byId("picker").addEventListener("submit", (event) => event.preventDefault());

function listVersions() {
  const known = versions.get(byId("model").value) ?? [];
  const option = (version) => element("option", { value: version }, version);
  byId("version").replaceChildren(element("option", { value: "" }, `newest${known.length ? ` (${known[0]})` : ""}`), ...known.map(option));
}

async function showCard() {
  const [model, version] = [byId("model").value, byId("version").value];
  const mine = `${model}/${version}`;
  byId("card").dataset.of = mine;
  let parts;
  try {
    const shown = version || versions.get(model)?.[0] || "";
    parts = cardOf(await api.card(model, version), model, shown);
  } catch (error) {
    parts = [element("p", { class: "quiet" }, error.message)];
  }
  if (byId("card").dataset.of === mine) byId("card-body").replaceChildren(...parts);
}

async function start() {
  view.showNothing();
  try {
    versions = await api.models();
  } catch (error) {
    // Without a list there is the default model, which may still answer.
    if (!error.isForbidden) view.showError(error.message);
  }
  const names = [...new Set([defaultModel, ...versions.keys()])];
  byId("model").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  listVersions();
  await showCard();
  document.documentElement.dataset.ready = "true";
}

key.mount(() => {
  start();
  again();
});
start();
