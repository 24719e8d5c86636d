"""deploy/supply/sbom.py: documents are valid CycloneDX, and hold what is installed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing

from deploy.supply import sbom
from tests.conftest import ROOT

POLICY = tomllib.loads((ROOT / "deploy" / "supply" / "licences.toml").read_text())
SPDX = get_spdx_licensing()
IMAGE = {"type": "container", "bom-ref": "pkg:oci/x@sha256%3A00", "name": "x", "version": "1"}
WHEEL = {"type": "application", "bom-ref": "pkg:pypi/mnist-service@1.0", "name": "mnist-service"}


def package(name: str, *requires: str, **more: Any) -> dict[str, Any]:
    fields = {
        "name": name,
        "version": "1.0",
        "licences": ["MIT"],
        "classifiers": [],
        "below": False,
    }
    return {**fields, "requires": list(requires), **more}


EXTRAS = 'onnx; extra == "cpu"', 'pip; extra == "dev"'
FOUND = {
    "python": "3.11.7",
    "packages": [
        package("mnist-service", "Left_Pad[fast]>=1; os_name > 'a'", *EXTRAS),
        package("left.pad", 'speed; extra == "fast"', 'doc; extra == "doc"', licences=["", "X\nY"]),
        package("speed", licences=["Some words of a licence"]),
        package("onnx", licences=[], classifiers=["License :: OSI Approved :: MIT License"]),
        package("doc"),
        package("unrelated"),
        package("pip", below=True),
    ],
    "debian": [
        {
            "Package": "libstdc++6", "Version": "12.2.0-14+deb12u1", "Architecture": "amd64",
            "Depends": "libc6 (>= 2.36), gcc-12 | none", "Pre-Depends": "", "Maintainer": "Debian",
        },
        {
            "Package": "libc6", "Version": "2:2.36", "Architecture": "amd64",
            "Depends": "", "Pre-Depends": "", "Maintainer": "Debian",
        },
    ],
    "system": {"ID": "debian", "VERSION_ID": "12"},
}  # fmt: skip


def assert_valid(document: dict[str, Any]) -> None:
    """Check a document against the official schema, and that its references resolve."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    assert error is None, error
    licences = [one for part in document["components"] for one in part.get("licenses", [])]
    for licence in licences:
        if "expression" in licence:
            # SPDX's list has no names of one's own, which begin with LicenseRef-.
            known = re.sub(r"LicenseRef-[\w.-]+", "MIT", licence["expression"])
            assert SPDX.validate(known).errors == []
    refs = [part["bom-ref"] for part in document["components"]]
    refs.append(document["metadata"]["component"]["bom-ref"])
    assert len(set(refs)) == len(refs)
    for edge in document["dependencies"]:
        assert {edge["ref"], *edge["dependsOn"]} <= set(refs)


def names(document: dict[str, Any]) -> set[str]:
    return {part["name"] for part in document["components"]}


def test_an_image_has_its_python_and_all_packages_of_both_kinds() -> None:
    document = sbom.bom(FOUND, IMAGE, policy=POLICY)
    assert_valid(document)
    assert names(document) == {
        "python", "mnist-service", "left.pad", "speed", "onnx", "doc", "unrelated", "pip",
        "libstdc++6", "libc6",
    }  # fmt: skip
    edges = {edge["ref"]: edge["dependsOn"] for edge in document["dependencies"]}
    cxx = "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"
    assert edges[cxx] == ["pkg:deb/debian/libc6@2%3A2.36?arch=amd64&distro=debian-12"]
    assert len(edges[IMAGE["bom-ref"]]) == 10


def test_a_wheel_has_what_it_requires_with_extras_and_nothing_else() -> None:
    document = sbom.bom(FOUND, WHEEL, policy=POLICY)
    assert_valid(document)
    assert names(document) == {"left.pad", "speed", "onnx"}
    licences = {part["name"]: part.get("licenses") for part in document["components"]}
    assert licences["onnx"] == [{"expression": "MIT"}]
    assert licences["speed"] == [{"license": {"name": "Some words of a licence"}}]
    assert licences["left.pad"] is None


def test_the_same_packages_at_the_same_time_make_the_same_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = (sbom.bom(FOUND, IMAGE, policy=POLICY) for _ in range(2))
    assert first == second
    assert first["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    changed = FOUND | {"python": "3.11.8"}
    assert sbom.bom(changed, IMAGE, policy=POLICY)["serialNumber"] != first["serialNumber"]


def test_this_environment_makes_a_valid_document_with_every_package() -> None:
    command = [sys.executable, "-I", sbom.__file__, "inventory"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    document = sbom.bom(found, IMAGE, policy=POLICY)
    assert_valid(document)
    versions = {part["name"]: part["version"] for part in document["components"]}
    name = "cyclonedx-python-lib"
    assert versions[name] == importlib.metadata.version(name)
    assert versions["python"] == platform.python_version()


def test_what_cannot_be_described_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no docker there
    monkeypatch.setattr(sys, "argv", ["sbom.py", "images", "x:1", "--output", str(tmp_path / "o")])
    assert sbom.main() == 1
    assert "No SBOM: docker cannot be run: No such file or directory." in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
