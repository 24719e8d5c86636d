"""Runs two checkouts of the server and loads them in turn.

Strategy: both servers of a model run at the same time, pinned to the same core, but only one is
awake; the other is suspended (SIGSTOP). Each round asks both in every scenario, in the order
before-after in even rounds and after-before in odd ones. So a machine that becomes slower affects
both sides alike, and the ratio within a round says more than the rates do. Each round starts both
servers again: where a process has its memory makes it up to 3 % faster or slower for all its life.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path

from benchmarks import host, served_models
from benchmarks.check import check_images, is_ready
from benchmarks.compare.results import SIDES, Checkout, Comparison, Sample, Side
from benchmarks.contenders import OURS, Contender
from benchmarks.json_file import write_json
from benchmarks.load import closed_loop
from benchmarks.load.result import GeneratorError, Load
from benchmarks.paths import ROOT
from benchmarks.server_process import LOAD_CORE, SERVER_CORE, Server
from benchmarks.serving.rival_environments import versions
from benchmarks.serving.scenarios import SCENARIOS, Scenario, matching

_PACKAGES = ("granian", "grpcio", "uvloop")
_CHECKED_IMAGES = 8
_TOLERANCE = 1e-4
_FAILED_SHARE = 0.001
_READY_WITHIN_S = 60.0
_WARM_UP_S = 1
_ATTEMPTS = 3  # per sample; a busy machine may cut off requests at its end


class NotACheckout(ValueError):
    """A folder is not a checkout that can be measured; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    """A checkout and the interpreter that runs it."""

    path: Path
    python: Path


def comparable(patterns: Sequence[str] = ()) -> list[Scenario]:
    """The closed loops on one worker whose names match; bulk requests only by their names."""
    return [
        scenario
        for scenario in SCENARIOS
        if scenario.workers == 1
        and scenario.kind == "closed"
        and matching(scenario.name, patterns)
        and (patterns or scenario.images == 1)
    ]


