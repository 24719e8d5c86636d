"""make test-kubernetes: every overlay is built, and checked against schemas and our own flags.

No cluster is needed, and none is asked. Kubernetes' own kinds are checked against its published
schemas (kubernetes-validate brings them); Gateway API and KEDA against npm's @kubernetes-models,
where npm is; of KServe and Kubeflow no schema is at hand, so their pods are checked as pods.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from service import settings
from training.commands import search
from training.commands import train as cli

ROOT = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
KUSTOMIZATIONS = ("overlays/cpu", "overlays/gpu", "overlays/keda", "kserve", "training")
FILES = ("training/search.yaml", "training/pytorchjob.yaml")
VERSION = "1.34"
_NPM = ("@kubernetes-models/gateway-api@2.0.0", "@kubernetes-models/keda@2.0.0")
_OF_NPM = ("gateway.networking.k8s.io/", "keda.sh/")
Manifest = dict[str, Any]


def main() -> int:
    """Check all of them. Returns 0 if all hold, 1 if not."""
    passed, failed = 0, 0
    for source in (*KUSTOMIZATIONS, *FILES):
        manifests = read(source)
        problems = [f"{name(each)}: {problem}" for each in manifests for problem in check(each)]
        problems += of_npm([each for each in manifests if each["apiVersion"].startswith(_OF_NPM)])
        print(f"{source}: {', '.join(each['kind'] for each in manifests)}", flush=True)
        for problem in problems:
            print(f"  {problem}", flush=True)
        passed, failed = passed + (not problems), failed + bool(problems)
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(failed > 0)


def name(manifest: Manifest) -> str:
    """What to call a manifest in a message."""
    metadata = manifest["metadata"]
    return f"{manifest['kind']} {metadata.get('name') or metadata['generateName'] + '...'}"


def read(source: str) -> list[Manifest]:
    """Manifests of a kustomization, built, or of a file."""
    if source.endswith(".yaml"):
        text = (ROOT / source).read_text()
    else:
        beside = Path(sys.executable).with_name("kubectl")
        kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
        assert kubectl, "kubectl is needed: make test-kubernetes installs it"
        command = [kubectl, "kustomize", str(ROOT / source)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [each for each in yaml.safe_load_all(text) if each]


def check(manifest: Manifest) -> Iterator[str]:
    """What is wrong with one manifest."""
    group = manifest["apiVersion"].rpartition("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway.")):
        yield from _against_schema(manifest)
    for pod in _pods(manifest):
        # Pods inside of other kinds are checked as pods.
        as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        if "containers" in pod:
            yield from _against_schema(as_pod)
            for container in pod["containers"]:
                yield from _flags(container)
    if manifest["kind"] == "ConfigMap":
        known = {"MNIST_" + key.upper() for key in settings.Settings.__dataclass_fields__}
        for key in set(manifest["data"]) - known:
            yield f"{key} is no setting of mnist-serve"
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
    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(str(part) for part in error.path)}: {error.message}"


def _flags(container: Manifest) -> Iterator[str]:
    """Whether our own programs take the flags that a container gives them."""
    command, arguments = container.get("command", []), container.get("args", [])
    image = container["image"].partition(":")[0]
    try:
        if command[:1] == ["mnist-search"]:
            search._parser().parse_args(arguments)
        elif image == "mnist-train":
            assert not command or command[-2:] == ["-m", "training.commands.train"], command
            cli._parser().parse_args(arguments)
        elif image.startswith("mnist-serve"):
            settings.load(arguments, {})
        else:
            yield f"{image} is no image of ours"
    except SystemExit:
        yield f"{image} does not take {arguments}"


def of_npm(manifests: list[Manifest]) -> list[str]:
    """What npm's models of Gateway API and KEDA find wrong."""
    if not manifests:
        return []
    if not shutil.which("npm"):
        print("  npm is not here: Gateway API and KEDA are NOT checked against schemas", flush=True)
        return []
    folder = Path(tempfile.gettempdir()) / f"mnist-kubernetes-models-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    if not (folder / "node_modules").exists():
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", *_NPM]
        subprocess.run(install, cwd=folder, check=True)
    shutil.copy(Path(__file__).with_name("validate.mjs"), folder)
    done = subprocess.run(
        ["node", "validate.mjs"], cwd=folder, input=json.dumps(manifests), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return (done.stdout + done.stderr).splitlines()


if __name__ == "__main__":
    sys.exit(main())
