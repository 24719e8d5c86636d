"""The contenders of one model and one number of workers: running, checked, measured in turn."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks import models
from benchmarks.check import WrongAnswer, ask, check
from benchmarks.contenders import Contender
from benchmarks.load import h2load, open_loop, wrk
from benchmarks.load.result import Load, LoadError, run
from benchmarks.processes import NotStarted, Server
from benchmarks.results import Record, Results, Sample
from benchmarks.scenarios import Scenario, matching
from benchmarks.settings import ROOT, Settings
from benchmarks.statistics import median
from benchmarks.wire import WIRES

_CHECKED_IMAGES = 8
_FRAME = 5
_SERVER_CORE, _LOAD_CORE = 0, 1


class Group:
    """Contenders that are up together; a context manager that starts and stops them."""

    def __init__(
        self,
        settings: Settings,
        results: Results,
        contenders: Sequence[Contender],
        environments: Mapping[str, Path | None],
        model: str,
        workers: int,
        scenarios: Sequence[Scenario],
        scratch: Path,
    ) -> None:
        self.scenarios = scenarios
        self._settings = settings
        self._results = results
        self._contenders = contenders
        self._environments = environments
        self._model = model
        self._workers = workers
        self._scratch = scratch
        self._servers: dict[str, Server] = {}
        # Length of a right answer, by contender and family: how h2load's are told from errors.
        self._answer_bytes: dict[tuple[str, str], int] = {}
        # One worker and the load generator get a core each. More workers share all cores with
        # it, and with one core there is nothing to keep apart.
        pinned = workers == 1 and len(os.sched_getaffinity(0)) > 1
        self._server_core = _SERVER_CORE if pinned else None
        self._load_core = _LOAD_CORE if pinned else None

    def __enter__(self) -> Group:
        """Start all that are asked for anything, one after another."""
        try:
            for contender in self._contenders:
                if contender.kind != "limit" and any(
                    self._takes(contender, scenario) for scenario in self.scenarios
                ):
                    self._start(contender)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Note how large the servers grew, and stop them."""
        for name, server in self._servers.items():
            if self._workers == 1:
                record = self._results.record(name)
                total, largest = server.peak_rss_mb()
                record.peak_rss_mb = max(record.peak_rss_mb, total)
                record.peak_worker_rss_mb = max(record.peak_worker_rss_mb, largest)
        self._stop()

    def measure(self, scenario: Scenario, round_: int) -> None:
        """One sample of every contender that takes this scenario; one that failed is no sample."""
        for contender in self._contenders:
            if not self._takes(contender, scenario):
                continue
            try:
                sample = self._sample(contender, scenario, round_)
                if sample.failed > self._settings.failed_share * sample.requests:
                    total = sample.failed + sample.requests
                    raise LoadError(f"{sample.failed} of {total} requests failed")
            except LoadError as error:
                what = f"{scenario.name}, round {round_ + 1}"
                self._results.record(contender.name).tell(what, str(error))
            else:
                self._results.samples.append(sample)

    def _sample(self, contender: Contender, scenario: Scenario, round_: int) -> Sample:
        """One measurement; a second try where the first fails. Raises LoadError."""
        for attempt in (1, 2):
            try:
                if contender.kind == "limit":
                    return self._measure_limit(contender, scenario, round_)
                return self._measure(self._servers[contender.name], scenario, round_)
            except LoadError as error:
                if attempt == 2:
                    raise
                print(f"! {contender.name}: {scenario.name}: tried again: {error}", flush=True)
        raise AssertionError("The loop above returns or raises.")

    def _takes(self, contender: Contender, scenario: Scenario) -> bool:
        problems = self._results.record(contender.name).problems
        return (
            scenario.wire in contender.endpoints
            and matching(scenario.name, contender.scenarios)
            and not {"install", self._start_key(), scenario.family} & problems.keys()
        )

    def _start_key(self) -> str:
        return f"start, {self._model}, {self._workers} worker{'s' * (self._workers > 1)}"

    def _start(self, contender: Contender) -> None:
        record = self._results.record(contender.name)
        try:
            server = self._servers[contender.name] = Server(
                contender,
                models=models.repository(self._model),
                venv=self._environments[contender.name],
                scratch=self._scratch,
                workers=self._workers,
                core=self._server_core,
            )
            ready = server.wait_until(
                lambda: _is_ready(server), self._settings.ready_within_seconds
            )
        except NotStarted as error:
            record.tell(self._start_key(), str(error))
            if started := self._servers.pop(contender.name, None):
                started.stop()
            return
        if self._workers == 1:
            record.ready_seconds.append(ready)
        self._check(server, record)
        idle = self._idle_cores(server)
        record.idle_cores.append(idle)
        print(
            f"{contender.name} ({self._model}, {self._workers}w): ready in {ready:.2f} s, "
            f"idle at {idle:.1%} of a core",
            flush=True,
        )
        if idle > self._settings.idle_cores:
            record.frozen_when_idle = True
        if record.frozen_when_idle:
            server.freeze()

    def _idle_cores(self, server: Server) -> float:
        """CPU that it uses with nobody asking; a second look if the first saw its start's end."""
        for _ in range(2):
            before = server.cpu_seconds()
            time.sleep(self._settings.idle_seconds)
            idle = (server.cpu_seconds() - before) / self._settings.idle_seconds
            if idle <= self._settings.idle_cores:
                break
        return idle

    def _check(self, server: Server, record: Record) -> None:
        """Compare the answers to real images, as many in a request as a scenario will send."""
        contender = server.contender
        for family, scenario in {each.family: each for each in self.scenarios}.items():
            if not self._takes(contender, scenario):
                continue
            count = scenario.images if scenario.images > 1 else _CHECKED_IMAGES
            images = models.test_images(count)
            wanted = models.expected(self._model, images)
            port, path = server.port(scenario.wire), contender.endpoints[scenario.wire]
            try:
                # The last request asked is the one that will be timed.
                for start in reversed(range(0, count, scenario.images)):
                    part = slice(start, start + scenario.images)
                    content = check(
                        port,
                        path,
                        contender.encoding(scenario.wire),
                        images[part],
                        wanted[part],
                        self._settings.tolerance,
                    )
            except WrongAnswer as error:
                record.tell(family, f"disqualified: {error}")
            else:
                self._answer_bytes[contender.name, family] = len(content)

    def _measure(self, server: Server, scenario: Scenario, round_: int) -> Sample:
        if not server.is_running():
            raise LoadError(f"the server has ended: {server.last_words()}")
        frozen = self._results.record(server.contender.name).frozen_when_idle
        if frozen:
            server.thaw()
        try:
            rate = self._rate(server, scenario) if scenario.kind == "open" else 0.0
            self._load(server, scenario, self._settings.warm_up_seconds, rate)
            before, began = server.cpu_seconds(), time.monotonic()
            load = self._load(server, scenario, self._settings.seconds, rate)
            used, took = server.cpu_seconds() - before, time.monotonic() - began
            sample = _sample(server.contender, scenario, round_, load, used, took, rate)
            sample.rss_mb = server.rss_mb()
            return sample
        finally:
            if frozen:
                server.freeze()

    def _load(self, server: Server, scenario: Scenario, seconds: int, rate: float) -> Load:
        contender, wire = server.contender, scenario.wire
        body = WIRES[contender.encoding(wire)].encode(models.test_images(scenario.images))
        port, path = server.port(wire), contender.endpoints[wire]
        url = f"http://127.0.0.1:{port}{path}"
        core, scratch = self._load_core, self._scratch
        if scenario.kind == "open":
            return open_loop.load(
                port, path, body, connections=scenario.connections, rate=rate,
                seconds=seconds, core=core, scratch=scratch,
            )  # fmt: skip
        if wire == "grpc":
            answer_bytes = _FRAME + self._answer_bytes[contender.name, scenario.family]
            return h2load.load(
                url, body, connections=scenario.connections, streams=scenario.streams,
                seconds=seconds, answer_bytes=answer_bytes, core=core, scratch=scratch,
            )  # fmt: skip
        return wrk.load(
            url, body, connections=scenario.connections, seconds=seconds,
            core=core, scratch=scratch,
        )  # fmt: skip

    def _rate(self, server: Server, scenario: Scenario) -> float:
        """A share of the contender's own peak: of its closed loops so far, or of one made now."""
        closed = Scenario("", scenario.wire, scenario.model, scenario.connections)
        family = {each.name for each in self.scenarios if each.family == closed.family}
        rates: dict[str, list[float]] = {}
        for sample in self._results.samples:
            if sample.contender == server.contender.name and sample.scenario in family:
                rates.setdefault(sample.scenario, []).append(sample.requests_per_s)
        peak = max((median(each) for each in rates.values()), default=0.0)
        if not peak:
            load = self._load(server, closed, self._settings.seconds, 0.0)
            peak = load.requests / load.seconds
        return peak * self._settings.open_loop_share

    def _measure_limit(self, contender: Contender, scenario: Scenario, round_: int) -> Sample:
        settings = self._settings
        arguments = [scenario.images, settings.warm_up_seconds, settings.seconds]
        command = [part.format(python=sys.executable) for part in contender.command]
        environment = ["env", f"MODEL_PATH={models.onnx_file(self._model)}", f"PYTHONPATH={ROOT}"]
        output, _ = run(
            [*environment, *command, *map(str, arguments)],
            self._server_core,
            settings.warm_up_seconds + settings.seconds + 60,
        )
        told = json.loads(output)
        load = Load(told["requests"], told["seconds"], told["p50_ms"], told["p99_ms"], 0)
        return _sample(contender, scenario, round_, load, told["cpu_seconds"], told["seconds"], 0.0)

    def _stop(self) -> None:
        for server in self._servers.values():
            server.stop()


def _sample(
    contender: Contender,
    scenario: Scenario,
    round_: int,
    load: Load,
    used: float,
    took: float,
    rate: float,
) -> Sample:
    return Sample(
        scenario.name,
        contender.name,
        round_,
        load.requests / load.seconds,
        load.p50_ms,
        load.p99_ms,
        load.requests,
        load.failed,
        used / max(1, load.requests) * 1000,
        used / took,
        load.generator_cpu_seconds / took,
        rate=rate,
        p99_lateness_ms=load.p99_lateness_ms,
    )


def _is_ready(server: Server) -> bool:
    """Whether the first of its endpoints answers one image with success."""
    wire = next(iter(server.contender.endpoints))
    encoding = server.contender.encoding(wire)
    body = WIRES[encoding].encode(models.test_images(1))
    try:
        ask(server.port(wire), server.contender.endpoints[wire], encoding, body)
    except (OSError, WrongAnswer):
        return False
    return True
