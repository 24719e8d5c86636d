"""One run: servers are started, checked, and measured in turn, round after round.

All contenders of a group of scenarios (one model, one number of workers) run at the same time,
but one alone is asked at a time, and a round asks each of them in every scenario: A B C, A B C,
so that a machine that gets slower does so for all. Those that use CPU with nobody asking are
stopped meanwhile.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks import lines, machine, venvs
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.group import Group
from benchmarks.results import Record, Results, write
from benchmarks.scenarios import SCENARIOS, Scenario, matching
from benchmarks.settings import Settings


def run(settings: Settings, known: Sequence[Contender] = CONTENDERS) -> Path:
    """Measure everything that the settings ask for; the file, which is written as it grows."""
    described = machine.describe()
    now = datetime.datetime.now(datetime.UTC)
    scenarios = [each for each in SCENARIOS if matching(each.name, settings.scenarios)]
    contenders = [each for each in known if matching(each.name, settings.contenders)]
    results = Results(now.isoformat(timespec="seconds"), described, _as_json(settings), scenarios)
    path = machine.results_file(settings.results, now, described)
    prepared = {each.name: _prepare(each, results, settings.install) for each in contenders}
    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as scratch:
        for (model, workers), members in groupby(sorted(scenarios, key=_group), key=_group):
            folder = Path(scratch) / f"{model}-{workers}"
            folder.mkdir()
            group = Group(
                settings, results, contenders, prepared, model, workers, list(members), folder
            )
            with group:
                for round_ in range(settings.rounds):
                    for scenario in group.scenarios:
                        _say(results, scenario, round_)
                        group.measure(scenario, round_)
                        write(results, path)
    described["load_average_after"] = [round(value, 2) for value in os.getloadavg()]
    results.finished = True
    write(results, path)
    return path


def _group(scenario: Scenario) -> tuple[str, int]:
    return scenario.model, scenario.workers


def _as_json(settings: Settings) -> dict[str, object]:
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(settings).items()
        if name != "results"
    }


def _say(results: Results, scenario: Scenario, round_: int) -> None:
    print(f"{time.strftime('%H:%M:%S')} round {round_ + 1}: {scenario.name}", flush=True)


def _prepare(contender: Contender, results: Results, install: bool) -> Path | None:
    """Install a rival, and note what is known before it runs; its virtual environment."""
    record = Record(contender.name, contender.title, contender.kind, contender.note)
    results.contenders.append(record)
    venv, python = None, Path(sys.executable)
    try:
        if contender.requirements:
            venv = venvs.environment(
                contender.name, contender.requirements, contender.interpreter, install=install
            )
            python = venv / "bin" / "python"
            record.install_mb = venvs.size_mb(venv)
        elif contender.kind == "ours" and install:
            record.install_mb = venvs.size_mb(venvs.own_environment())
    except venvs.NotInstalled as error:
        record.tell("install", str(error))
        return None
    if contender.folder:
        record.lines_of_code = lines.lines_of_code(contender.folder)
    record.versions = venvs.versions(python, contender.packages)
    return venv
