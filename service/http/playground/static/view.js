// Shows answers: the verdict, the bars, the steps, the boxes and what counted.

import { byId, element, percent, svg } from "./dom.js";
import { HEIGHT, WIDTH } from "./pad.js";

const WORDS = {
  blank: "Nothing there",
  several_digits: "Several digits",
  not_a_digit: "Not a digit",
  unsure: "Not sure enough",
};
const STEPS = {
  picture: "the picture",
  ink: "ink on paper",
  closer: "a closer look",
  "ink, closer": "its ink",
  digit: "the digit",
  pixels: "the pixels",
};
const CLOSEST = "Closest:";
const WAITING = "Waiting for the server";
const QUIET_MS = 700; // until an answer that no longer changes is read aloud

const bars = Array.from({ length: 10 }, (_, digit) => {
  const fill = element("span", { class: "fill" });
  const value = element("span", { class: "value" });
  const spoken = element("span", { class: "unseen" });
  const item = element(
    "li",
    {},
    element("span", { "aria-hidden": "true" }, value),
    element("span", { class: "track", "aria-hidden": "true" }, fill),
    element("span", { class: "name", "aria-hidden": "true" }, String(digit)),
    spoken,
  );
  byId("bars").append(item);
  return { item, fill, value, spoken };
});

function showBars(prediction) {
  showLabels(null);
  // The set holds the right digit if there is one.
  const isDigit = prediction?.accepted !== false || prediction.reason === "unsure";
  const set = isDigit ? prediction?.prediction_set : undefined;
  bars.forEach(({ item, fill, value, spoken }, digit) => {
    const p = prediction?.probabilities[digit] ?? 0;
    fill.style.transform = `scaleY(${p})`;
    value.textContent = p >= 0.005 ? String(Math.round(100 * p)) : "";
    spoken.textContent = `${digit}: ${prediction ? percent(p) : "no answer"}`;
    item.classList.toggle("top", prediction?.digit === digit);
    item.classList.toggle("member", set?.includes(digit) ?? false);
  });
  byId("set").hidden = !set;
  byId("set").replaceChildren("Prediction set ", ...(set ?? []).map((digit) => element("b", {}, String(digit))));
  byId("entropy").textContent = prediction ? `${prediction.entropy_bits.toFixed(2)} bits` : "-";
}

// A model of other classes than digits names its most probable ones.
function showLabels(prediction) {
  byId("bars").hidden = Boolean(prediction);
  byId("labels").hidden = !prediction;
  if (!prediction) return;
  byId("set").hidden = true;
  byId("entropy").textContent = `${prediction.entropy_bits.toFixed(2)} bits`;
  // Objects list keys that look like numbers first, whatever the order in the answer.
  const isFirst = (label) => label === prediction.label;
  const labels = Object.entries(prediction.probabilities).sort(([a, p], [b, q]) => isFirst(b) - isFirst(a) || q - p);
  byId("labels").replaceChildren(
    ...labels.map(([label, p], i) => {
      const fill = element("span", { class: "fill" });
      fill.style.transform = `scaleX(${p})`;
      const track = element("span", { class: "track", "aria-hidden": "true" }, fill);
      return element("li", { class: i ? "" : "top" }, element("span", {}, label), element("span", {}, percent(p)), track);
    }),
  );
}

let announcement;
function announce(text) {
  clearTimeout(announcement);
  announcement = setTimeout(() => {
    // The same text again would be read again.
    if (byId("live").textContent !== text) byId("live").textContent = text;
  }, QUIET_MS);
}

const sentence = (text) => (/[.?!]$/.test(text) ? text : `${text}.`);

function verdict(state, digit, badge, sure, hint) {
  byId("verdict").dataset.state = state;
  const texts = { digit, badge, sure, hint };
  for (const [id, text] of Object.entries(texts)) byId(id).textContent = text;
  byId("verdict").classList.toggle("long", digit.length > 2);
  byId("verdict").classList.toggle("longer", digit.length > 14);
  // A sign is for the eye, and CLOSEST names the digit.
  const isNamed = digit === "?" || digit === "!" || sure.startsWith(CLOSEST);
  const sentences = isNamed ? [badge, sure, hint] : [`${digit}, ${sure}`, badge, hint];
  if (state === "refused") sentences.unshift("Not accepted");
  announce(state === "empty" ? "" : sentences.filter(Boolean).map(sentence).join(" "));
}

