"""make test-kubernetes: builds every overlay and checks it against schemas and our own flags.

No cluster is needed or contacted. Kubernetes' own kinds are checked against its published schemas
(in the package kubernetes-validate). Gateway API and KEDA are checked against npm's
@kubernetes-models, if npm is installed. There are no schemas here of KServe and Kubeflow, so their
pods are checked as pods.
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
FILES = ("components/gateway/gateway.yaml", "training/search.yaml", "training/pytorchjob.yaml")
VERSION = "1.34"
_NPM = ("@kubernetes-models/gateway-api@2.0.0", "@kubernetes-models/keda@2.0.0")
_NPM_GROUPS = ("gateway.networking.k8s.io/", "keda.sh/")
Manifest = dict[str, Any]


def main() -> int:
    """Check every kustomization and file. Returns 0 if all are valid, else 1."""
    passed, failed = 0, 0
    for source in (*KUSTOMIZATIONS, *FILES):
        manifests = read(source)
        problems = [f"{name(one)}: {problem}" for one in manifests for problem in check(one)]
        problems += npm_problems([m for m in manifests if m["apiVersion"].startswith(_NPM_GROUPS)])
        print(f"{source}: {', '.join(manifest['kind'] for manifest in manifests)}", flush=True)
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
        installed = Path(sys.executable).with_name("kubectl")
        kubectl = str(installed) if installed.exists() else shutil.which("kubectl")
        assert kubectl, "kubectl is missing; make test-kubernetes installs it"
        command = [kubectl, "kustomize", str(ROOT / source)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


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
    """The problems that npm's models of Gateway API and KEDA report."""
    if not manifests:
        return []
    if not shutil.which("npm"):
        print(
            "  npm is not installed: Gateway API and KEDA are NOT checked against schemas",
            flush=True,
        )
        return []
    folder = Path(tempfile.gettempdir()) / f"mnist-kubernetes-models-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    if not (folder / "node_modules").exists():
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", *_NPM]
        subprocess.run(install, cwd=folder, check=True)
    shutil.copy(Path(__file__).with_name("validate.mjs"), folder)
    node = subprocess.run(
        ["node", "validate.mjs"], cwd=folder, input=json.dumps(manifests), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return (node.stdout + node.stderr).splitlines()


if __name__ == "__main__":
    sys.exit(main())
