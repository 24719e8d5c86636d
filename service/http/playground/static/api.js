// The public endpoints that this page uses. Paths are relative, so a proxy may add a prefix.

import { fetchWithKey } from "./key.js";

const GRID = 14; // patches in a row, and rows of them; each is three steps wide, so they overlap
const LEAST_GRID = 4;
const LONGEST_MS = 5000; // for all copies, by the time that the model took
const CALL_BYTES = 4 * 1024 * 1024;
const MOST_CLASSES = 1000; // that an answer may have
const LEAST = 1e-7; // probabilities below it count as this one
const PASSING = [429, 502, 503, 504]; // the same request may be answered later

// Why there is no answer. `wait` is the milliseconds after which the same request may have one, 0
// if it never will.
export class Refused extends Error {
  constructor(message, status, wait = 0) {
    super(message);
    Object.assign(this, { status, wait });
    this.isForbidden = status === 401 || status === 403;
  }
}

export const noAnswer = (message) => new Refused(message, 0, 1000);

async function call(path, options = {}) {
  let response;
  let body;
  try {
    response = await fetchWithKey(path, options);
    body = await response.text();
  } catch {
    options.signal?.throwIfAborted();
    throw noAnswer("The server does not answer.");
  }
  const { status } = response;
  try {
    body = JSON.parse(body);
  } catch {
    // What a proxy says has another form.
    if (response.ok) throw new Refused("The answer is not JSON, so it is not from mnist-service.", status);
    body = {};
  }
  if (status === 401) throw new Refused("The server asks for a key: enter it at the top.", status);
  if (!response.ok) {
    const seconds = Number(response.headers.get("retry-after")) || 1;
    const says = typeof body?.error === "string" ? body.error : `The server answered with ${status}.`;
    throw new Refused(says, status, PASSING.includes(status) ? 1000 * seconds : 0);
  }
  return [body, response];
}

// A file of the page, from the browser's cache if it has it.
export async function file(path) {
  const response = await fetch(path, { cache: "force-cache" }).catch(() => null);
  if (!response?.ok) throw new Refused("The server does not answer; choose the picture again later.", 0);
  return response.blob();
}

// `chosen` has the model and the version, empty for the defaults.
function address(endpoint, chosen, options = {}) {
  const entries = Object.entries({ ...options, ...chosen }).filter(([, value]) => value);
  return entries.length ? `${endpoint}?${new URLSearchParams(entries)}` : endpoint;
}

// What is sent for a picture.
export function request(mode, file, name, chosen) {
  const path = address(mode, chosen, mode === "predict" ? { explain: "true" } : {});
  return { path, url: new URL(path, document.baseURI).href, type: file.type, file, name };
}

// The answer, with `times` in milliseconds: of the call, and what the server says of its parts.
export async function send({ path, type, file }, signal) {
  const content = await file.arrayBuffer();
  const began = performance.now();
  const headers = { "content-type": type };
  const [body, response] = await call(path, { method: "POST", headers, body: content, signal });
  const times = { call: performance.now() - began };
  const timing = response.headers.get("server-timing") ?? "";
  for (const [, part, milliseconds] of timing.matchAll(/(\w+);dur=([\d.]+)/g)) {
    times[part] = Number(milliseconds);
  }
  return { ...body, times };
}

// The loaded versions of each model, newest first.
export async function models() {
  const [index] = await call("v2/repository/index", { method: "POST", body: '{"ready": true}' });
  const versions = new Map();
  for (const { name, version } of index) versions.set(name, [...(versions.get(name) ?? []), version]);
  return versions;
}

export async function card(model, version) {
  const of = version ? `/versions/${encodeURIComponent(version)}` : "";
  return (await call(`v2/models/${encodeURIComponent(model)}${of}/card`))[0];
}

// How much each pixel speaks for what `prediction` names: the fall of its log odds while a patch
// around it is hidden, of a digit by background, of anything else by the mean colour. `pixels` are
// those that the model took, `took` is its time for them in milliseconds.
export async function evidence(pixels, prediction, chosen, took, signal) {
  const { width, height, channels, values } = pixels;
  const isDigit = prediction.digit !== undefined;
  const fitting = Math.floor(Math.sqrt(LONGEST_MS / Math.max(1, took ?? 1)));
  const grid = isDigit ? GRID : Math.min(GRID, Math.max(LEAST_GRID, fitting));
  const [stepX, stepY] = [Math.ceil(width / grid), Math.ceil(height / grid)];
  const corners = [];
  for (let y = -stepY; y < height - stepY; y += stepY) {
    for (let x = -stepX; x < width - stepX; x += stepX) corners.push([x, y]);
  }
  const inside = ([left, top], visit) => {
    for (let y = Math.max(0, top); y < Math.min(height, top + 3 * stepY); y++) {
      for (let x = Math.max(0, left); x < Math.min(width, left + 3 * stepX); x++) visit(y * width + x);
    }
  };
  const mean = (channel) => values.reduce((sum, value, i) => sum + (i % channels === channel ? value : 0), 0) / (width * height);
  const fill = isDigit ? [0] : Array.from({ length: channels }, (_, channel) => mean(channel));
  const size = values.length;
  const most = Math.max(1, Math.floor(CALL_BYTES / size));
  const copies = [null, ...corners]; // the first hides nothing
  const path = address("predict", chosen, isDigit ? {} : { top: MOST_CLASSES });
  const headers = { "content-type": "application/octet-stream" };
  const odds = [];
  for (let start = 0; start < copies.length; start += most) {
    const part = copies.slice(start, start + most);
    const body = new Uint8Array(size * part.length);
    part.forEach((corner, i) => {
      body.set(values, size * i);
      if (corner) inside(corner, (at) => body.set(fill, size * i + at * channels));
    });
    const [answer] = await call(path, { method: "POST", headers, body, signal });
    for (const { probabilities } of answer.predictions) {
      const p = Math.min(1 - LEAST, Math.max(LEAST, probabilities[isDigit ? prediction.digit : prediction.label] ?? 0));
      odds.push(Math.log(p / (1 - p)));
    }
  }
  const sum = new Float32Array(width * height);
  const count = new Float32Array(width * height);
  corners.forEach((corner, i) =>
    inside(corner, (at) => {
      sum[at] += odds[0] - odds[i + 1];
      count[at] += 1;
    }),
  );
  return { width, height, values: sum.map((value, at) => value / count[at]), copies: corners.length, calls: Math.ceil(copies.length / most) };
}
