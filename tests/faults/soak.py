"""The soak: random faults against a real server while well-behaved clients check every answer.

Strategy: four good clients (two per transport) run from start to end. Three threads draw faults at
random from `injected`, one at a time each; one of them harms the processes of workers. Speed is
never judged. What is judged:

- no answer is wrong, no good request stays without an answer, none gets an error that says that it
  is bad;
- no fault finds an internal error, an error without its JSON, or a worker that is not replaced;
- the processes live, and each worker's memory stays within its budget;
- after a rest, descriptors, threads and processes are no more than after the warm-up;
- every line of the log is JSON, and none tells of an unexpected failure;
- the server then stops with status 0.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import orjson
from onnx import TensorProto, helper, numpy_helper

from benchmarks.overload.models import write_loop, write_transformer
from tests.conftest import SHIPPED_MODELS, Server, read_mnist
from tests.faults import clients
from tests.faults.clients import GrpcClient, HttpClient, Images, Record
from tests.faults.injected import OTHER_FAULTS, PROCESS_FAULTS, Harm
from tests.faults.small_folder import ServerInSmallFolder

WORKERS = 2
# Of one worker, as LIMIT_MB in tests/e2e/test_memory.py.
BUDGET_MB = 256
_HARMERS = 3
_REST_S = 60.0  # within which a worker closes what the faults left open
_LONGEST_START_S = 120.0
# In a log, these words tell of an unforeseen error.
UNFORESEEN = ("failed unexpectedly", "Traceback", "traceback", "crash loop", "panicked")
_SETTINGS: dict[str, object] = {
    "workers": WORKERS,
    "log_format": "json",
    "poll_interval": 0.2,
    "max_connections": 256,
    "max_run_seconds": 10,  # longer than a starved run of a small model
    "body_timeout": 5,
}


class Report(NamedTuple):
    """What the soak did and found."""

    seed: int
    did: Counter[str]
    answers: Counter[str]
    repeated: Counter[str]
    longest_s: float
    peak_mb: float
    problems: list[str]

    def __str__(self) -> str:
        lines = [f"{count:6}  {name}" for name, count in sorted(self.did.items())]
        lines += [f"{count:6}  answers over {name}" for name, count in sorted(self.answers.items())]
        lines += [f"{count:6}  repeated, {why}" for why, count in sorted(self.repeated.items())]
        lines.append(
            f"Longest time of a good request, repetitions included: {self.longest_s:.1f} s."
        )
        lines.append(f"Largest worker: {self.peak_mb:.0f} MB.")
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        lines.append(f"{len(self.problems)} problems with --seed {self.seed}.")
        return "\n".join(lines)


class Usage(NamedTuple):
    """Descriptors and threads of the supervisor and of the largest worker."""

    supervisor_descriptors: int
    supervisor_threads: int
    descriptors: int
    threads: int
    processes: int


def soak(seconds: float, seed: int, folder: Path, only: tuple[str, ...] = ()) -> Report:
    """Run for `seconds` and judge; `folder` is empty. `only` names some of the faults."""
    models, images = repository(folder / "models"), known_images()
    record = Record()
    did: Counter[str] = Counter()
    with ExitStack() as stack:
        small = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        log = folder / "server.log"
        server = ServerInSmallFolder(log, small, megabytes=4, models=models, **_SETTINGS)
        stack.callback(server.process.wait)
        stack.callback(server.process.kill)
        _wait(server, _LONGEST_START_S, server.is_ready)
        _wait(server, _LONGEST_START_S, lambda: len(server.worker_pids()) == WORKERS)
        harm = Harm(server, models, WORKERS)
        threads, done = [], threading.Event()
        for number, kind in enumerate([HttpClient, GrpcClient] * 2):
            port = server.http_port if kind is HttpClient else server.grpc_port
            arguments = (kind(port), images, record, done.is_set, seed + number)
            threads.append(threading.Thread(target=_guard(record, clients.run), args=arguments))
        memory = Memory(server, done.is_set)
        threads.append(threading.Thread(target=_guard(record, memory.watch)))
        for thread in threads:
            thread.start()
        before = _settled_usage(server)

        end = time.monotonic() + seconds
        lock = threading.Lock()

        def harass(number: int) -> None:
            chance = random.Random(seed * 1000 + number)
            faults = OTHER_FAULTS if number else PROCESS_FAULTS
            names = [name for name in faults if name in (only or faults)]
            while names and time.monotonic() < end and server.process.poll() is None:
                name = chance.choice(names)
                with lock:
                    did[name] += 1
                faults[name](harm, chance)
                time.sleep(chance.uniform(0, 0.5))

        harmers = [
            threading.Thread(target=_guard(record, harass), args=[number])
            for number in range(_HARMERS)
        ]
        for thread in harmers:
            thread.start()
        for thread in harmers:
            thread.join()
        # Good clients must be answered after the faults as well.
        answered = sum(record.answers.values())
        with suppress(NotInTime):
            _wait(server, clients.PATIENCE_S, lambda: sum(record.answers.values()) > answered + 40)
        done.set()
        for thread in threads:
            thread.join()
        problems = record.problems + harm.problems
        if memory.peak_mb > BUDGET_MB:
            problems.append(f"a worker had {memory.peak_mb:.0f} MB, its budget is {BUDGET_MB}")
        if server.process.poll() is None:
            problems += leaks(server, before)
            status = server.stop()
            if status != 0:
                problems.append(f"the stop ended with status {status}")
        else:
            problems.append(f"the server ended by itself with status {server.process.returncode}")
        problems += log_problems(log.read_text(encoding="utf-8", errors="replace"))
    answers, repeated = record.answers, record.repeated
    return Report(seed, did, answers, repeated, record.longest_s, memory.peak_mb, problems)


class NotInTime(Exception):
    """A condition does not hold in time; the message has the server's log."""


