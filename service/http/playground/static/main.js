// Joins the sheet, the endpoints and the views.

import * as api from "./api.js";
import { cardOf } from "./card.js";
import { byId, element } from "./dom.js";
import * as key from "./key.js";
import { Pad } from "./pad.js";
import { copy, snippets } from "./snippets.js";
import * as view from "./view.js";

const PAUSE_MS = 60; // from a change to its request; one request is under way at a time
const LATE_MS = 1000; // until the page says that it waits for an answer
const LONGEST_MS = 30_000; // for an answer
const LONGEST_WAIT_MS = 10_000; // between attempts, unless the server names a longer time
const DIGITS = "0123456789";
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
let failures = 0; // attempts in a row without an answer
let pausedUntil = 0; // by performance.now()
let wasAway = false; // since the last answer
let answered = ""; // the model and the version of the last answer
let hasLabels = false; // whether the chosen model has classes other than digits
let startAgain = 0;

const pad = new Pad(byId("pad"), changed, (isDown) => (byId("pen-state").textContent = isDown ? "Pen down" : "Pen up"));

const chosen = () => {
  const [model, version] = [byId("model").value, byId("version").value];
  return { model: model === defaultModel ? "" : model, version };
};

function changed(isNew) {
  for (const [id, isDisabled] of [["undo", !pad.history.length], ["clear", pad.isEmpty]]) {
    // A button that is disabled would take the focus with it.
    if (isDisabled && document.activeElement === byId(id)) byId("pad").focus({ preventScroll: true });
    byId(id).disabled = isDisabled;
  }
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
  byId("heat").disabled = true;
  showSnippet();
}

function schedule() {
  if (!underWay && !timer) timer = setTimeout(ask, Math.max(PAUSE_MS, pausedUntil - performance.now()));
}

// How long to wait after an error that may pass, longer each time in a row.
const pause = ({ wait }) => Math.max(wait, Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures++));

function showError(error) {
  view.showError(error.message, error.wait ? "The page keeps trying." : "");
  byId("heat").disabled = true;
}

async function ask() {
  timer = 0;
  isStale = false;
  const mine = turn;
  const controller = (underWay = new AbortController());
  const asked = mode;
  const late = setTimeout(() => controller.abort(api.noAnswer("The server does not answer in time.")), LONGEST_MS);
  try {
    const request = api.request(asked, ...(await pad.file()), chosen());
    if (mine === turn) await show(asked, request, mine, controller.signal);
  } catch (error) {
    if (mine === turn && error.name !== "AbortError") {
      showError(error);
      if (error.status === 404 && answered) {
        answered = "";
        list(); // the model or the version has gone
      }
      if (error.wait) {
        wasAway ||= error.status !== 429;
        pausedUntil = performance.now() + pause(error);
        isStale = true;
      }
    }
  } finally {
    clearTimeout(late);
    underWay = null;
    if (isStale && !pad.isEmpty) schedule();
  }
}

async function show(asked, request, mine, signal) {
  sent = request;
  showSnippet();
  const late = setTimeout(view.showWaiting, LATE_MS);
  const answer = await api.send(request, signal).finally(() => clearTimeout(late));
  note(answer);
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
  try {
    const found = await api.evidence(pixels, answer.predictions[0], chosen(), answer.times.model, signal);
    if (mine === turn) view.showEvidence(found);
  } catch (error) {
    // The answer itself stays: limits count every copy as a picture.
    if (mine === turn && error instanceof api.Refused) view.showEvidence(null, error.message);
    else throw error;
  }
}

// The server may have been restarted, or may have loaded another version.
function note({ model_name: model, model_version: version }) {
  const was = answered;
  answered = `${model}/${version}`;
  const known = versions.get(model) ?? [];
  const isExpected = byId("version").value ? known.includes(version) : known[0] === version;
  if (wasAway || (answered !== was && !isExpected)) list();
  failures = 0;
  wasAway = false;
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
    turn++; // no answer to what is on the sheet may follow
    underWay?.abort();
    clearTimeout(timer);
    timer = 0;
    isStale = false;
    showError(error);
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
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && event.target.id !== "key") {
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
byId("as-number").addEventListener("click", () => {
  setMode("read");
  byId("mode").querySelector(":checked").focus(); // this button goes
});

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
    try {
      const blob = await api.file(`playground/${file}`);
      if (file === "mnist-number.png" && !hasLabels) setMode("read");
      else if (mode === "read") setMode("predict");
      await open(blob, file);
    } catch (error) {
      showError(error);
    }
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

const option = (value, text = value) => element("option", { value }, text);

// The models and their versions. What was chosen stays so, loaded or not.
function listModels(was = "") {
  const names = versions.size ? [...versions.keys()] : [defaultModel];
  const options = names.map((name) => option(name));
  if (was && !names.includes(was)) options.push(option(was, `${was} (not loaded)`));
  byId("model").replaceChildren(...options);
  byId("model").value = was || (names.includes(defaultModel) ? defaultModel : names[0]);
}

function listVersions(was = "") {
  const known = versions.get(byId("model").value) ?? [];
  const options = [option("", `newest${known.length ? ` (${known[0]})` : ""}`), ...known.map((version) => option(version))];
  if (was && !known.includes(was)) options.push(option(was, `${was} (not loaded)`));
  byId("version").replaceChildren(...options);
  byId("version").value = was;
}

async function showCard() {
  const [model, version] = [byId("model").value, byId("version").value];
  const mine = `${model}/${version}`;
  byId("card").dataset.of = mine;
  let parts;
  let labels = null; // not known
  try {
    const shown = version || versions.get(model)?.[0] || "";
    const card = await api.card(model, version);
    labels = card.labels ?? [];
    parts = cardOf(card, model, shown);
  } catch (error) {
    parts = [element("p", { class: "quiet" }, error.message)];
    if (error.status === 429) setTimeout(() => byId("card").dataset.of === mine && showCard(), error.wait);
  }
  if (byId("card").dataset.of !== mine) return;
  byId("card-body").replaceChildren(...parts);
  if (!labels) return;
  hasLabels = labels.length > 0 && labels.join() !== [...DIGITS].join();
  view.setLabelled(hasLabels);
  if (hasLabels && mode === "read") setMode("predict");
  if (byId("verdict").dataset.state === "empty") view.showNothing();
}

// Ask what is loaded, and show it. Returns the error, or null.
async function list() {
  const known = await api.models().catch((error) => error);
  if (known instanceof Map) {
    const was = versions.size ? byId("model").value : "";
    versions = known;
    listModels(was);
    listVersions(byId("version").value);
  } else if (!byId("model").value) {
    listModels(); // the default model may answer, without a list
  }
  await showCard();
  return known instanceof Map ? null : known;
}

async function start() {
  clearTimeout(startAgain);
  const error = await list();
  if (error?.wait) startAgain = setTimeout(start, pause(error));
  if (!error) failures = 0;
  if (pad.isEmpty) {
    if (error && !error.isForbidden) showError(error);
    else showNothing();
  }
  document.documentElement.dataset.ready = "true";
}

key.mount(() => {
  start();
  again();
});
view.showNothing();
start();
