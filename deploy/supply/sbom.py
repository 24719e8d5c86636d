"""Writes what is in our wheel and images: software bills of materials in CycloneDX 1.6.

    python -m deploy.supply.sbom wheel dist/mnist_service-1.0-py3-none-any.whl
    python -m deploy.supply.sbom images mnist-serve:latest

How it works: this file needs Python's standard library only, and runs twice. In the environment
to describe, such as an image, `inventory` prints what is installed: Python packages, from their
metadata, and Debian's, from dpkg's database. Outside, `bom` makes the document from that.

The wheel pins no versions. Its document has those of deploy/locks/serve.txt, which are installed
into a temporary environment for this.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

IMAGES = ("mnist-serve", "mnist-serve-gpu", "mnist-train")
_OURS = "mnist-service"
_DPKG, _OS_RELEASE = Path("/var/lib/dpkg/status"), Path("/etc/os-release")


class SbomError(Exception):
    """A bill of materials cannot be made; the message says why."""


def inventory() -> dict[str, Any]:
    """What is installed beside the running Python: name, version, licences, requirements."""
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    below = sysconfig.get_path("purelib", vars={"base": sys.base_prefix})
    packages = []
    for path in sorted({*own, below}):
        for installed in importlib.metadata.distributions(path=[path]):
            metadata = installed.metadata
            licences = [metadata[k] for k in ("License-Expression", "License") if metadata[k]]
            packages.append(
                {
                    "name": metadata["Name"],
                    "version": installed.version,
                    "licences": licences,
                    "classifiers": metadata.get_all("Classifier", []),
                    "requires": installed.requires or [],
                    # Of the Python below an environment, as the pip of a base image.
                    "below": path not in own,
                }
            )
    debian, system = [], {}
    if _DPKG.exists():
        lines = _OS_RELEASE.read_text().splitlines()
        system = dict(line.replace('"', "").split("=", 1) for line in lines if "=" in line)
        for paragraph in _DPKG.read_text().split("\n\n"):
            fields = dict(re.findall(r"^([\w-]+): (.*)$", paragraph, re.M))
            if fields.get("Status", "").endswith(" installed"):
                debian.append({key: fields.get(key, "") for key in _DEBIAN_FIELDS})
    python = platform.python_version()
    return {"python": python, "packages": packages, "debian": debian, "system": system}


_DEBIAN_FIELDS = ("Package", "Version", "Architecture", "Depends", "Pre-Depends", "Maintainer")


def bom(
    found: Mapping[str, Any], subject: Mapping[str, Any], *, policy: Mapping[str, Any]
) -> dict[str, Any]:
    """The CycloneDX document of an inventory.

    `subject` is the component that is described; if it is our package, only what it requires and
    its environment has is listed. `policy` is licences.toml. The same arguments and
    SOURCE_DATE_EPOCH make the same text.
    """
    components: dict[str, dict[str, Any]] = {}
    edges: dict[str, set[str]] = {}
    ours = subject["bom-ref"]
    is_package = ours.startswith("pkg:pypi/")
    packages = [one for one in found["packages"] if not (is_package and one["below"])]
    _add_python_packages(packages, policy, components, edges)
    if is_package:
        kept = _reachable(ours, edges)
        del components[ours]
        components = {ref: part for ref, part in components.items() if ref in kept}
        edges = {ref: children for ref, children in edges.items() if ref in kept}
    else:
        _add_debian_packages(found, components, edges)
        python = f"pkg:generic/python@{found['python']}"
        version = found["python"]
        components[python] = _component("application", python, "python", version)
        edges[python] = set()
        edges[ours] = set(components)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    time = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "deploy/supply/sbom.py"}]},
            "component": dict(subject),
        },
        "components": [components[ref] for ref in sorted(components)],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(children)} for ref, children in sorted(edges.items())
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(document, sort_keys=True))
    return {"serialNumber": f"urn:uuid:{serial}", **document}


def _component(kind: str, ref: str, name: str, version: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "bom-ref": ref, "name": name, "version": version, "purl": ref, **more}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _add_python_packages(
    packages: list[dict[str, Any]],
    policy: Mapping[str, Any],
    components: dict[str, dict[str, Any]],
    edges: dict[str, set[str]],
) -> None:
    refs = {}
    asked: dict[str, set[str]] = {}  # package -> its extras that any other requires
    for package in packages:
        name = _canonical(package["name"])
        refs[name] = ref = f"pkg:pypi/{name}@{quote(package['version'], safe='')}"
        licences = _licences(name, package, policy)
        components[ref] = _component(
            "library",
            ref,
            package["name"],
            package["version"],
            **({"licenses": licences} if licences else {}),
        )
        for requirement in package["requires"]:
            child, extras, _ = _parse(requirement)
            asked.setdefault(child, set()).update(extras)
    for package in packages:
        name = _canonical(package["name"])
        children = edges.setdefault(refs[name], set())
        for requirement in package["requires"]:
            child, _, extra = _parse(requirement)
            # Of our own extras, those that are installed.
            if child in refs and (not extra or name == _OURS or extra in asked.get(name, ())):
                children.add(refs[child])


def _parse(requirement: str) -> tuple[str, set[str], str]:
    """Name, extras, and the extra that it belongs to, of `name[a,b]>=1; extra == "c"`."""
    head, _, marker = requirement.partition(";")
    match = re.match(r"([\w.-]+)\s*(?:\[([^]]*)\])?", head)
    if not match:
        raise SbomError(f"The requirement {requirement!r} of an installed package is malformed.")
    extras = {extra.strip() for extra in (match[2] or "").split(",") if extra.strip()}
    belongs = re.search(r"""extra\s*==\s*["']([^"']+)""", marker)
    return _canonical(match[1]), extras, belongs[1] if belongs else ""


def _licences(
    name: str, package: Mapping[str, Any], policy: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if name in policy["stated"]:
        return [{"expression": policy["stated"][name]}]
    spellings = policy["spellings"]
    unclear = ("", "UNKNOWN")
    short = [text for text in package["licences"] if text not in unclear and "\n" not in text]
    if short:
        text = spellings.get(short[0], short[0])
        parts = {part.strip() for part in re.split(r" AND | OR |[()]", text)} - {""}
        known = {*policy["permissive"], *policy["weak_copyleft"], *policy["only"]}
        return [{"expression": text}] if parts <= known else [{"license": {"name": text}}]
    names = [line.rpartition(" :: ")[2] for line in package["classifiers"] if line[:7] == "License"]
    if len(names) == 1 and names[0] in spellings:
        return [{"expression": spellings[names[0]]}]
    return [{"license": {"name": text}} for text in names]


def _add_debian_packages(
    found: Mapping[str, Any], components: dict[str, dict[str, Any]], edges: dict[str, set[str]]
) -> None:
    system = found["system"]
    place = f"{system.get('ID', 'debian')}-{system.get('VERSION_ID', '')}"
    refs = {}
    for package in found["debian"]:
        name, version = package["Package"], package["Version"]
        what = f"{quote(name, safe='')}@{quote(version, safe='')}"
        qualifiers = f"arch={package['Architecture']}&distro={place}"
        refs[name] = ref = f"pkg:deb/{system.get('ID', 'debian')}/{what}?{qualifiers}"
        components[ref] = _component(
            "library", ref, name, version, supplier={"name": package["Maintainer"]}
        )
    for package in found["debian"]:
        wanted = re.split(r"[,|]", f"{package['Pre-Depends']},{package['Depends']}")
        names = {re.split(r"[ (:]", one.strip())[0] for one in wanted}
        edges[refs[package["Package"]]] = {refs[name] for name in names if name in refs}


def _reachable(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen, waiting = {start}, [start]
    while waiting:
        for child in edges[waiting.pop()] - seen:
            seen.add(child)
            waiting.append(child)
    return seen


def of_wheel(wheel: Path, python: Path, policy: Mapping[str, Any]) -> dict[str, Any]:
    """The document of our wheel, from an environment that it is installed in."""
    _, version, *_ = wheel.name.split("-")
    found = json.loads(_run([str(python), __file__, "inventory"]))
    ref = f"pkg:pypi/{_OURS}@{quote(version, safe='')}"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    hashes = [{"alg": "SHA-256", "content": digest}]
    licences = [{"expression": "Apache-2.0"}]
    subject = _component("application", ref, _OURS, version, hashes=hashes, licenses=licences)
    if not any(
        _canonical(p["name"]) == _OURS and p["version"] == version for p in found["packages"]
    ):
        raise SbomError(f"{python} does not have {wheel.name} installed.")
    return bom(found, subject, policy=policy)


def of_image(image: str, policy: Mapping[str, Any], client: str = "docker") -> dict[str, Any]:
    """The document of an image that the engine has."""
    described = json.loads(_run([client, "image", "inspect", image]))[0]
    version = (described["Config"].get("Labels") or {}).get("org.opencontainers.image.version", "")
    algorithm, _, digest = described["Id"].partition(":")
    command = [client, "run", "--rm", "--interactive", "--read-only", "--network", "none"]
    command += ["--entrypoint", "python", image, "-", "inventory"]
    found = json.loads(_run(command, text=Path(__file__).read_text()))
    name = re.sub(r"[:@].*", "", image.rpartition("/")[2])
    ref = f"pkg:oci/{name}@{quote(described['Id'], safe='')}"
    hashes = [{"alg": algorithm.upper().replace("SHA", "SHA-"), "content": digest}]
    subject = _component("container", ref, image, version, hashes=hashes)
    return bom(found, subject, policy=policy)


def _run(command: list[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (Python, pip or docker, with paths and names of the caller)
            command, capture_output=True, text=True, check=False, input=text
        )
    except OSError as error:
        raise SbomError(f"{command[0]} cannot be run: {error.strerror}.") from error
    if done.returncode != 0:
        raise SbomError(f"{' '.join(command)} failed:\n{done.stderr[-2000:].rstrip()}")
    return done.stdout


def _installed(wheel: Path, folder: Path, lock: Path) -> Path:
    """Install a wheel and the serving lock into a fresh environment; its Python."""
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    _run([*pip, "--require-hashes", "--requirement", str(lock)])
    _run([*pip, "--no-index", str(wheel)])
    return python


def _built_images() -> list[str]:
    tag = os.environ.get("TAG") or "latest"
    built = []
    for name in IMAGES:
        try:
            _run(["docker", "image", "inspect", f"{name}:{tag}"])
            built.append(f"{name}:{tag}")
        except SbomError as error:
            print(f"No SBOM of {name}:{tag}: {str(error).splitlines()[-1]}", file=sys.stderr)
    return built


def main() -> int:
    """Write <output>/<name>.cdx.json for each subject. Returns 1 if one cannot be described."""
    import tomllib  # not in `inventory`, which runs in any Python

    parser = argparse.ArgumentParser(prog="sbom.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=["wheel", "images", "inventory"])
    parser.add_argument(
        "subjects", nargs="*", help="a wheel; or images (default: those of ours that are built)"
    )
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder to write to")
    options = parser.parse_args()
    if options.kind == "inventory":
        print(json.dumps(inventory()))
        return 0
    folder = Path(__file__).resolve().parent
    policy = tomllib.loads((folder / "licences.toml").read_text())
    documents = {}
    try:
        if options.kind == "wheel":
            for wheel in map(Path, options.subjects):
                with tempfile.TemporaryDirectory() as temporary:
                    lock = folder.parent / "locks" / "serve.txt"
                    python = _installed(wheel, Path(temporary), lock)
                    documents[wheel.stem] = of_wheel(wheel, python, policy)
        else:
            for image in options.subjects or _built_images():
                documents[re.sub(r"[^\w.-]", "-", image)] = of_image(image, policy)
    except (SbomError, OSError) as error:
        print(f"No SBOM: {error}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        path = options.output / f"{name}.cdx.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"{path}: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
