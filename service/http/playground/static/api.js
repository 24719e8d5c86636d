// The public endpoints that this page uses. Paths are relative, so a proxy may add a prefix.

import { fetchWithKey } from "./key.js";

const SIDE = 28;
const PATCH = 6; // pixels; the patches that are hidden overlap
const STEP = 2;
const LEAST = 1e-7; // probabilities below it count as this one

export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.isForbidden = status === 401 || status === 403;
  }
}

async function call(path, options) {
  let response;
  try {
    response = await fetchWithKey(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer.");
  }
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) throw new Refused("The server asks for a key: enter it at the top.", 401);
  if (!response.ok) throw new Refused(body.error ?? `The server answered with ${response.status}.`, response.status);
  return [body, response];
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

// How much each of 28x28 pixels speaks for `digit`: the fall of its log odds while the ink in a
// patch around it is hidden. All patches are one request to /predict.
export async function evidence(pixels, digit, chosen) {
  const corners = [];
  for (let y = -STEP; y < SIDE - STEP; y += STEP) {
    for (let x = -STEP; x < SIDE - STEP; x += STEP) corners.push([x, y]);
  }
  const size = SIDE * SIDE;
  const images = new Uint8Array(size * (corners.length + 1));
  images.set(pixels);
  const inside = (from, visit) => {
    const [left, top] = from;
    for (let y = Math.max(0, top); y < Math.min(SIDE, top + PATCH); y++) {
      for (let x = Math.max(0, left); x < Math.min(SIDE, left + PATCH); x++) visit(y * SIDE + x);
    }
  };
  corners.forEach((corner, i) => {
    const start = size * (i + 1);
    images.set(pixels, start);
    inside(corner, (at) => (images[start + at] = 0));
  });
  const headers = { "content-type": "application/octet-stream" };
  const [answer] = await call(address("predict", chosen), { method: "POST", headers, body: images });
  const odds = answer.predictions.map(({ probabilities }) => {
    const p = Math.min(1 - LEAST, Math.max(LEAST, probabilities[digit]));
    return Math.log(p / (1 - p));
  });
  const sum = new Float32Array(size);
  const count = new Float32Array(size);
  corners.forEach((corner, i) =>
    inside(corner, (at) => {
      sum[at] += odds[0] - odds[i + 1];
      count[at] += 1;
    }),
  );
  return sum.map((value, at) => value / count[at]);
}
