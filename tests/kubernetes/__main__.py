"""make test-kubernetes: builds every overlay and checks it against schemas and our own flags.

No cluster is needed or contacted. Kubernetes' own kinds are checked against its published schemas
(in the package kubernetes-validate). Gateway API, KEDA and the Prometheus Operator are checked
against npm's @kubernetes-models, if npm is installed. There are no schemas here of KServe and
Kubeflow, so their pods are checked as pods. The Secrets of the recipe in docs/deployment.md are
made by its own commands, without a cluster, and compared with what the manifests refer to.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy import certificates
from service import settings
from service.access.keys import digest_of, parse
from training.commands import search
from training.commands import train as cli

ROOT = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
KUSTOMIZATIONS = (
    "overlays/cpu",
    "overlays/gpu",
    "overlays/keda",
    "overlays/keys",
    "kserve",
    "training",
)
VERSION = "1.34"
GATEWAY = "components/gateway/gateway.yaml"
FILES = (GATEWAY, "training/search.yaml", "training/pytorchjob.yaml")
RECIPE = "### Behind a gateway"  # the heading in docs/deployment.md
_NPM = ("package.json", "package-lock.json")
_NPM_GROUPS = ("gateway.networking.k8s.io/", "keda.sh/", "monitoring.coreos.com/")
Manifest = dict[str, Any]


def main() -> int:
    """Check every kustomization and file. Returns 0 if all are valid, else 1."""
    argparse.ArgumentParser(prog="python -m tests.kubernetes", description=__doc__).parse_args()
    passed, failed = 0, 0
    for source in (*KUSTOMIZATIONS, *FILES):
        manifests = read(source)
        problems = [f"{name(one)}: {problem}" for one in manifests for problem in check(one)]
        problems += npm_problems([m for m in manifests if m["apiVersion"].startswith(_NPM_GROUPS)])
        print(f"{source}: {', '.join(manifest['kind'] for manifest in manifests)}", flush=True)
        for problem in problems:
            print(f"  {problem}", flush=True)
        passed, failed = passed + (not problems), failed + bool(problems)
    problems = list(recipe_problems(read("overlays/keys"), read(GATEWAY)))
    print(f"the recipe '{RECIPE.strip('# ')}' of docs/deployment.md", flush=True)
    for problem in problems:
        print(f"  {problem}", flush=True)
    passed, failed = passed + (not problems), failed + bool(problems)
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(failed > 0)


def name(manifest: Manifest) -> str:
    """The kind and the name of a manifest, for messages."""
    metadata = manifest["metadata"]
    return f"{manifest['kind']} {metadata.get('name') or metadata['generateName'] + '...'}"


def read(source: str) -> list[Manifest]:
    """The manifests of a file, or of a kustomization after kubectl has built it."""
    if source.endswith(".yaml"):
        text = (ROOT / source).read_text()
    else:
        command = [_kubectl(), "kustomize", str(ROOT / source)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def _kubectl() -> str:
    installed = Path(sys.executable).with_name("kubectl")
    kubectl = str(installed) if installed.exists() else shutil.which("kubectl")
    assert kubectl, "kubectl is missing; make test-kubernetes installs it"
    return kubectl


def recipe_problems(keys: list[Manifest], gateway: list[Manifest]) -> Iterator[str]:
    """What the Secrets of the recipe lack that the manifests with keys and the gateway refer to."""
    secrets = {each["metadata"]["name"]: each["data"] for each in _recipe_secrets()}

    def content(secret: str, item: str) -> str:
        return base64.b64decode(secrets.get(secret, {}).get(item, "")).decode()

    (settings_map,) = [each["data"] for each in keys if each["kind"] == "ConfigMap"]
    (pod,) = [pod for each in keys if each["kind"] == "Deployment" for pod in _pods(each)]
    (monitor,) = [each["spec"] for each in keys if each["kind"] == "PodMonitor"]
    (container,) = pod["containers"]

    mount, item = os.path.split(settings_map["MNIST_KEYS_FILE"])
    (mounted,) = [each for each in container["volumeMounts"] if each["mountPath"] == mount]
    (volume,) = [each["secret"] for each in pod["volumes"] if each["name"] == mounted["name"]]
    entries = {key.name: key for key in parse(content(volume["secretName"], item))}
    if {name: set(key.scopes) for name, key in entries.items()} != {
        "alice": {"predict"},
        "prometheus": {"metrics"},
    }:
        yield f"{volume['secretName']} has {list(entries)} in '{item}'"
    if "subPath" in mounted or not mounted["readOnly"]:
        yield "the keys are not mounted as a folder that changes with the Secret"
    if volume["defaultMode"] != 0o440 or not pod["securityContext"].get("fsGroup"):
        yield "the keys can be read by others than the group of the pod, or not by it"

    (endpoint,) = monitor["podMetricsEndpoints"]
    named = endpoint["authorization"]["credentials"]
    key = content(named["name"], named["key"])  # sent as it is, with a newline if it has one
    if "prometheus" not in entries or digest_of(key) != entries["prometheus"].digest:
        yield f"the key in {named['name']} is not the one of prometheus"
    ports = {each["name"]: str(each["containerPort"]) for each in container["ports"]}
    probes = {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "readiness")}
    probes |= {container["livenessProbe"]["httpGet"]["port"], endpoint["port"]}
    if probes != {"health"} or ports["health"] != settings_map["MNIST_HEALTH_PORT"]:
        yield f"probes and scrapes use the ports {probes}, not the health port alone"

    (listeners,) = [each["spec"]["listeners"] for each in gateway]
    for name in {ref["name"] for each in listeners for ref in each["tls"]["certificateRefs"]}:
        if "BEGIN CERTIFICATE" not in content(name, "tls.crt"):
            yield f"the Gateway's Secret {name} has no certificate"


def _recipe_secrets() -> list[Manifest]:
    """The Secrets that the commands of the recipe make, run in a folder, with --dry-run=client."""
    text = (ROOT.parent.parent / "docs" / "deployment.md").read_text().split(RECIPE)[1]
    commands = text.split("```sh\n")[1].split("```")[0].splitlines()
    programs = Path(sys.executable).parent
    environ = os.environ | {"PATH": f"{programs}:{Path(_kubectl()).parent}:{os.environ['PATH']}"}
    made: list[Manifest] = []
    with tempfile.TemporaryDirectory() as folder:
        certificates.main(["--folder", folder])
        for command in commands:
            if command.startswith("kubectl apply"):
                path = command.split()[-1]
                assert path.removeprefix("deploy/kubernetes/") in (GATEWAY, *KUSTOMIZATIONS), path
                continue
            creates = command.startswith("kubectl create")
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command + " --dry-run=client -o yaml" * creates],
                cwd=folder, env=environ, capture_output=True, text=True, check=True,
            )  # fmt: skip
            if creates:
                made += [yaml.safe_load(done.stdout)]
    return made


def check(manifest: Manifest) -> Iterator[str]:
    """The problems of one manifest, one sentence each."""
    group = manifest["apiVersion"].rpartition("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway.")):
        yield from _against_schema(manifest)
    for pod in _pods(manifest):
        # Pods inside other kinds are checked as pods.
        as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        if "containers" in pod:
            yield from _against_schema(as_pod)
            for container in pod["containers"]:
                yield from _flags(container)
    if manifest["kind"] == "ConfigMap":
        known = {"MNIST_" + key.upper() for key in settings.Settings.__dataclass_fields__}
        for key in set(manifest["data"]) - known:
            yield f"{key} is not a setting of mnist-serve"
        settings.load([], manifest["data"])


def _pods(manifest: Manifest) -> Iterator[Manifest]:
    spec = manifest.get("spec", {})
    if manifest["kind"] == "ServingRuntime":
        yield {key: spec[key] for key in ("containers", "volumes")}
    elif manifest["kind"] == "PyTorchJob":
        for replica in spec["pytorchReplicaSpecs"].values():
            yield replica["template"]["spec"]
    elif "template" in spec:
        yield spec["template"]["spec"]


def _against_schema(manifest: Manifest) -> Iterator[str]:
    import kubernetes_validate  # of an extra that only these checks need

    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(str(part) for part in error.path)}: {error.message}"


def _flags(container: Manifest) -> Iterator[str]:
    """The flags of a container that our programs do not accept."""
    command, arguments = container.get("command", []), container.get("args", [])
    image = container["image"].partition(":")[0]
    try:
        if command[:1] == ["mnist-search"]:
            search.parser().parse_args(arguments)
        elif image == "mnist-train":
            assert not command or command[-2:] == ["-m", "training.commands.train"], command
            cli.parser().parse_args(arguments)
        elif image.startswith("mnist-serve"):
            settings.load(arguments, {})
        else:
            yield f"{image} is not one of our images"
    except SystemExit:
        yield f"{image} does not accept {arguments}"


def npm_problems(manifests: list[Manifest]) -> list[str]:
    """The problems that npm's models of kinds that are not Kubernetes' own report."""
    if not manifests:
        return []
    if not shutil.which("npm"):
        print(
            "  npm is not installed: kinds of others are NOT checked against schemas",
            flush=True,
        )
        return []
    here = Path(__file__).parent
    versions = hashlib.sha256((here / _NPM[1]).read_bytes()).hexdigest()[:8]
    folder = here.parents[1] / "build" / f"kubernetes-models-{versions}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / ".package-lock.json").exists():  # npm writes it at the end
        for file in _NPM:
            shutil.copy(here / file, folder)
        install = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=folder, check=True)
    shutil.copy(here / "validate.mjs", folder)
    node = subprocess.run(
        ["node", "validate.mjs"], cwd=folder, input=json.dumps(manifests), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return (node.stdout + node.stderr).splitlines()


if __name__ == "__main__":
    sys.exit(main())
