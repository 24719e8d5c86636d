"""Looks up known vulnerabilities of the locked packages, with pip-audit.

    python -m deploy.supply.audit

Status 0: none is known; 1: there are some; 3: nothing could be looked up, as in a network that
has a mirror of the packages but not the data. pip-audit itself reports the last as a success.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

LOCKS = Path(__file__).parents[1] / "locks"
# Not train-cpu, whose PyTorch is in no public list, nor dev-*, which no user runs.
# The smallest first: without data, it shows that soonest.
AUDITED = ("build", "serve", "serve-gpu", "train", "tools")
# Vulnerability -> why it does not concern us. A test fails if one has no reason.
ACCEPTED: dict[str, str] = {}
_WITHIN_S = 240.0


class Verdict(NamedTuple):
    """What a report says: the exit status, and lines for people."""

    status: int
    lines: list[str]


def verdict(report: Mapping[str, Any], accepted: Mapping[str, str]) -> Verdict:
    """Judge a report of pip-audit."""
    looked_up, unknown, lines = 0, [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
            continue
        looked_up += 1
        for found in package["vulns"]:
            if accepted.keys().isdisjoint([found["id"], *found.get("aliases", [])]):
                versions = ", ".join(found["fix_versions"]) or "no version yet"
                what = f"{package['name']} {package['version']}: {found['id']}, fixed in {versions}"
                lines.append(what)
    if lines:
        return Verdict(1, sorted(set(lines)))
    if not looked_up:
        return Verdict(3, ["The data about these packages cannot be reached from here."])
    if unknown:
        lines.append(f"Not looked up, since the data has no such version: {', '.join(unknown)}.")
    return Verdict(0, [*lines, f"No vulnerability is known of {looked_up} packages."])


def audit(lock: str) -> Verdict:
    """Run pip-audit on one lock. Without a report, its last line says why nothing was looked up."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps"]
        command += ["--require-hashes", "--progress-spinner", "off", "--timeout", "10"]
        command += ["--format", "json", "--output", str(output)]
        command += ["--requirement", str(LOCKS / f"{lock}.txt")]
        try:
            done = subprocess.run(  # noqa: S603 (pip-audit, with files of this checkout)
                command, capture_output=True, text=True, check=False, timeout=_WITHIN_S
            )
        except subprocess.TimeoutExpired:
            return Verdict(3, [f"pip-audit took longer than {_WITHIN_S:.0f} s."])
        if output.exists() and (text := output.read_text()):
            return verdict(json.loads(text), ACCEPTED)
        return Verdict(3, done.stderr.strip().splitlines()[-1:] or ["pip-audit wrote no report."])


def main() -> int:
    """Audit the locks; the status is that of the module's description."""
    parser = argparse.ArgumentParser(prog="audit.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--without-data", action="store_true", help="succeed if nothing could be looked up"
    )
    options = parser.parse_args()
    worst = 0
    for lock in AUDITED:
        status, lines = audit(lock)
        for line in lines:
            print(f"deploy/locks/{lock}.txt: {line}", file=sys.stderr if status else sys.stdout)
        if status == 3:
            print("KNOWN VULNERABILITIES WERE NOT LOOKED UP.", file=sys.stderr)
            return worst or (0 if options.without_data else 3)
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
