"""Faults and hostile clients, each of some seconds, drawn at random by the soak."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from benchmarks.load import attacks
from benchmarks.load.attacks.callers import Target, exchange
from benchmarks.load.attacks.long_runs import infer_body
from tests.conftest import SHIPPED_MODELS
from tests.faults.small_folder import ServerInSmallFolder, fill

RAW = "application/octet-stream"


class Harm:
    """What the faults need, the server and its models, and the problems that they found."""

    def __init__(self, server: ServerInSmallFolder, models: Path, workers: int) -> None:
        self.server, self.models, self.workers = server, models, workers
        self.target = Target(server.http_port, server.grpc_port)
        self.versions = threading.Lock()
        self.problems: list[str] = []
        self.newest = 1

    def serving(self) -> list[int]:
        """The workers that have started and serve."""
        text = self.server.log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if "Serving mnist" in line]
        pids = self.server.worker_pids()
        return [pid for pid in pids if any(f'"pid": {pid},' in line for line in lines)]

    def wait_until_whole(self) -> None:
        """Wait until all workers serve, and have done so for a while."""
        end = time.monotonic() + 120
        while len(self.serving()) != self.workers:
            if time.monotonic() > end:
                self.problems.append(f"{self.workers} workers do not serve after 120 s")
                return
            time.sleep(0.1)
        time.sleep(8)  # the successor of one that lives for 10 s starts without a pause


Fault = Callable[[Harm, random.Random], None]


@contextlib.contextmanager
def one_worker(harm: Harm, chance: random.Random) -> Iterator[int]:
    """A worker that may be harmed, as soon as all of them serve."""
    harm.wait_until_whole()
    yield chance.choice(harm.server.worker_pids())


def worker_is_killed(harm: Harm, chance: random.Random) -> None:
    with one_worker(harm, chance) as pid:
        os.kill(pid, chance.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS]))
        time.sleep(0.5)


def worker_stops(harm: Harm, chance: random.Random) -> None:
    with one_worker(harm, chance) as pid:
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + 120
        while pid in harm.server.worker_pids():
            if time.monotonic() > end:
                harm.problems.append(f"worker {pid} is stopped and is not replaced after 120 s")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                return
            time.sleep(0.1)


def worker_pauses(harm: Harm, chance: random.Random) -> None:
    with one_worker(harm, chance) as pid:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(chance.uniform(0.2, 2.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def workers_roll(harm: Harm, chance: random.Random) -> None:
    harm.wait_until_whole()
    before = set(harm.server.worker_pids())
    harm.server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 120
    while before & set(harm.server.worker_pids()):
        if time.monotonic() > end:
            harm.problems.append("SIGHUP has not replaced all workers after 120 s")
            return
        time.sleep(0.1)


def descriptors_run_out(harm: Harm, chance: random.Random) -> None:
    with one_worker(harm, chance) as pid, contextlib.ExitStack() as opened:
        try:
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            in_use = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + 10, before[1]))
        except OSError:
            return  # the worker has just ended
        for port in [*harm.target] * 30:
            with contextlib.suppress(OSError):
                opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1))
        time.sleep(chance.uniform(0.5, 2))
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def tmpdir_is_full(harm: Harm, chance: random.Random) -> None:
    fill(harm.server.small)
    time.sleep(chance.uniform(1, 4))
    (harm.server.small / "filler").unlink(missing_ok=True)


def version_is_published(harm: Harm, chance: random.Random) -> None:
    """A newer version, whose answers are those of the older; old ones go."""
    with harm.versions:
        folder = harm.models / "mnist"
        harm.newest += 1
        new = folder / str(harm.newest)
        draft = folder / f".draft-{harm.newest}"
        shutil.copytree(SHIPPED_MODELS / "mnist" / "2", draft)
        draft.rename(new)
        time.sleep(chance.uniform(0.5, 2))
        for old in folder.iterdir():
            if old.name.isdigit() and int(old.name) <= harm.newest - 3:
                shutil.rmtree(old)


def broken_version_is_published(harm: Harm, chance: random.Random) -> None:
    """Junk as the newest version; it must be refused, and then it goes."""
    with harm.versions:
        harm.newest += 1
        draft = harm.models / "mnist" / f".draft-{harm.newest}"
        shutil.copytree(SHIPPED_MODELS / "mnist" / "2", draft)
        content = (draft / "model.onnx").read_bytes()
        cut = chance.randrange(len(content))
        (draft / "model.onnx").write_bytes(chance.choice([content[:cut], chance.randbytes(999)]))
        new = draft.rename(harm.models / "mnist" / str(harm.newest))
        time.sleep(chance.uniform(0.5, 2))
        shutil.rmtree(new)


def model_is_unloaded_and_loaded(harm: Harm, chance: random.Random) -> None:
    for change in ("unload", "load"):
        path = f"/v2/repository/models/loop/{change}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, answer = exchange(harm.server.http_port, "POST", path)
            expect(harm, f"{change} of a model", status, answer, {200, 400, 503})
        time.sleep(chance.uniform(0, 0.5))


def model_fails(harm: Harm, chance: random.Random) -> None:
    for _ in range(20):
        body, headers = infer_body([chance.randint(1, 6)])
        with contextlib.suppress(OSError, http.client.HTTPException):
            exchange(harm.server.http_port, "POST", "/v2/models/failing/infer", body, headers)


def model_runs_for_long(harm: Harm, chance: random.Random) -> None:
    """Two runs of some seconds, one of them beyond `max_run_seconds`, and their callers leave."""
    body, headers = infer_body([chance.choice([2_000, 20_000])], chance.choice([0, 0.3]))
    connection = http.client.HTTPConnection("127.0.0.1", harm.server.http_port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v2/models/loop/infer", body, headers)
        connection.getresponse().read()
    connection.close()


def connections_reset(harm: Harm, chance: random.Random) -> None:
    """Requests, whole or not, whose connection is reset."""
    body = bytes(784)
    request = (
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: %s\r\ncontent-length: 784\r\n\r\n"
    )
    whole = request % RAW.encode() + body
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for _ in range(100):
        with contextlib.suppress(OSError):
            port = chance.choice(harm.target)
            connection = socket.create_connection(("127.0.0.1", port), timeout=2)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sent = whole if port == harm.server.http_port else preface
            connection.sendall(sent[: chance.randint(0, len(sent))])
            connection.close()


def readers_are_slow(harm: Harm, chance: random.Random) -> None:
    """Answers of some 100 KB that are read byte by byte, or not at all."""
    body = bytes(784 * 1500)
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: {RAW}\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    connections = []
    for _ in range(8):
        with contextlib.suppress(OSError):
            connection = socket.socket()
            connections.append(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(2)
            connection.connect(("127.0.0.1", harm.server.http_port))
            connection.sendall(head.encode() + body)
    end = time.monotonic() + chance.uniform(1, 4)
    while time.monotonic() < end:
        for connection in connections[::2]:
            connection.settimeout(0.01)
            with contextlib.suppress(OSError):
                connection.recv(1)
        time.sleep(0.02)
    for connection in connections:
        connection.close()


BAD_HTTP: list[tuple[str, str, bytes, dict[str, str]]] = [
    ("POST", "/predict", b"", {"content-type": RAW}),
    ("POST", "/predict", b"x" * 785, {"content-type": RAW}),
    ("POST", "/predict", b"{", {"content-type": "application/json"}),
    ("POST", "/predict", b"[" * 100_000, {"content-type": "application/json"}),
    ("POST", "/predict", b'{"image": [[1e999]]}', {"content-type": "application/json"}),
    ("POST", "/predict", b"\x89PNG\r\n\x1a\n" + bytes(99), {"content-type": "image/png"}),
    ("POST", "/predict", b"\xff\xd8\xff" + bytes(99), {"content-type": "image/jpeg"}),
    ("POST", "/predict?model=none", bytes(784), {"content-type": RAW}),
    ("POST", "/predict?version=x", bytes(784), {"content-type": RAW}),
    ("POST", "/v2/models/mnist/infer", b"{}", {}),
    ("POST", "/v2/models/mnist/infer", b'{"inputs": 3}', {}),
    ("POST", "/v2/models/mnist/infer", b"x", {"inference-header-content-length": "99"}),
    ("POST", "/v2/models/%00/infer", b"{}", {}),
    ("GET", "/v2/models/..%2f..%2fetc", b"", {}),
    ("DELETE", "/predict", b"", {}),
    ("POST", "/v2/repository/models/none/load", b"", {"host": "[::1"}),
    ("POST", "/v2/repository/models/none/load", b"", {"origin": "http://[::1"}),
]


def inputs_are_bad(harm: Harm, chance: random.Random) -> None:
    """Bad requests over both transports, and random bytes; none may be an internal error."""
    for method, path, body, headers in chance.sample(BAD_HTTP, 8):
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, answer = exchange(harm.server.http_port, method, path, body, headers)
            said = f"{method} {path} {headers} {body[:40]!r}"
            expect(harm, said, status, answer, {*range(400, 500), 503})
    for _ in range(20):
        with contextlib.suppress(OSError):
            port = chance.choice(harm.target)
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(chance.randbytes(chance.randint(1, 2000)))
    with grpc.insecure_channel(harm.server.grpc) as channel:
        for _ in range(10):
            method = chance.choice(
                ["/inference.GRPCInferenceService/ModelInfer", "/digits.v1.DigitClassifier/Predict"]
            )
            try:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
                call(chance.randbytes(chance.randint(0, 300)), timeout=5)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                    harm.problems.append(f"random bytes to {method}: {error}")


def deadlines_are_short(harm: Harm, chance: random.Random) -> None:
    for _ in range(20):
        body, headers = infer_body([500], chance.uniform(1e-6, 0.05))
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, answer = exchange(
                harm.server.http_port, "POST", "/v2/models/loop/infer", body, headers
            )
            expect(harm, "a short timeout", status, answer, {200, 400, 404, 503, 504})


def expect(harm: Harm, said: str, status: int, answer: bytes, allowed: set[int]) -> None:
    """A problem unless the status is allowed and an error says why in JSON."""
    if status not in allowed:
        harm.problems.append(f"{said}: {status} {answer[:300]!r}")
    elif status >= 400:
        try:
            json.loads(answer)["error"]
        except (ValueError, KeyError, TypeError):
            harm.problems.append(f"{said}: {status} without a JSON error: {answer[:300]!r}")


def of_attack(name: str) -> Fault:
    """An abusive load of the benchmark for a few seconds."""

    def run(harm: Harm, chance: random.Random) -> None:
        with contextlib.suppress(OSError):
            attacks.ATTACKS[name](harm.target, attacks.for_seconds(chance.uniform(1, 4)))

    run.__name__ = name.replace("-", "_")
    return run


# Of worker processes: one at a time, because the server promises to live through the loss of one
# worker, not of all.
PROCESS_FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        worker_is_killed,
        worker_stops,
        worker_pauses,
        workers_roll,
        descriptors_run_out,
    )
}
OTHER_FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        tmpdir_is_full,
        version_is_published,
        broken_version_is_published,
        model_is_unloaded_and_loaded,
        model_fails,
        model_runs_for_long,
        connections_reset,
        readers_are_slow,
        inputs_are_bad,
        deadlines_are_short,
        *map(of_attack, attacks.ATTACKS),
    )
}
