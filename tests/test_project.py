"""What the project says about itself agrees: pyproject.toml, the badges, .github/."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())


def minor(version: str) -> int:
    major, _, minor = version.partition(".")
    assert major == "3"
    return int(minor)


def test_pythons_of_classifiers_badge_and_ci_are_the_same() -> None:
    prefix = "Programming Language :: Python :: 3."
    claimed = [
        minor(classifier.rpartition(" ")[2])
        for classifier in PROJECT["classifiers"]
        if classifier.startswith(prefix)
    ]
    oldest, newest = min(claimed), max(claimed)
    assert claimed == list(range(oldest, newest + 1))
    assert PROJECT["requires-python"] == f">=3.{oldest}"
    badge = f"python: 3.{oldest} to 3.{newest}"
    assert f"<title>{badge}</title>" in (ROOT / "docs" / "badges" / "python.svg").read_text()
    assert f"[![{badge}](docs/badges/python.svg)]" in (ROOT / "README.md").read_text()
    matrix = WORKFLOW["jobs"]["run"]["strategy"]["matrix"]["python"]
    assert [minor(version) for version in matrix] == [oldest, newest]


def test_licences_of_pyproject_and_badge_are_the_same() -> None:
    licence = PROJECT["license"]
    assert (ROOT / "LICENSE").read_text().split()[:2] == ["Apache", "License"]
    title = f"<title>licence: {licence}</title>"
    assert title in (ROOT / "docs" / "badges" / "licence.svg").read_text()
    assert (
        f"[![licence: {licence}](docs/badges/licence.svg)](LICENSE)"
        in (ROOT / "README.md").read_text()
    )


def test_ci_runs_the_script_of_the_repository_on_each_python_before_a_release() -> None:
    run = WORKFLOW["jobs"]["run"]
    commands = [step["run"] for step in run["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    (python,) = [step["with"] for step in run["steps"] if "setup-python" in step.get("uses", "")]
    assert python == {"python-version": "${{ matrix.python }}"}
    assert WORKFLOW["jobs"]["release"]["needs"] == "run"
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for job in WORKFLOW["jobs"].values():
        assert job["timeout-minutes"] <= 60


def test_actions_are_pinned_by_commit_and_named_by_version() -> None:
    pattern = re.compile(r"- uses: [\w.-]+/[\w.-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")
    for path in (GITHUB / "workflows").glob("*.yml"):
        lines = [line.strip() for line in path.read_text().splitlines() if "uses:" in line]
        assert lines
        assert [line for line in lines if not pattern.fullmatch(line)] == []


def test_a_release_is_checked_then_built_then_signed_then_published() -> None:
    job = WORKFLOW["jobs"]["release"]
    writes = {"id-token": "write", "attestations": "write"}
    assert job["permissions"] == {"contents": "read", **writes}
    steps = [step.get("uses", step.get("run", "")) for step in job["steps"]]
    order = [
        "make digests ARGS=--check",
        "make audit",
        "make dist",
        "make sbom",
        "actions/attest-build-provenance@",
        "actions/attest@",
        "actions/upload-artifact@",
    ]
    places = [next(i for i, step in enumerate(steps) if text in step) for text in order]
    assert places == sorted(places)
    provenance, published = (job["steps"][places[i]]["with"] for i in (4, 6))
    assert provenance == {"subject-path": "dist/*"}
    assert published["path"] == "dist/"
    # No other job may sign, and none that a pull request starts may write.
    for path in (GITHUB / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        others = [job for name, job in workflow["jobs"].items() if name != "release"]
        assert not any("permissions" in job for job in others)


def test_dependabot_watches_every_kind_of_dependency() -> None:
    settings = yaml.safe_load((GITHUB / "dependabot.yml").read_text())
    assert settings["version"] == 2
    kinds = {update["package-ecosystem"] for update in settings["updates"]}
    assert kinds == {"pip", "github-actions", "docker", "docker-compose", "npm"}
    for update in settings["updates"]:
        assert update["schedule"] == {"interval": "weekly"}
        if update["package-ecosystem"] != "npm":
            assert update["directory"] == "/"
            continue
        packages = [
            path for path in ROOT.glob("*/**/package.json") if "node_modules" not in path.parts
        ]
        folders = {f"/{path.parent.relative_to(ROOT)}" for path in packages}
        assert set(update["directories"]) == {f for f in folders if not f.startswith("/.")}


@pytest.mark.parametrize("kind", ["bug", "feature"])
def test_issue_forms_are_what_github_accepts(kind: str) -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{kind}.yml").read_text())
    assert form.keys() <= {"name", "description", "title", "labels", "assignees", "body"}
    assert form["name"]
    assert form["description"]
    questions = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in questions]
    assert len(ids) == len(set(ids)) > 0
    for field in questions:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
    assert any(field.get("validations", {}).get("required") for field in questions)


def test_links_of_github_files_lead_somewhere() -> None:
    for document in GITHUB.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), target
