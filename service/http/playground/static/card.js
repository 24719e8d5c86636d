// The model's card: figures, the confusion matrix and the recipe, as far as model.json has them.

import { element, percent, svg } from "./dom.js";

const CELL = 26;
const NUMBER = new Intl.NumberFormat("en");

export function cardOf(card, model, version) {
  const [evaluation, recipe] = [card.evaluation ?? {}, card.recipe ?? {}];
  const { acceptance } = evaluation;
  const accuracy = evaluation.accuracy ?? card.accuracy;
  const tile = (name, value, note = "") =>
    value === undefined ? undefined : element("div", { class: "tile" }, element("dt", {}, name), element("dd", {}, value), element("dd", { class: "quiet" }, note));
  const tiles = element(
    "dl",
    { class: "tiles" },
    tile("Accuracy", accuracy && percent(accuracy, 2), evaluation.images && `of ${NUMBER.format(evaluation.images)} test images${spread(evaluation)}`),
    tile("Calibration error", evaluation.calibration_error && percent(evaluation.calibration_error, 2), before(evaluation)),
    tile("Accepted ones", acceptance?.accuracy && percent(acceptance.accuracy, 2), acceptance && `right; ${percent(refused(acceptance), 1)} are not accepted`),
    tile("Coverage of the set", acceptance?.coverage && percent(acceptance.coverage, 2), "holds the right digit"),
    tile("Parameters", card.parameters && NUMBER.format(card.parameters), card.precision ?? ""),
    tile("Served as", `${model} ${version}`.trim(), card.git_revision ? `from revision ${card.git_revision}` : ""),
  );
  const parts = [tiles];
  if (isMatrix(evaluation.confusion)) parts.push(confusion(evaluation.confusion, card.labels));
  if (Object.keys(recipe).length) parts.push(recipeOf(recipe, card));
  if (parts.length === 1 && accuracy === undefined) {
    parts.push(element("p", { class: "quiet" }, "This model came without a card, or its card has no evaluation."));
  }
  return parts;
}

const spread = ({ accuracy_standard_error: error }) => (error ? `, ± ${(100 * error).toFixed(2)}` : "");

function before({ before_calibration: earlier }) {
  return earlier ? `${percent(earlier.calibration_error, 2)} before calibration` : "";
}

const refused = ({ not_accepted: shares }) => Object.values(shares ?? {}).reduce((a, b) => a + b, 0);

const isMatrix = (rows) =>
  Array.isArray(rows) && rows.length > 1 && rows.length <= 20 && rows.every((row) => row.length === rows.length);

// Rows are the truth, columns the answers. The diagonal is drawn apart: it dwarfs everything else.
function confusion(matrix, labels = []) {
  const name = (i) => labels[i] ?? String(i);
  const short = (i) => [...name(i)].slice(0, 3).join(""); // what a cell has room for
  const most = Math.max(1, ...matrix.flatMap((row, i) => row.filter((_, j) => i !== j)));
  const mistakes = matrix.flatMap((row, i) => row.map((count, j) => ({ i, j, count })).filter(({ i, j, count }) => i !== j && count));
  mistakes.sort((a, b) => b.count - a.count);
  const total = mistakes.reduce((sum, { count }) => sum + count, 0);
  const words = mistakes.slice(0, 3).map(({ i, j, count }) => `${name(i)} for ${name(j)} (${count} times)`);
  const summary = `${NUMBER.format(total)} mistakes${words.length ? `; most often ${words.join(", ")}` : ""}.`;
  const side = CELL * (matrix.length + 1);
  const chart = svg("svg", { viewBox: `0 0 ${side} ${side}`, class: "confusion", role: "img", "aria-label": `Confusion matrix. ${summary}` });
  matrix.forEach((row, i) => {
    const at = CELL * (i + 1);
    chart.append(
      svg("text", { x: CELL / 2, y: at + CELL / 2, class: "axis" }, short(i), svg("title", {}, name(i))),
      svg("text", { x: at + CELL / 2, y: CELL / 2, class: "axis" }, short(i), svg("title", {}, name(i))),
    );
    row.forEach((count, j) => {
      const x = CELL * (j + 1);
      const strength = i === j ? "same" : count ? `wrong w${Math.ceil((4 * count) / most)}` : "none";
      const title = svg("title", {}, `${name(i)} taken for ${name(j)}: ${count}`);
      chart.append(svg("rect", { x: x + 1, y: at + 1, width: CELL - 2, height: CELL - 2, rx: 3, class: strength }, title));
      if (count) chart.append(svg("text", { x: x + CELL / 2, y: at + CELL / 2, class: strength }, String(count)));
    });
  });
  return element(
    "figure",
    { class: "matrix" },
    element("figcaption", {}, element("strong", {}, "Confusion matrix"), ` Rows: what it is. Columns: what the model says. ${summary}`),
    chart,
  );
}

function recipeOf(recipe, card) {
  const rows = Object.entries({ ...recipe, seed: card.seed, temperature: card.temperature?.toFixed(3) })
    .filter(([name, value]) => name !== "name" && value !== undefined && value !== 0 && value !== false && String(value) !== "")
    .map(([name, value]) => element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, Array.isArray(value) ? value.join(", ") : String(value))));
  return element(
    "div",
    { class: "recipe" },
    element("p", {}, element("strong", {}, `Recipe ${recipe.name ?? ""}`), " What is not listed is off."),
    element("dl", { class: "fields" }, ...rows),
  );
}
