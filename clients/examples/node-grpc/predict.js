// What digit is on a picture, over gRPC: node predict.js ADDRESS PICTURE
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [address, picture] = process.argv.slice(2);
// Fields with the value 0 are not sent; `defaults` restores them, such as the digit 0.
const proto = new URL("../../../proto/digits/v1/digits.proto", import.meta.url).pathname;
const protos = loadSync(proto, { defaults: true });
const { DigitClassifier } = grpc.loadPackageDefinition(protos).digits.v1;
const client = new DigitClassifier(address, grpc.credentials.createInsecure());
client.Predict({ image: readFileSync(picture) }, { deadline: Date.now() + 10_000 }, (error, answer) => {
  if (error) {
    console.error(error.details);
    process.exit(1);
  }
  for (const { digit, probabilities, accepted, hint } of answer.predictions) {
    console.log(`digit ${digit}, probability ${probabilities[digit].toFixed(4)}, accepted ${accepted} ${hint}`.trim());
  }
});