def find_tree(path: Path) -> Tree:
    """The checkout in a folder, with its own virtual environment. Raises NotACheckout."""
    path = path.resolve()
    tree = Tree(path, Path(sys.executable) if path == ROOT else path / ".venv" / "bin" / "python")
    if not tree.python.exists():
        raise NotACheckout(f"{tree.python} is missing: install the checkout into its own .venv.")
    code = "import service; print(service.__file__)"
    done = subprocess.run(  # noqa: S603 (the Python of a checkout that the user named)
        [str(tree.python), "-c", code],
        cwd=path,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout.startswith(f"{path}{os.sep}"):
        raise NotACheckout(
            f"{tree.python} does not import `service` from {path}: "
            + (done.stdout or done.stderr).strip()[-300:]
        )
    return tree


def run(
    before: Tree,
    after: Tree,
    *,
    scenarios: Sequence[Scenario],
    rounds: int,
    seconds: int,
    folder: Path,
) -> Path:
    """Measure; returns the results file, which is rewritten after each pair of samples.

    Raises NotStarted, or WrongAnswer if a server's probabilities are wrong.
    """
    now, machine = datetime.datetime.now(datetime.UTC), host.describe()
    comparison = Comparison(
        date=now.isoformat(timespec="seconds"),
        machine=machine,
        before=_describe(before),
        after=_describe(after),
        rounds=rounds,
        seconds=seconds,
        scenarios=list(scenarios),
    )
    path = host.results_file(folder, now, machine, "compare")
    trees: Mapping[Side, Tree] = {"before": before, "after": after}
    pinned = len(os.sched_getaffinity(0)) > 1
    server_core, load_core = (SERVER_CORE, LOAD_CORE) if pinned else (None, None)

    def by_model(scenario: Scenario) -> str:
        return scenario.model

    with tempfile.TemporaryDirectory(prefix="mnist-compare-") as temporary:
        scratch = Path(temporary)
        for model, group in groupby(sorted(scenarios, key=by_model), key=by_model):
            members = list(group)
            for round_ in range(rounds):
                order = SIDES if round_ % 2 == 0 else tuple(reversed(SIDES))
                with ExitStack() as stack:
                    servers = {
                        side: stack.enter_context(
                            _serving(trees[side], side, model, scratch, server_core)
                        )
                        for side in order
                    }
                    loads = {
                        side: _Loads(servers[side], members, load_core, scratch) for side in order
                    }
                    for scenario in members:
                        pair: dict[Side, Sample] = {}
                        for side in order:
                            try:
                                pair[side] = loads[side].sample(scenario, side, round_, seconds)
                            except GeneratorError as error:
                                problem = f"{scenario.name}, {side}, round {round_ + 1}: {error}"
                                comparison.problems.append(problem)
                                print(f"!! {problem}", flush=True)
                        comparison.samples += pair.values()
                        write_json(path, comparison)
                        if len(pair) == 2:
                            _print(round_, scenario, pair)
    comparison.machine = dataclasses.replace(machine, load_average_after=host.load_average())
    comparison.finished = True
    write_json(path, comparison)
    return path


class _Loads:
    """The loads on one server; checks and warms up every scenario first, then suspends it."""

    def __init__(
        self, server: Server, scenarios: Sequence[Scenario], core: int | None, scratch: Path
    ) -> None:
        self._server = server
        self._core = core
        self._scratch = scratch
        self._answer_bytes: dict[str, int] = {}  # by family; h2load needs it to find errors
        for scenario in scenarios:
            if scenario.family not in self._answer_bytes:
                images = served_models.test_images(max(scenario.images, _CHECKED_IMAGES))
                self._answer_bytes[scenario.family] = check_images(
                    server,
                    scenario.wire,
                    images,
                    served_models.expected(scenario.model, images),
                    _TOLERANCE,
                    per_request=scenario.images,
                )
            with suppress(GeneratorError):  # a lasting failure shows in the samples
                self._load(scenario, _WARM_UP_S)
        server.freeze()

    def sample(self, scenario: Scenario, side: Side, round_: int, seconds: int) -> Sample:
        """One load, with retries. Raises GeneratorError."""
        server = self._server
        server.thaw()
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                cpu = server.cpu_seconds()
                try:
                    load = self._load(scenario, seconds)
                    break
                except GeneratorError:
                    if attempt == _ATTEMPTS or not server.is_running():
                        raise
            return Sample(
                scenario=scenario.name,
                side=side,
                round=round_,
                requests_per_s=load.requests / load.seconds,
                p50_ms=load.p50_ms,
                p99_ms=load.p99_ms,
                cpu_us_per_request=(server.cpu_seconds() - cpu) / load.requests * 1e6,
            )
        finally:
            server.freeze()

    def _load(self, scenario: Scenario, seconds: int) -> Load:
        load = closed_loop.load(
            self._server,
            scenario.wire,
            images=scenario.images,
            connections=scenario.connections,
            streams=scenario.streams,
            seconds=seconds,
            answer_bytes=self._answer_bytes[scenario.family],
            core=self._core,
            scratch=self._scratch,
        )
        if load.failed > _FAILED_SHARE * load.requests:
            total = load.failed + load.requests
            raise GeneratorError(f"{load.failed} of {total} requests failed")
        return load


@contextmanager
def _serving(
    tree: Tree, side: Side, model: str, scratch: Path, core: int | None
) -> Iterator[Server]:
    # Both trees start with the same command and settings.
    contender: Contender = dataclasses.replace(OURS, name=f"{side}-{model}")
    with Server(
        contender,
        models=served_models.repository(model),
        venv=None,
        scratch=scratch,
        core=core,
        tree=tree.path,
        python=tree.python,
    ) as server:
        server.wait_until(lambda: is_ready(server, "raw"), _READY_WITHIN_S)
        yield server


def _describe(tree: Tree) -> Checkout:
    output = subprocess.run(  # noqa: S603 (as above)
        [str(tree.python), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return Checkout(
        tree=str(tree.path),
        revision=host.revision(tree.path),
        python=output.removeprefix("Python ").strip(),
        versions=versions(tree.python, _PACKAGES),
    )


def _print(round_: int, scenario: Scenario, pair: Mapping[Side, Sample]) -> None:
    before, after = pair["before"].requests_per_s, pair["after"].requests_per_s
    print(
        f"{time.strftime('%H:%M:%S')} round {round_ + 1}: {scenario.name}: "
        f"{before:,.0f}/s before, {after:,.0f}/s after, ratio {after / before:.3f}",
        flush=True,
    )
