"""deploy/supply/audit.py: a report counts only if something was looked up."""

from __future__ import annotations

from typing import Any

from deploy.supply.audit import ACCEPTED, AUDITED, LOCKS, verdict

SKIPPED = {"name": "flask", "skip_reason": "Dependency not found on PyPI and could not be audited"}
CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": "x"}
BAD = {"name": "jinja2", "version": "1.0", "vulns": [FOUND]}


def report(*dependencies: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(dependencies), "fixes": []}


def test_without_data_the_audit_does_not_pass() -> None:
    assert verdict(report(SKIPPED, SKIPPED), {}).status == 3
    assert verdict(report(), {}).status == 3


def test_a_vulnerability_is_named_with_the_version_that_fixes_it() -> None:
    assert verdict(report(CLEAN, BAD, SKIPPED), {}) == (
        1,
        ["jinja2 1.0: PYSEC-1, fixed in 2.0"],
    )


def test_one_that_does_not_concern_us_is_accepted_by_any_of_its_names() -> None:
    for name in ("PYSEC-1", "CVE-1"):
        assert verdict(report(BAD), {name: "why"}).status == 0
    assert verdict(report(BAD), {"CVE-2": "why"}).status == 1


def test_packages_that_the_data_lacks_are_named() -> None:
    status, lines = verdict(report(CLEAN, SKIPPED), {})
    assert status == 0
    assert lines == [
        "Not looked up, since the data has no such version: flask.",
        "No vulnerability is known of 1 packages.",
    ]


def test_what_is_audited_exists_and_what_is_accepted_has_a_reason() -> None:
    assert all((LOCKS / f"{lock}.txt").is_file() for lock in AUDITED)
    assert all(ACCEPTED.values())
