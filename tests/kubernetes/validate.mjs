// Reads a JSON list of manifests and prints one line for each that npm's models reject.
import { readFileSync } from "node:fs";

const packages = {
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};

for (const manifest of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = manifest.apiVersion.split("/");
  const from = `@kubernetes-models/${packages[group]}/${group}/${version}/${manifest.kind}`;
  try {
    const { [manifest.kind]: Model } = await import(from);
    new Model(manifest).validate();
  } catch (error) {
    console.log(`${manifest.kind} ${manifest.metadata.name}: ${error.message}`);
  }
}
