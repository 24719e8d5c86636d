// What digit is on a picture, over HTTP: node build/predict.js URL PICTURE
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { paths } from "./openapi.js";

const [url, picture] = process.argv.slice(2);
const image = `data:image/png;base64,${readFileSync(picture, "base64")}`; // also of a JPEG: the bytes tell
const client = createClient<paths>({ baseUrl: url });
const { data, error } = await client.POST("/predict", { body: { image }, params: { query: { timeout: 10 } } });
if (!data) throw new Error(error.error);
const [found] = data.predictions;
if (!("digit" in found)) throw new Error("The model classifies something other than digits.");
console.log(`digit ${found.digit}, probability ${found.probabilities[found.digit].toFixed(4)}, accepted ${found.accepted}`, found.hint ?? "");
