"""The contenders of one model and one number of workers: started, checked, measured in turn."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks import served_models
from benchmarks.check import WrongAnswer, check_images, is_ready
from benchmarks.contenders import Contender
from benchmarks.load import closed_loop, open_loop
from benchmarks.load.result import GeneratorError, Load, run
from benchmarks.medians import median
from benchmarks.paths import ROOT
from benchmarks.server_process import LOAD_CORE, SERVER_CORE, NotStarted, Server
from benchmarks.serving.plan import Plan
from benchmarks.serving.results import Record, Results, Sample
from benchmarks.serving.scenarios import Scenario, matching
from benchmarks.wire_formats import WIRES

_CHECKED_IMAGES = 8


class Group:
    """Contenders that run together; a context manager that starts and stops them."""

    def __init__(
        self,
        *,
        plan: Plan,
        results: Results,
        contenders: Sequence[Contender],
        environments: Mapping[str, Path | None],
        model: str,
        workers: int,
        scenarios: Sequence[Scenario],
        scratch: Path,
    ) -> None:
        self.scenarios = scenarios
        self._plan = plan
        self._results = results
        self._contenders = contenders
        self._environments = environments
        self._model = model
        self._workers = workers
        self._scratch = scratch
        self._servers: dict[str, Server] = {}
        # Length of a right answer by contender and family, which h2load needs to find errors.
        self._answer_bytes: dict[tuple[str, str], int] = {}
        # One worker and the load generator get a core each. More workers share all cores with the
        # generator.
        pinned = workers == 1 and len(os.sched_getaffinity(0)) > 1
        self._server_core = SERVER_CORE if pinned else None
        self._load_core = LOAD_CORE if pinned else None

    def __enter__(self) -> Group:
        """Start the contenders of at least one scenario, one after another."""
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
        """Record the servers' memory and stop them."""
        for name, server in self._servers.items():
            if self._workers == 1:
                record = self._results.record(name)
                total, largest = server.peak_rss_mb()
                record.peak_rss_mb = max(record.peak_rss_mb, total)
                record.peak_worker_rss_mb = max(record.peak_worker_rss_mb, largest)
        self._stop()

    def measure(self, scenario: Scenario, round_: int) -> None:
        """Take one sample of every contender of this scenario; record the failures."""
        for contender in self._contenders:
            if not self._takes(contender, scenario):
                continue
            try:
                sample = self._sample(contender, scenario, round_)
                if sample.failed > self._plan.failed_share * sample.requests:
                    total = sample.failed + sample.requests
                    raise GeneratorError(f"{sample.failed} of {total} requests failed")
            except GeneratorError as error:
                subject = f"{scenario.name}, round {round_ + 1}"
                self._results.record(contender.name).add_problem(subject, str(error))
            else:
                self._results.samples.append(sample)

    def _sample(self, contender: Contender, scenario: Scenario, round_: int) -> Sample:
        """One measurement, with one retry. Raises GeneratorError."""
        for attempt in (1, 2):
            try:
                if contender.kind == "limit":
                    return self._measure_limit(contender, scenario, round_)
                return self._measure(self._servers[contender.name], scenario, round_)
            except GeneratorError as error:
                if attempt == 2:
                    raise
                print(f"! {contender.name}: {scenario.name}: retrying: {error}", flush=True)
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
                models=served_models.repository(self._model),
                venv=self._environments[contender.name],
                scratch=self._scratch,
                workers=self._workers,
                core=self._server_core,
            )
            wire = next(iter(contender.endpoints))
            ready = server.wait_until(
                lambda: is_ready(server, wire), self._plan.ready_within_seconds
            )
        except NotStarted as error:
            record.add_problem(self._start_key(), str(error))
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
        if idle > self._plan.idle_cores:
            record.frozen_when_idle = True
        if record.frozen_when_idle:
            server.freeze()

    def _idle_cores(self, server: Server) -> float:
        """Cores used while idle; measured twice if the first time may include start-up work."""
        for _ in range(2):
            before = server.cpu_seconds()
            time.sleep(self._plan.idle_seconds)
            idle = (server.cpu_seconds() - before) / self._plan.idle_seconds
            if idle <= self._plan.idle_cores:
                break
        return idle

    def _check(self, server: Server, record: Record) -> None:
        """Check the answers to real images, with as many per request as the scenario sends."""
        for family, scenario in {each.family: each for each in self.scenarios}.items():
            if not self._takes(server.contender, scenario):
                continue
            images = served_models.test_images(max(scenario.images, _CHECKED_IMAGES))
            try:
                length = check_images(
                    server,
                    scenario.wire,
                    images,
                    served_models.expected(self._model, images),
                    self._plan.tolerance,
                    per_request=scenario.images,
                )
            except WrongAnswer as error:
                record.add_problem(family, f"disqualified: {error}")
            else:
                self._answer_bytes[server.contender.name, family] = length

    def _measure(self, server: Server, scenario: Scenario, round_: int) -> Sample:
        if not server.is_running():
            raise GeneratorError(f"the server exited: {server.log_end()}")
        frozen = self._results.record(server.contender.name).frozen_when_idle
        if frozen:
            server.thaw()
        try:
            rate = self._rate(server, scenario) if scenario.kind == "open" else 0.0
            self._load(server, scenario, self._plan.warm_up_seconds, rate)
            before, began = server.cpu_seconds(), time.monotonic()
            load = self._load(server, scenario, self._plan.seconds, rate)
            cpu, elapsed = server.cpu_seconds() - before, time.monotonic() - began
            sample = _sample(
                server.contender,
                scenario,
                round_,
                load=load,
                cpu_seconds=cpu,
                elapsed=elapsed,
                rate=rate,
            )
            sample.rss_mb = server.rss_mb()
            return sample
        finally:
            if frozen:
                server.freeze()

    def _load(self, server: Server, scenario: Scenario, seconds: int, rate: float) -> Load:
        contender, wire = server.contender, scenario.wire
        if scenario.kind == "open":
            images = served_models.test_images(scenario.images)
            body = WIRES[contender.encoding(wire)].encode(images)
            return open_loop.load(
                server.port(wire),
                contender.endpoints[wire],
                body._replace(headers=body.headers + server.headers),
                connections=scenario.connections,
                rate=rate,
                seconds=seconds,
                core=self._load_core,
                scratch=self._scratch,
                ca=server.access.ca if server.access else None,
            )
        return closed_loop.load(
            server,
            wire,
            images=scenario.images,
            connections=scenario.connections,
            streams=scenario.streams,
            seconds=seconds,
            answer_bytes=self._answer_bytes.get((contender.name, scenario.family), 0),
            core=self._load_core,
            scratch=self._scratch,
        )

    def _rate(self, server: Server, scenario: Scenario) -> float:
        """A share of the contender's peak in its closed loops so far, or in one run now."""
        closed = Scenario(
            name="", wire=scenario.wire, model=scenario.model, connections=scenario.connections
        )
        family = {each.name for each in self.scenarios if each.family == closed.family}
        rates: dict[str, list[float]] = {}
        for sample in self._results.samples:
            if sample.contender == server.contender.name and sample.scenario in family:
                rates.setdefault(sample.scenario, []).append(sample.requests_per_s)
        peak = max((median(each) for each in rates.values()), default=0.0)
        if not peak:
            load = self._load(server, closed, self._plan.seconds, 0.0)
            peak = load.requests / load.seconds
        return peak * self._plan.open_loop_share

    def _measure_limit(self, contender: Contender, scenario: Scenario, round_: int) -> Sample:
        plan = self._plan
        arguments = [scenario.images, plan.warm_up_seconds, plan.seconds]
        command = [part.format(python=sys.executable) for part in contender.command]
        model = served_models.onnx_file(self._model)
        environment = ["env", f"MODEL_PATH={model}", f"PYTHONPATH={ROOT}"]
        output, _ = run(
            [*environment, *command, *map(str, arguments)],
            self._server_core,
            plan.warm_up_seconds + plan.seconds + 60,
        )
        report = json.loads(output)
        load = Load(
            requests=report["requests"],
            seconds=report["seconds"],
            p50_ms=report["p50_ms"],
            p99_ms=report["p99_ms"],
            failed=0,
        )
        return _sample(
            contender,
            scenario,
            round_,
            load=load,
            cpu_seconds=report["cpu_seconds"],
            elapsed=report["seconds"],
            rate=0.0,
        )

    def _stop(self) -> None:
        for server in self._servers.values():
            server.stop()


def _sample(
    contender: Contender,
    scenario: Scenario,
    round_: int,
    *,
    load: Load,
    cpu_seconds: float,
    elapsed: float,
    rate: float,
) -> Sample:
    return Sample(
        scenario=scenario.name,
        contender=contender.name,
        round=round_,
        requests_per_s=load.requests / load.seconds,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        requests=load.requests,
        failed=load.failed,
        server_cpu_s_per_1000=cpu_seconds / max(1, load.requests) * 1000,
        server_cores=cpu_seconds / elapsed,
        generator_cores=load.generator_cpu_seconds / elapsed,
        rate=rate,
        p99_lateness_ms=load.p99_lateness_ms,
    )
