// What digit is on a picture, over HTTP: node build/predict.js URL PICTURE
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { paths } from "./openapi.js";

const [url, picture] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url });
// Or another type of picture: the server looks at the bytes.
const image = `data:image/png;base64,${readFileSync(picture, "base64")}`;
const { data, error, response } = await client.POST("/predict", { body: { image }, signal: AbortSignal.timeout(10_000) });
if (!data) {
  console.error(error?.error ?? response.statusText);
  process.exit(1);
}
for (const prediction of data.predictions) {
  if (!("digit" in prediction)) throw new Error("The server's default model does not classify digits.");
  const { digit, probabilities, accepted, hint = "" } = prediction;
  console.log(`digit ${digit}, probability ${probabilities[digit].toFixed(4)}, accepted ${accepted} ${hint}`.trim());
}
