"""Measures health, memory and deadlines while the server is abused."""

from __future__ import annotations

import dataclasses
import http.client
import math
import shutil
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from benchmarks.check import ask
from benchmarks.contenders import OURS
from benchmarks.load.arrivals import percentile
from benchmarks.load.attacks import attack
from benchmarks.load.attacks.callers import Target, exchange
from benchmarks.load.attacks.calls import Calls
from benchmarks.load.attacks.long_runs import infer_body
from benchmarks.load.prober import Prober
from benchmarks.load.result import GeneratorError
from benchmarks.overload.measure import core, start
from benchmarks.overload.models import write_loop, write_slow, write_transformer
from benchmarks.overload.results import Abuse, Plan, Timing, probed
from benchmarks.paths import ROOT
from benchmarks.served_models import test_images
from benchmarks.server_process import Server, machine_cpu_seconds
from benchmarks.wire_formats import WIRES

_WARM_UP = 100  # ordinary requests of each kind before memory is measured
_RATES = {"/v2/health/live": 50.0, "/v2/health/ready": 50.0}
# The attack that takes all connections of the HTTP port: health is then probed on its own port.
_IDLE = "idle-http-connections"
_SETTINGS = {_IDLE: {"MNIST_MAX_CONNECTIONS": "64", "MNIST_HEALTH_PORT": "{spare_port}"}}


def models(folder: Path) -> Path:
    """A repository with the shipped model, one of 50 ms, a loop of 8 s and a transformer."""
    shutil.copytree(ROOT / "models" / "mnist" / "2", folder / "mnist" / "1", dirs_exist_ok=True)
    for name, write in (
        ("slow", lambda file: write_slow(file, 0.05)),
        ("loop", lambda file: write_loop(file, 8.0, 10_000)),
        ("transformer", write_transformer),
    ):
        version = folder / name / "1"
        version.mkdir(parents=True)
        write(version / "model.onnx")
        batching = "true" if name == "slow" else "false"
        (version / "model.json").write_text(f'{{"batching": {batching}}}\n')
    return folder


def measure(names: Sequence[str], plan: Plan, scratch: Path, *, is_pinned: bool) -> Iterator[Abuse]:
    """Each attack on a server of its own. Raises NotStarted."""
    folder = models(scratch / "models")
    for name in names:
        environment = {**OURS.environment, **_SETTINGS.get(name, {})}
        contender = dataclasses.replace(OURS, environment=environment)
        server = start(folder, scratch, is_pinned=is_pinned, contender=contender)
        try:
            yield _measure(server, name, plan, is_pinned=is_pinned)
        finally:
            server.stop()


def _measure(server: Server, name: str, plan: Plan, *, is_pinned: bool) -> Abuse:
    _warm_up(server)
    before = largest_mb(server, "VmRSS")
    for pid in server.pids():
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM
    result = Abuse(name, {}, [], before, before, before)
    on_load_core = core(1, is_pinned)
    port = server.spare_port if name == _IDLE else server.http_port
    prober = Prober(port, core=on_load_core, rates=_RATES, fresh=name == _IDLE)
    try:
        time.sleep(0.5)
        target = Target(server.http_port, server.grpc_port)
        begin, machine, of_server = perf_counter(), machine_cpu_seconds(), server.cpu_seconds()
        result.did, of_attack = attack(name, target, plan.abuse_s, on_load_core)
        others = machine_cpu_seconds() - machine - of_attack - server.cpu_seconds() + of_server
        result.other_cores = others / (perf_counter() - begin)
    except GeneratorError as error:
        result.problem = str(error)
    finally:
        probes = prober.stop()
    result.probed = [probed(path, each) for path, each in sorted(probes.items())]
    result.peak_mb = largest_mb(server, "VmHWM")
    time.sleep(plan.rest_s)
    result.after_mb = largest_mb(server, "VmRSS")
    if not server.is_running():
        result.problem = f"The server exited: {server.log_end()}"
    return result


