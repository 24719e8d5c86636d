"""Measures one model over one transport: its peak, its usual latencies, and its overload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.check import check, is_ready
from benchmarks.contenders import OURS, Contender
from benchmarks.floors.session import make_session
from benchmarks.load import arrivals
from benchmarks.load.arrivals import Outcome
from benchmarks.load.prober import Prober
from benchmarks.load.result import GeneratorError
from benchmarks.overload.models import onnx_file, repository, run_seconds
from benchmarks.overload.results import (
    LIGHT,
    NORMAL,
    OVERLOAD,
    Plan,
    Scenario,
    probed,
    recovery_seconds,
    summary,
)
from benchmarks.served_models import test_images
from benchmarks.server_process import LOAD_CORE, SERVER_CORE, Server
from benchmarks.wire_formats import WIRES, Body

# As many as a server with max_connections 1024 takes beside the prober's, and for gRPC as many as
# leave room for some thousand calls in windows of 64 KB.
_CONNECTIONS = {"http": 1000, "grpc": 256}
_ENCODINGS = {"http": "binary", "grpc": "grpc"}
_IN_FLIGHT = (16, 64, 128)
_READY_WITHIN_S = 120.0
_TOLERANCE = 1e-4


def start(models: Path, scratch: Path, *, is_pinned: bool, contender: Contender = OURS) -> Server:
    """A server that answers, with default settings unless told otherwise. Raises NotStarted."""
    server = Server(contender, models=models, venv=None, scratch=scratch, core=core(0, is_pinned))
    server.wait_until(lambda: is_ready(server, "binary"), _READY_WITHIN_S)
    return server


def core(number: int, is_pinned: bool) -> int | None:
    """The server's core (0) or the load's (1); None without pins."""
    return (SERVER_CORE, LOAD_CORE)[number] if is_pinned else None


def request(wire: str, images: int, deadline_s: float) -> Body:
    """A request of some images, with a deadline unless that is 0."""
    body = WIRES[_ENCODINGS[wire]].encode(test_images(images))
    if not deadline_s:
        return body
    if wire == "grpc":
        timeout = ("grpc-timeout", f"{round(deadline_s * 1000)}m")
        return body._replace(headers=(*body.headers, timeout))
    return with_timeout(body, deadline_s)


def with_timeout(body: Body, seconds: float) -> Body:
    """A binary HTTP request with the parameter `timeout`."""
    (name, length) = next(header for header in body.headers if header[0].startswith("inference"))
    head = body.content[: int(length)]
    marker = b'"parameters":{"binary_data_output"'
    if head.count(marker) != 1:
        raise ValueError(f"The request has {marker.decode()} {head.count(marker)} times, not once.")
    timeout = f'"parameters":{{"timeout":{round(seconds * 1e6)},"binary_data_output"'.encode()
    new = head.replace(marker, timeout)
    headers = tuple((key, str(len(new)) if key == name else value) for key, value in body.headers)
    return Body(new + body.content[int(length) :], headers)


class Measurement:
    """Loads for one server and one transport, with and without deadlines."""

    def __init__(
        self, server: Server, model: str, wire: str, plan: Plan, scratch: Path, *, is_pinned: bool
    ) -> None:
        self._server, self._model, self._wire = server, model, wire
        self._plan, self._scratch, self._pinned = plan, scratch, is_pinned
        images = test_images(plan.images)
        encoding = _ENCODINGS[wire]
        self._path = OURS.endpoints[encoding]
        session = make_session(onnx_file(model))
        expected = session.run(["probabilities"], {"image": images})[0].astype(np.float32)
        # Raises WrongAnswer.
        answer = check(server.port(encoding), self._path, encoding, images, expected, _TOLERANCE)
        self._answer_bytes = len(answer) + (5 if wire == "grpc" else 0)

    def _load(self, *phases: arrivals.Phase, deadline_s: float = 0.0) -> list[Outcome]:
        plan = arrivals.Plan(
            port=self._server.port(_ENCODINGS[self._wire]),
            wire=self._wire,
            path=self._path,
            body_file="",
            headers=(),
            connections=_CONNECTIONS[self._wire],
            answer_bytes=self._answer_bytes,
            phases=phases,
            deadline_s=deadline_s,
            pids=self._server.pids(),
        )
        body = request(self._wire, self._plan.images, deadline_s)
        return arrivals.load(plan, body, core=core(1, self._pinned), scratch=self._scratch)

    def scenarios(self) -> Iterator[Scenario]:
        """Measure without, then with deadlines. Raises GeneratorError."""
        plan, run_s = self._plan, run_seconds(onnx_file(self._model))
        closed = [
            arrivals.Phase(f"{number} in flight", plan.peak_s, in_flight=number)
            for number in _IN_FLIGHT
        ]
        _, *peaks = map(
            summary, self._load(arrivals.Phase("warm-up", 1, in_flight=_IN_FLIGHT[0]), *closed)
        )
        peak = max(phase.goodput for phase in peaks)
        if not peak:
            raise GeneratorError(f"No request to {self._model} over {self._wire} was answered.")

        def opened(name: str, seconds: float, share: float) -> arrivals.Phase:
            return arrivals.Phase(name, seconds, rate=share * peak)

        light, normal = map(
            summary,
            self._load(
                opened(f"{LIGHT:.0%} of peak", plan.normal_s, LIGHT),
                opened(f"{NORMAL:.0%} of peak", plan.normal_s, NORMAL),
            ),
        )
        for deadline_s in (0.0, plan.deadline_s):
            prober = Prober(self._server.http_port, core=core(1, self._pinned))
            try:
                overload, recovery = self._load(
                    opened(f"{OVERLOAD:g} times peak", plan.overload_s, OVERLOAD),
                    opened(f"{LIGHT:.0%} of peak, at once", plan.recovery_s, LIGHT),
                    deadline_s=deadline_s,
                )
            finally:
                probes = prober.stop()
            yield Scenario(
                model=self._model,
                wire=self._wire,
                deadline_s=deadline_s,
                run_ms=run_s * 1000,
                peaks=peaks,
                light=light,
                normal=normal,
                overload=summary(overload),
                recovery=summary(recovery),
                recovery_s=recovery_seconds(recovery, light.p99_ms),
                probed=[probed(path, each) for path, each in probes.items()],
            )


def measure(
    models: tuple[str, ...], wires: tuple[str, ...], plan: Plan, scratch: Path, *, is_pinned: bool
) -> Iterator[Scenario]:
    """One server per model; each transport without and with deadlines."""
    for model in models:
        server = start(repository(model), scratch, is_pinned=is_pinned)
        try:
            for wire in wires:
                yield from Measurement(
                    server, model, wire, plan, scratch, is_pinned=is_pinned
                ).scenarios()
        finally:
            server.stop()
