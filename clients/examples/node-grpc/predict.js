// What digit is on a picture, over gRPC: node predict.js ADDRESS PICTURE
import { readFileSync } from "node:fs";
import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [address, picture] = process.argv.slice(2);
const protos = loadSync("../../../proto/digits/v1/digits.proto", { defaults: true }); // zeros, which are not sent
const { DigitClassifier } = loadPackageDefinition(protos).digits.v1;
const client = new DigitClassifier(address, credentials.createInsecure());
client.predict({ image: readFileSync(picture) }, { deadline: Date.now() + 10_000 }, (error, answer) => {
  if (error) throw error;
  const [{ digit, probabilities, accepted, hint }] = answer.predictions;
  console.log(`digit ${digit}, probability ${probabilities[digit].toFixed(4)}, accepted ${accepted}`, hint);
});