function judge(prediction) {
  const { accepted, reason, hint = "", digit } = prediction;
  const p = percent(prediction.probabilities[digit]);
  const sure = `${p} sure`;
  // The model may be sure which digit is the closest one; that does not make it one.
  const closest = reason === "blank" ? "" : `${CLOSEST} ${digit} (${p})`;
  if (accepted === false) return ["refused", WORDS[reason] ?? "Not accepted", closest, hint];
  if (accepted === null) return ["open", "Not judged", sure, "This model does not judge whether the picture shows a digit."];
  return ["accepted", "Accepted", sure, ""];
}

// Whether the model has classes other than digits.
let hasLabels = false;
export function setLabelled(value) {
  hasLabels = value;
  byId("mode").hidden = hasLabels; // numbers have digits
  byId("draw-title").textContent = hasLabels ? "Draw a picture" : "Draw a digit";
}

export function showNothing() {
  const [sure, hint] = hasLabels
    ? ["The most probable classes appear here.", "They change while you draw."]
    : ["Ten bars show how probable each digit is.", "They move while you draw."];
  verdict("empty", "?", "Waiting for ink", sure, hint);
  forget("Every step from your picture to the pixels that the model takes will appear here.");
}

// An answer is late. One to an earlier picture stays until then, but no longer looks accepted.
export function showWaiting() {
  const { state } = byId("verdict").dataset;
  if (state === "error") return; // which says that the page keeps trying
  if (state === "empty") byId("sure").textContent = byId("hint").textContent = "";
  else byId("verdict").dataset.state = "open";
  byId("badge").textContent = WAITING;
  announce(`${WAITING}.`);
}

// `hint` is what the page does about it.
export function showError(message, hint) {
  verdict("error", "!", "No answer", message, hint);
  forget("Without an answer there are no steps.");
}

// Nothing of an earlier answer stays beside a verdict without one.
function forget(steps) {
  showBars(null);
  byId("bars").hidden = hasLabels;
  showTimes({});
  showEvidence(null);
  byId("as-number").hidden = true;
  byId("found").hidden = true;
  byId("boxes").replaceChildren();
  byId("steps").replaceChildren(element("p", { class: "quiet" }, steps));
}

export function showTimes({ call, picture, model }) {
  const text = (value) => (value === undefined ? "-" : `${value.toFixed(value < 10 ? 1 : 0)} ms`);
  byId("time-call").textContent = text(call);
  byId("time-picture").textContent = text(picture);
  byId("time-model").textContent = text(model);
}

export function showPrediction(answer) {
  const [prediction] = answer.predictions;
  showTimes(answer.times);
  showSteps(answer.steps ?? []);
  byId("found").hidden = true;
  byId("boxes").replaceChildren();
  if (prediction.label !== undefined) {
    verdict("open", prediction.label, "Not judged", `${percent(Math.max(...Object.values(prediction.probabilities)))} sure`, "");
    byId("as-number").hidden = true;
    showLabels(prediction);
    return;
  }
  const [state, badge, sure, hint] = judge(prediction);
  const isBlank = prediction.reason === "blank";
  verdict(state, isBlank ? "?" : String(prediction.digit), badge, sure, hint);
  byId("as-number").hidden = prediction.reason !== "several_digits";
  showBars(isBlank ? null : prediction);
}

// The figures stay where they are while their pictures change, so nothing flickers.
function showSteps(steps) {
  const box = byId("steps");
  const names = steps.map(({ name }) => name).join();
  if (box.dataset.names !== names || !box.querySelector("figure")) {
    box.dataset.names = names;
    box.replaceChildren(
      ...steps.map(({ name }) => {
        const image = element("img", { alt: `Step: ${STEPS[name] ?? name}` });
        const caption = element("figcaption", {}, STEPS[name] ?? name);
        const frame = element("div", { class: "frame" }, image);
        if (name === "pixels") {
          frame.append(element("canvas", { id: "evidence", "aria-hidden": "true" }));
          image.addEventListener("load", () => {
            caption.textContent = `${image.naturalWidth} × ${image.naturalHeight} pixels`;
          });
        }
        return element("figure", { class: name === "pixels" ? "last" : "" }, frame, caption);
      }),
    );
  }
  box.querySelectorAll("img").forEach((image, i) => (image.src = steps[i].png));
}

