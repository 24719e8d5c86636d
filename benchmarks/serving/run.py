"""One run: starts the servers, checks their answers, and measures them round by round.

Scenarios with the same model and number of workers form a group, whose contenders run at the same
time. Only one of them is under load at a time, and every round covers all of them (A B C, A B C,
...), so that a change of the machine's speed affects all alike.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks import host
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.json_file import write_json
from benchmarks.serving import rival_environments
from benchmarks.serving.group import Group
from benchmarks.serving.lines_of_code import lines_of_code
from benchmarks.serving.plan import Plan
from benchmarks.serving.results import Record, Results
from benchmarks.serving.scenarios import SCENARIOS, Scenario, matching


def run(plan: Plan, candidates: Sequence[Contender] = CONTENDERS) -> Path:
    """Measure what the plan names; returns the results file, which is rewritten after each step."""
    now, machine = datetime.datetime.now(datetime.UTC), host.describe()
    scenarios = [scenario for scenario in SCENARIOS if matching(scenario.name, plan.scenarios)]
    contenders = [
        contender for contender in candidates if matching(contender.name, plan.contenders)
    ]
    results = Results(
        date=now.isoformat(timespec="seconds"),
        machine=machine,
        settings=_as_json(plan),
        scenarios=scenarios,
    )
    path = host.results_file(plan.results, now, machine)
    environments = {
        contender.name: _prepare(contender, results, plan.install) for contender in contenders
    }

    def group_key(scenario: Scenario) -> tuple[str, int]:
        return scenario.model, scenario.workers

    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as scratch:
        for (model, workers), members in groupby(sorted(scenarios, key=group_key), key=group_key):
            folder = Path(scratch) / f"{model}-{workers}"
            folder.mkdir()
            group = Group(
                plan=plan,
                results=results,
                contenders=contenders,
                environments=environments,
                model=model,
                workers=workers,
                scenarios=list(members),
                scratch=folder,
            )
            with group:
                for round_ in range(plan.rounds):
                    for scenario in group.scenarios:
                        clock = time.strftime("%H:%M:%S")
                        print(f"{clock} round {round_ + 1}: {scenario.name}", flush=True)
                        group.measure(scenario, round_)
                        write_json(path, results)
    results.machine = dataclasses.replace(machine, load_average_after=host.load_average())
    results.finished = True
    write_json(path, results)
    return path


def _as_json(plan: Plan) -> dict[str, object]:
    fields = dataclasses.asdict(plan)
    del fields["results"]
    return fields


def _prepare(contender: Contender, results: Results, install: bool) -> Path | None:
    """Install a rival and record its versions and sizes; returns its virtual environment."""
    record = Record(
        name=contender.name, title=contender.title, kind=contender.kind, note=contender.note
    )
    results.contenders.append(record)
    venv, python = None, Path(sys.executable)
    try:
        if contender.requirements:
            venv = rival_environments.environment(
                contender.name, contender.requirements, contender.interpreter, install=install
            )
            python = venv / "bin" / "python"
            record.install_mb = rival_environments.size_mb(venv)
        elif contender.kind == "ours" and install:
            own = rival_environments.own_environment()
            record.install_mb = rival_environments.size_mb(own)
    except rival_environments.NotInstalled as error:
        record.add_problem("install", str(error))
        return None
    if contender.folder:
        record.lines_of_code = lines_of_code(contender.folder)
    record.versions = rival_environments.versions(python, contender.packages)
    return venv
