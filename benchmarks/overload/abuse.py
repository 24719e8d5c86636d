"""Measures health, memory and deadlines while the server is abused."""

from __future__ import annotations

import dataclasses
import shutil
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.check import ask
from benchmarks.load.arrivals import percentile
from benchmarks.load.attacks import Calls, Target, attack, exchange, infer_body
from benchmarks.load.prober import Prober
from benchmarks.load.result import GeneratorError
from benchmarks.overload.measure import OURS, core, start
from benchmarks.overload.models import write_loop, write_slow, write_transformer
from benchmarks.overload.results import Abuse, Plan, Timing, probed
from benchmarks.paths import ROOT
from benchmarks.served_models import test_images
from benchmarks.server_process import Server
from benchmarks.wire_formats import WIRES

_WARM_UP = 100  # ordinary requests of each kind before memory is measured
_RATES = {"/v2/health/live": 50.0, "/v2/health/ready": 50.0}
# The attack that takes all connections of the HTTP port: health is then probed on its own port.
_IDLE = "idle-http-connections"
_SETTINGS = {_IDLE: {"MNIST_MAX_CONNECTIONS": "64", "MNIST_HEALTH_PORT": "{spare_port}"}}
_TIMEOUT_S, _TIMED = 0.3, 40  # of each timed request, and their number
_LOOP_S = 2.0  # a run of the loop model while deadlines are measured


def models(folder: Path) -> Path:
    """A repository with the shipped model, one of 50 ms, a loop of 8 s and a transformer."""
    shutil.copytree(ROOT / "models" / "mnist" / "1", folder / "mnist" / "1", dirs_exist_ok=True)
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
        result.did = attack(name, target, plan.abuse_s, on_load_core)
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


def deadlines(scratch: Path, *, is_pinned: bool) -> Iterator[Timing]:
    """How late requests with a deadline are answered while a model runs.

    An answer before the deadline is in time, whatever it says.
    """
    folder = scratch / "deadlines"
    server = start(models(folder), scratch, is_pinned=is_pinned)
    steps = round(10_000 * _LOOP_S / 8.0)
    try:
        for model, shape in (("loop", [steps]), ("transformer", [1, 200, 64])):
            ended = threading.Event()
            busy = [
                threading.Thread(target=_keep_busy, args=[server, model, shape, ended.is_set])
                for _ in range(2)
            ]
            for thread in busy:
                thread.start()
            try:
                for wire in ("http", "grpc"):
                    yield _timing(server, model, shape, wire)
            finally:
                ended.set()
                for thread in busy:
                    thread.join()
    finally:
        server.stop()


def _keep_busy(server: Server, model: str, shape: list[int], ended: Callable[[], bool]) -> None:
    while not ended():
        with suppress(OSError):
            exchange(server.http_port, "POST", f"/v2/models/{model}/infer", *infer_body(shape))


def _timing(server: Server, model: str, shape: list[int], wire: str) -> Timing:
    errors, results = [], Counter[str]()
    body, headers = infer_body(shape, _TIMEOUT_S)
    message = _message(model, shape)
    for _ in range(_TIMED):
        if wire == "http":
            begin = perf_counter()
            status, _ = exchange(
                server.http_port, "POST", f"/v2/models/{model}/infer", body, headers
            )
            elapsed = perf_counter() - begin
            results[str(status)] += 1
        else:
            with Calls(server.grpc_port) as calls:
                calls.read(Counter(), 0.01)
                timeout = f"{round(_TIMEOUT_S * 1000)}m"
                begin = perf_counter()
                calls.socket.sendall(calls.headers(grpc_timeout=timeout) + calls.data(message))
                answers: Counter[str] = Counter()
                while not answers and perf_counter() < begin + 30:
                    if not calls.read(answers, 0.001):
                        break
                elapsed = perf_counter() - begin
                results.update(answers)
        errors.append(max(0.0, elapsed - _TIMEOUT_S) * 1000)
    return Timing(
        name=f"{model}, {wire}, {_TIMEOUT_S:g} s",
        count=len(errors),
        error_p50_ms=percentile(errors, 50),
        error_p99_ms=percentile(errors, 99),
        largest_ms=max(errors),
        results=dict(results),
    )


def _message(model: str, shape: Sequence[int]) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.ones(shape, np.float32).tobytes())
    content: bytes = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(content)) + content