def _warm_up(server: Server) -> None:
    images = test_images(1)
    for _ in range(_WARM_UP):
        for wire in ("raw", "png", "json", "binary", "grpc"):
            path = OURS.endpoints[wire]
            ask(server.port(wire), path, wire, WIRES[wire].encode(images))


def largest_mb(server: Server, name: str) -> float:
    """VmRSS or VmHWM (the peak) of the server's largest process, in MB of 10^6 bytes."""
    largest = 0
    for pid in server.pids():
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(f"{name}:"):
                    largest = max(largest, int(line.split()[1]))
    return largest * 1024 / 1e6


class _Case(NamedTuple):
    """Requests with a deadline of `timeout_s`, `pause_s` apart, while `callers` keep a model busy.

    The deadline passes in a run of the loop, of about 0.8 s, or in the transformer's queue.
    """

    model: str
    shape: list[int]
    timeout_s: float
    pause_s: float
    busy_model: str
    busy_shape: list[int]
    callers: int


_CASES = (
    _Case("loop", [1000], 0.3, 1.2, "transformer", [1, 64, 64], 2),
    _Case("transformer", [1, 200, 64], 0.1, 0.0, "transformer", [1, 512, 64], 16),
)
_TIMED = 30  # requests of each case and transport


def deadlines(scratch: Path, *, is_pinned: bool) -> Iterator[Timing]:
    """How late requests are answered whose deadline passes while a model runs."""
    server = start(models(scratch / "deadlines"), scratch, is_pinned=is_pinned)
    try:
        for case in _CASES:
            ended = threading.Event()
            busy = [
                threading.Thread(target=_keep_busy, args=[server, case, ended.is_set])
                for _ in range(case.callers)
            ]
            for thread in busy:
                thread.start()
            try:
                for wire in ("http", "grpc"):
                    yield _timing(server, case, wire)
            finally:
                ended.set()
                for thread in busy:
                    thread.join()
    finally:
        server.stop()


def _keep_busy(server: Server, case: _Case, ended: Callable[[], bool]) -> None:
    path = f"/v2/models/{case.busy_model}/infer"
    while not ended():
        with suppress(OSError, http.client.HTTPException):
            exchange(server.http_port, "POST", path, *infer_body(case.busy_shape))


def _timing(server: Server, case: _Case, wire: str) -> Timing:
    errors, results = [], Counter[str]()
    body, headers = infer_body(case.shape, case.timeout_s)
    message = _message(case.model, case.shape)
    for _ in range(_TIMED):
        answers: Counter[str] = Counter()
        if wire == "http":
            begin = perf_counter()
            path = f"/v2/models/{case.model}/infer"
            status, _ = exchange(server.http_port, "POST", path, body, headers)
            elapsed = perf_counter() - begin
            answers[str(status)] += 1
        else:
            with Calls(server.grpc_port) as calls:
                calls.read(Counter(), 0.01)
                timeout = f"{round(case.timeout_s * 1000)}m"
                begin = perf_counter()
                calls.socket.sendall(calls.headers(grpc_timeout=timeout) + calls.data(message))
                while not answers and perf_counter() < begin + 30:
                    if not calls.read(answers, 0.001):
                        break
                elapsed = perf_counter() - begin
        results.update(answers)
        # A refusal or an answer before the deadline is in time.
        if elapsed > case.timeout_s or answers.keys() & {"504", "DEADLINE_EXCEEDED"}:
            errors.append(abs(elapsed - case.timeout_s) * 1000)
        time.sleep(case.pause_s)
    return Timing(
        name=f"{case.model}, {wire}, {case.timeout_s:g} s",
        count=len(errors),
        error_p50_ms=percentile(errors, 50),
        error_p99_ms=percentile(errors, 99),
        largest_ms=max(errors, default=math.nan),
        results=dict(results),
    )


def _message(model: str, shape: Sequence[int]) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.ones(shape, np.float32).tobytes())
    content: bytes = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(content)) + content
