"""mnist-serve --check: examines an installation, with the settings that the server would have."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from service import SERVER_NAME, __version__
from service.check.finding import Finding, Severity, count, error, ok
from service.observe.logs import printable
from service.runtime.packages import conflicting_packages, installed_packages
from service.settings import Settings, SettingsError, load

_LEVEL, _SUBJECT = 9, 14  # columns
_WIDEST = 100
_COLOURS = {Severity.OK: "32", Severity.WARNING: "33", Severity.ERROR: "31"}


def check(arguments: Sequence[str] | None = None) -> int:
    """Print what was found. Returns the severity of the worst finding, 0 to 2."""
    logging.getLogger().addHandler(logging.NullHandler())  # findings are all that is printed
    problems: list[SettingsError] = []
    settings = load(arguments, problems=problems)
    findings = [
        error(
            "settings", str(problem), "Correct or remove it; mnist-serve --help lists all settings."
        )
        for problem in problems
    ]
    late: list[str] = []  # models that are still being loaded
    # A setting that was refused has its default, and nothing is said about that.
    refused = {name for problem in problems for name in problem.settings}
    findings += [each for each in _examine(settings, refused, late) if each.subject not in refused]
    status = max(finding.severity for finding in findings)
    if sys.stdout is not None:  # the shell may have closed it; the status says enough then
        text = report(findings, colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        # Names of any script. A traceback would have the status of a warning.
        print(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding))
        if late:  # Python would wait for their threads
            sys.stdout.flush()
    if late:
        os._exit(status)
    return status


def _examine(settings: Settings, refused: AbstractSet[str], late: list[str]) -> Iterator[Finding]:
    """Everything but the settings themselves, and what depends on those that were refused.

    Models that take too long are added to `late`.
    """
    if conflict := conflicting_packages():
        problem, _, remedy = conflict.partition("; ")
        yield error("packages", f"{problem}.", f"{remedy[:1].upper()}{remedy[1:]}")
        return  # the other checks import ONNX Runtime
    # What they import may be missing or broken.
    try:
        from service.check import machine
        from service.supervisor import check_models
    except Exception as failed:  # whatever a broken package raises
        yield _unusable(failed)
        return
    if "host" not in refused:
        yield from machine.network(settings)
    yield from machine.tls(settings)
    yield from machine.access(settings)
    yield machine.cores(settings)
    yield machine.descriptors(settings)
    yield from machine.tasks(settings)
    yield machine.shared_memory(settings)
    temporary = machine.temporary_folder(settings)
    yield temporary
    if "models" in refused:
        return
    try:
        check_models(settings)
    except SettingsError as missing:
        problem, _, remedy = str(missing).partition(". ")
        yield error("models", f"{problem.rstrip('.')}.", remedy or "Choose one that is.")
        return
    if temporary.severity is Severity.ERROR:
        return  # metrics cannot be imported
    try:
        from service.check import models
    except Exception as failed:
        yield _unusable(failed)
        return
    yield ok("packages", f"{', '.join(installed_packages())}.")
    loaded = models.load_models(settings, settings.check_seconds)
    late += loaded.late
    yield machine.memory(settings, loaded.total_bytes)
    yield models.provider(settings, loaded)
    yield from models.repository(settings, loaded)
    yield machine.clock(loaded.files)


def _unusable(failed: Exception) -> Finding:
    return error(
        "packages",
        f"The server cannot be imported: {type(failed).__name__}: {failed}.",
        f"Install it again: pip install --force-reinstall '{SERVER_NAME}[cpu]' (or [gpu]).",
    )


def report(findings: Sequence[Finding], *, colours: bool) -> str:
    """The findings as a table for a terminal, the worst last, and a verdict."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines = [f"{SERVER_NAME} {__version__}", ""]
    for finding in sorted(findings, key=lambda finding: finding.severity):
        level = f"{finding.severity.name.lower():<{_LEVEL}}"
        if colours:
            level = f"\033[{_COLOURS[finding.severity]}m{level}\033[0m"
        indent = " " * (_LEVEL + _SUBJECT)
        texts = [
            printable(finding.text),
            *([f"-> {printable(finding.remedy)}"] * bool(finding.remedy)),
        ]
        wrapped = [
            line
            for text in texts
            for line in textwrap.wrap(
                text, max(width - len(indent), 40), break_on_hyphens=False, break_long_words=False
            )
        ]
        subject = printable(finding.subject)
        if len(subject) < _SUBJECT:
            subject, first = f"{subject:<{_SUBJECT}}{wrapped[0]}", 1
        else:
            first = 0
        lines += [level + subject, *(indent + line for line in wrapped[first:])]
    errors, warnings = (
        sum(finding.severity is severity for finding in findings)
        for severity in (Severity.ERROR, Severity.WARNING)
    )
    found = f"{count(errors, 'error')}, {count(warnings, 'warning')}"
    if errors:
        verdict = f"{found}: the server would not start, or not be ready."
    elif warnings:
        verdict = f"{found}: the server would start, but not as it should be."
    else:
        verdict = "Nothing to correct."
    return "\n".join([*lines, "", verdict])