def _wait(server: Server, seconds: float, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if server.process.poll() is not None or time.monotonic() > end:
            raise NotInTime(f"The server's log:\n{server.log.read_text()[-5000:]}")
        time.sleep(0.1)


def _guard(record: Record, work: Callable[..., None]) -> Callable[..., None]:
    """Turn an error of the soak itself into a problem."""

    def guarded(*arguments: object) -> None:
        try:
            work(*arguments)
        except Exception:
            record.problem(f"an error of the soak: {traceback.format_exc()}")

    return guarded


class Memory:
    """Watches the resident set of the workers; `peak_mb` is the largest of any."""

    def __init__(self, server: Server, ended: Callable[[], bool]) -> None:
        self._server, self._ended = server, ended
        self.peak_mb = 0.0

    def watch(self) -> None:
        while not self._ended():
            with suppress(OSError):
                for pid in self._server.worker_pids():
                    self.peak_mb = max(self.peak_mb, _peak_mb(pid))
            time.sleep(0.25)


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def usage(server: Server) -> Usage:
    """Raises OSError if a process ends meanwhile."""

    def count(pid: int, what: str) -> int:
        return len(list(Path(f"/proc/{pid}/{what}").iterdir()))

    supervisor, workers = server.process.pid, server.worker_pids()
    return Usage(
        count(supervisor, "fd"),
        count(supervisor, "task"),
        max(count(pid, "fd") for pid in workers),
        max(count(pid, "task") for pid in workers),
        len(workers),
    )


def _settled_usage(server: Server) -> Usage:
    """Usage under the good clients alone, once their threads and connections have been made."""
    time.sleep(3)
    return usage(server)


def leaks(server: Server, before: Usage, seconds: float = _REST_S) -> list[str]:
    """What is more than before, after a rest of up to `seconds`.

    A worker makes the threads of its executor when it first has that much to do, so it may have
    more of them than before; it may not have more than its executor and ONNX Runtime can make.
    """
    slack = Usage(4, 2, 16, 64, 0)
    end = time.monotonic() + seconds
    while True:
        found = []
        with suppress(OSError, ValueError):
            now = usage(server)
            found = [
                f"{name}: {was} before the faults, {has} after a rest"
                for name, was, has, more in zip(Usage._fields, before, now, slack, strict=True)
                if has > was + more
            ]
            if not found:
                return []
        if time.monotonic() > end:
            return found or ["workers come and go after the faults"]
        time.sleep(0.5)


def log_problems(text: str) -> list[str]:
    """The first line that is not JSON, and the first of each unforeseen error."""
    problems: dict[str, str] = {}
    for line in text.splitlines():
        try:
            orjson.loads(line)
        except ValueError:
            problems.setdefault("not JSON", f"a line of the log is not JSON: {line[:500]}")
        for words in UNFORESEEN:
            if words in line:
                problems.setdefault(words, f"{words!r} in the log: {line[:2000]}")
    return list(problems.values())


def known_images() -> Images:
    """Images of the test set, with what ONNX Runtime says of each alone."""
    session = ort.InferenceSession(SHIPPED_MODELS / "mnist" / "2" / "model.onnx")
    images = read_mnist().images[:64]
    rows = [session.run(["probabilities"], {"image": image[None]})[0] for image in images]
    return Images(np.concatenate(rows))


def repository(folder: Path) -> Path:
    """The shipped model, a loop of 8 s per 10,000 steps, a transformer, and one that fails."""
    for name in ("mnist", "loop", "transformer", "failing"):
        version = folder / name / "1"
        version.mkdir(parents=True)
        if name == "mnist":
            for file in (SHIPPED_MODELS / "mnist" / "2").iterdir():
                (version / file.name).write_bytes(file.read_bytes())
            continue
        (version / "model.json").write_text('{"batching": false}')
        if name == "loop":
            write_loop(version / "model.onnx", 8.0, 10_000)
        elif name == "transformer":
            write_transformer(version / "model.onnx")
        else:
            write_failing(version / "model.onnx")
    return folder


def write_failing(file: Path) -> None:
    """A model whose run fails for every length of `x` but 1 and 7."""
    seven = numpy_helper.from_array(np.ones(7, np.float32), "seven")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "seven"], ["y"])],
        "failing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7])],
        [seven],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, file)