// What the model took, the last step, as values from 0 to 255; null if the answer has none.
export async function pixelsOf(answer) {
  const step = answer.steps?.at(-1);
  if (step?.name !== "pixels") return null;
  const image = new Image();
  image.src = step.png;
  await image.decode();
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const colourType = atob(step.png.split(",")[1].slice(0, 40)).charCodeAt(25); // PNG, 11.2.1
  const channels = colourType === 0 ? 1 : 3;
  return { width, height, channels, values: data.filter((_, i) => i % 4 < channels) };
}

// `problem` says why there is none, if it was asked for.
export function showEvidence(found, problem = "") {
  const canvas = byId("evidence");
  byId("legend").hidden = !found;
  byId("heat-problem").hidden = !problem;
  byId("heat-problem").textContent = problem && `What counted is not known: ${problem}`;
  if (!canvas) return;
  const { width, height, values } = found ?? { width: 1, height: 1 };
  Object.assign(canvas, { width, height }); // which clears it
  if (!found) return;
  byId("copies").textContent = `Each of ${found.copies} copies hides one patch; they are ${found.calls > 1 ? `${found.calls} calls` : "one call"}`;
  const context = canvas.getContext("2d");
  const most = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0.5);
  const image = context.createImageData(width, height);
  values.forEach((value, at) => {
    const strength = Math.abs(value) / most;
    const colour = value > 0 ? [255, 106, 43] : [64, 150, 255];
    image.data.set([...colour, 225 * strength ** 0.8], 4 * at);
  });
  context.putImageData(image, 0, 0);
}

// `pad` says where on the sheet the picture lies.
export function showReading(answer, pad) {
  const { digits, lines } = answer;
  const [left, top, scale] = pad.placement;
  byId("as-number").hidden = true;
  byId("found").hidden = !digits.length;
  showTimes(answer.times);
  byId("boxes").replaceChildren();
  if (!digits.length) {
    verdict("refused", "?", "No digits", "Nothing to read.", answer.hint ?? "");
    showBars(null);
    return;
  }
  const others = digits.filter(({ accepted }) => accepted !== false);
  const refused = digits.length - others.length;
  const least = Math.min(...others.map(({ digit, probabilities }) => probabilities[digit]));
  const count = `${digits.length} digit${digits.length > 1 ? "s" : ""}`;
  let [state, badge] = ["accepted", `${count} accepted`];
  if (refused) [state, badge] = ["refused", `${refused} of ${count} not accepted`];
  else if (digits.some(({ accepted }) => accepted === null)) [state, badge] = ["open", `${count}, not judged`];
  const sure = others.length ? `At least ${percent(least)} sure of ${refused ? "the others" : "each"}` : "";
  verdict(state, lines.join(" "), badge, sure, "Choose a digit to see its bars.");

  const buttons = [];
  const boxes = digits.map((each, i) => {
    const [x0, y0, x1, y1] = each.box;
    const state = { false: "refused", true: "accepted" }[each.accepted] ?? "open";
    const text = each.accepted === false && each.reason !== "unsure" ? "?" : String(each.digit);
    const note = text === "?" ? `closest: ${each.digit}` : percent(each.probabilities[each.digit], 0);
    const button = element("button", { type: "button", class: state, "aria-pressed": "false" }, text, element("small", {}, note));
    button.addEventListener("click", () => select(i));
    buttons.push(button);
    const x = Math.max(1, left + x0 * scale - 4);
    const y = Math.max(1, top + y0 * scale - 4);
    const right = Math.min(WIDTH - 1, left + x1 * scale + 4);
    const bottom = Math.min(HEIGHT - 1, top + y1 * scale + 4);
    return svg(
      "g",
      { class: state },
      svg("rect", { x, y, width: right - x, height: bottom - y, rx: 6 }),
      svg("text", { x: x + 4, y: y > 24 ? y - 6 : bottom + 20 }, text),
    );
  });
  const select = (chosen) => {
    showBars(digits[chosen]);
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    boxes.forEach((box, i) => box.classList.toggle("chosen", i === chosen));
  };
  byId("found").replaceChildren(...buttons);
  byId("boxes").replaceChildren(...boxes);
  select(Math.max(0, digits.findIndex(({ accepted }) => accepted === false)));
}
