"""The locks agree with pyproject.toml: what is declared is locked, and all of it with hashes.

Needs no network, so it cannot see newer versions: dependabot and `make locks ARGS=--upgrade` do.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

LOCKS, TRITON = ROOT / "deploy" / "locks", ROOT / "tests" / "triton"
RIVALS = sorted((ROOT / "benchmarks" / "rivals").iterdir())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLIENT = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())["project"]
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["build-system"]["requires"]
# Lock -> the extras of our package in it.
EXTRAS = {
    "serve": ["cpu", "traces"],
    "serve-gpu": ["gpu", "traces"],
    "train": ["cpu", "train"],
    "train-cpu": ["cpu", "train"],
    "dev-3.11": ["cpu", "traces", "train", "dev", "docs", "kubernetes"],
    "dev-3.14": ["cpu", "traces", "train", "dev", "docs", "kubernetes"],
}
# Locks for one Python, with its minor version; the others are for each that is supported.
ONE_PYTHON = {"serve-gpu": 11, "train": 11, "train-cpu": 11, "dev-3.11": 11, "dev-3.14": 14}
NOT_LOCKED = {"train-cpu": {"torchvision"}}  # update.sh says why


class Locked(NamedTuple):
    """One entry of a lock file."""

    requirement: Requirement
    hashes: list[str]
    parents: set[str]  # the packages or files that require it


def read(name: str) -> list[Locked]:
    return entries_of(FILES[name])


def entries_of(lock: Path) -> list[Locked]:
    entries: list[Locked] = []
    for line in lock.read_text().splitlines():
        if not line or line.startswith("#") or line == "    # via":
            continue
        if match := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})( \\)?", line):
            entries[-1].hashes.append(match[1])
        elif match := re.fullmatch(r"    #   (via )?(.+)|    # via (.+)", line):
            entries[-1].parents.add(match[2] or match[3])
        else:  # "name==version ; marker \"; InvalidRequirement if it is anything else
            entries.append(Locked(Requirement(line.removesuffix(" \\")), [], set()))
    return entries


def environments(name: str) -> list[dict[str, str]]:
    """The environments that a lock is for, on Linux, as markers see them."""
    minors = [ONE_PYTHON[name]] if name in ONE_PYTHON else [11, 12, 13, 14]
    return [
        {
            "python_version": f"3.{minor}",
            "python_full_version": f"3.{minor}.2",
            "sys_platform": "linux",
            "platform_machine": "x86_64",
            "platform_system": "Linux",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
        }
        for minor in minors
    ]


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def versions(name: str, environment: dict[str, str]) -> dict[str, Version]:
    """What pip installs from a lock in an environment: package -> version."""
    installed: dict[str, Version] = {}
    for requirement, _, _ in read(name):
        if applies(requirement, environment):
            assert requirement.name not in installed, requirement.name
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            installed[canonicalize_name(requirement.name)] = Version(pin.version)
    return installed


def declared(name: str) -> list[Requirement]:
    """What a lock is made from."""
    lines: list[str] = []
    if (file := FILES[name].with_name(f"{name.partition('-3.')[0]}.in")).exists():
        lines = file.read_text().splitlines()
        lines += BUILD if "-r build.in" in lines else []
        lines = [line for line in lines if not line.startswith(("#", "-r "))]
    if name in EXTRAS:
        groups = [PROJECT["optional-dependencies"][extra] for extra in EXTRAS[name]]
        lines += [*PROJECT["dependencies"], *(line for group in groups for line in group)]
    if name.startswith("dev-"):  # the client is installed beside the service
        extras = CLIENT["optional-dependencies"].values()
        lines += [*CLIENT["dependencies"], *(line for group in extras for line in group)]
    left_out = NOT_LOCKED.get(name, set())
    return [r for r in map(Requirement, lines) if r.name not in left_out]


FILES = {path.stem: path for folder in (LOCKS, TRITON) for path in sorted(folder.glob("*.txt"))}
NAMES = sorted(FILES)


def test_every_lock_is_known() -> None:
    assert set(NAMES) == {*EXTRAS, "build", "tools", "kserve", "perf_analyzer"}


def test_the_build_lock_is_for_the_build_backend_of_the_project() -> None:
    lines = (LOCKS / "build.in").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == BUILD


@pytest.mark.parametrize("name", NAMES)
def test_what_the_project_declares_is_locked_in_a_version_that_it_allows(name: str) -> None:
    for environment in environments(name):
        locked = versions(name, environment)
        for requirement in declared(name):
            if applies(requirement, environment):
                package = canonicalize_name(requirement.name)
                advice = f"{FILES[name]} lacks {requirement}: run make locks"
                assert package in locked, advice
                assert requirement.specifier.contains(locked[package], prereleases=True), advice


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_locked_that_no_package_requires(name: str) -> None:
    entries = read(name)
    names = {entry.requirement.name for entry in entries}
    direct = {canonicalize_name(requirement.name) for requirement in declared(name)}
    for entry in entries:
        ours = {parent for parent in entry.parents if re.search(r" |\.in$", parent)}
        if ours:
            advice = f"{entry.requirement.name} in {FILES[name]}: run make locks"
            assert canonicalize_name(entry.requirement.name) in direct, advice
        assert ours or entry.parents & names, entry.requirement


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_hashes_and_no_address(name: str) -> None:
    for entry in read(name):
        assert entry.hashes, entry.requirement
        assert entry.requirement.url is None
    # A lock does not decide from where packages come: that is pip's configuration.
    assert not re.search(r"://|^--?(index|extra|find)", FILES[name].read_text(), re.M)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda folder: folder.name)
def test_a_rival_is_locked_in_the_versions_that_were_measured(rival: Path) -> None:
    lines = (rival / "requirements.in").read_text().splitlines()
    frozen = {canonicalize_name(r.name): r for r in map(Requirement, filter(is_pin, lines))}
    locked = entries_of(rival / "requirements.txt")
    assert len(frozen) == len(locked)
    for entry in locked:
        assert entry.hashes, entry.requirement
        assert frozen[canonicalize_name(entry.requirement.name)] == entry.requirement, "make locks"


def is_pin(line: str) -> bool:
    return not line.startswith("#")


def test_every_node_package_has_a_lock_with_hashes_and_no_address() -> None:
    packages = [p for p in ROOT.glob("*/**/package.json") if "node_modules" not in p.parts]
    packages = [p for p in packages if not p.relative_to(ROOT).parts[0].startswith(".")]
    assert packages
    for package in packages:
        lock = json.loads(package.with_name("package-lock.json").read_text())
        for name, entry in lock["packages"].items():
            assert not name or entry["integrity"].startswith("sha512-"), (package, name)
            assert "resolved" not in entry, (package, name)


def test_ci_can_install_from_a_lock_for_each_of_its_pythons() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["run"]
    for python in job["strategy"]["matrix"]["python"]:
        assert f"dev-{python}" in EXTRAS
    assert any(step.get("env", {}).get("LOCKED") == 1 for step in job["steps"])


def test_the_dockerfile_installs_nothing_that_is_not_locked() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip(?: --python \S+)? install ([^&\n]*)", text)
    assert len(installs) == 7
    for options in installs:
        locked = "--require-hashes --no-deps" in options
        own_wheel = options.split() == ["--no-deps", "--no-index", "/wheels/*.whl"]
        assert locked or own_wheel, options
