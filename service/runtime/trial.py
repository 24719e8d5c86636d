"""Tries a model in a process of its own before a worker loads it: a crash ends no worker.

ONNX Runtime 1.32 ends its process by SIGSEGV or SIGABRT on some graphs: 54 of 668 odd random ones.

Theory of operation: a worker starts a host, a clean process of one thread that has imported ONNX
Runtime and nothing of the server. For each trial the host forks a child, which loads the model on
the CPU, verifies it to be row-wise if nothing declares that, warms it up and frees it. The worker
never forks itself: it has threads, whose locks a forked child would find as they were. A host takes
as long to start as ONNX Runtime to import, and a fork takes milliseconds, so one host serves all
models of a refresh and ends after it (docs/decisions/trials.md).

Messages are JSON, one line each: a request on the host's standard input, its answer on its standard
output. The child writes to a pipe of its own, and the host passes that on, or how the child ended.
The host ends with its input, so when its worker ends, however that happens, and the kernel kills
the child with the host. Signals to a whole group (Ctrl-C, a service manager) are left to the
worker. If memory runs out, the kernel takes the child before anything else.

What was found out is kept by the content of the model and all that goes into the trial, also in a
folder that the workers of a server share. A lock there lets them take turns, so a server has one
trial at a time, and the others find its result.

What a trial cannot see is a model that crashes on CUDA, or only now and then, and large models and
our own exports are not tried. For these, a mark in the same folder says which worker loads what: a
worker that dies leaves its mark, and after two such marks no worker loads the model.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import hashlib
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.core.batching import Batching
from service.core.datatypes import Array
from service.core.errors import ModelLoadError, is_used_up
from service.runtime.session import Samples, SessionOptions, cuda_is_built_in, load, verified

log = logging.getLogger(__name__)

LARGEST_BYTES = 256 << 20  # larger models are not tried: it would take their memory a second time
# A trial may take this long besides the runs of its warm-up (`max_run_s`). Verification has 10 s; a
# machine that is very busy takes many times as long for all of it.
_SECONDS = 120.0
_CRASHES = 2  # after which a model is refused: one may be chance
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_KILLED_FIRST = "1000"  # the largest oom_score_adj, proc_pid_oom_score_adj(5)
# No core dump: below a page no file is written, and 1 tells the kernel to pipe none either.
_NO_CORE = 1
# Threads would not survive the fork, and OpenBLAS starts some when it is imported.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Not `-m`: that would put the current folder in front of the installed packages.
_HOST = "import sys; sys.path[:] = sys.argv[1:]; from service.runtime import trial; trial.host()"


class HostError(Exception):
    """The host could not be started, or ended without an answer."""


class _TooSlow(Exception):
    """The host was killed because its answer took too long."""


class Trial(NamedTuple):
    """What is tried: a model file whose version has this SHA-256, and how it would be loaded.

    `batching` is what is declared; None has the model verified.
    """

    sha256: str
    path: Path
    options: SessionOptions
    batching: Batching | None
    samples: Samples

    def request(self) -> dict[str, Any]:
        """The trial as JSON."""
        # config.pbtxt may repeat a sample a hundred times; each is sent once.
        unique = {id(sample): sample for sample in self.samples}
        places = {key: place for place, key in enumerate(unique)}
        return {
            "path": os.fspath(self.path),
            "options": self.options._asdict(),
            "batching": None if self.batching is None else _batching_to_json(self.batching),
            "samples": [
                {name: array_to_json(array) for name, array in sample.items()}
                for sample in unique.values()
            ],
            "runs": [places[id(sample)] for sample in self.samples],
        }

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Trial:
        """The trial of a request. Its SHA-256 is not sent."""
        batching = request["batching"]
        samples = [
            {name: array_from_json(array) for name, array in sample.items()}
            for sample in request["samples"]
        ]
        return cls(
            sha256="",
            path=Path(request["path"]),
            options=SessionOptions(**request["options"]),
            batching=None if batching is None else Batching(**batching),
            samples=[samples[place] for place in request["runs"]],
        )


class Trials:
    """Tries models, one at a time, and keeps the results. May be used by several threads.

    `folder` is shared by the workers of a server; without one, this process keeps its results for
    itself. `waits` is called with True before a wait for another process, and with False after it:
    the caller uses no CPU time meanwhile.
    """

    def __init__(
        self, folder: Path | None = None, waits: Callable[[bool], None] = lambda is_waiting: None
    ) -> None:
        self._folder = folder
        self._waits = waits
        self._lock = threading.Lock()
        self._host: subprocess.Popen[bytes] | None = None
        self._results: dict[str, dict[str, Any]] = {}

    def batching(self, trial: Trial, *, again: bool = False) -> Batching:
        """How the model may be batched: as declared, or as verified. It has survived its trial.

        A kept result costs nothing; `again` tries a model again that was refused. Raises
        ModelLoadError for a model that ONNX Runtime refuses, that crashes it twice or takes too
        long; HostError if nothing can be tried here; OSError if no descriptor or process is left.
        """
        request = trial.request()
        key = _key(trial.sha256, request)
        with self._lock:
            result = self._kept(key)
            if result is None or (again and "refused" in result):
                with self._turn():
                    before = result
                    if self._folder is not None:  # another worker may have tried it meanwhile
                        self._results.pop(key, None)
                        result = self._kept(key)
                    if result is None or result == before:
                        result = self._try(request, trial)
                        if "error" not in result:
                            self._keep(key, result)
        if "refused" in result:
            raise ModelLoadError(result["refused"])
        if "error" in result:
            # CUDA may run what the CPU cannot.
            if trial.options.provider == "cpu" or not cuda_is_built_in():
                raise ModelLoadError(result["error"])
            return trial.batching or Batching(False, f"off: {result['error']}", declared=False)
        return Batching(**result["batching"])

    @contextlib.contextmanager
    def marked(self, sha256: str, *, again: bool = False) -> Iterator[None]:
        """Load a model inside of this. Raises ModelLoadError if two workers died while they did.

        With `again`, what happened before is forgotten.
        """
        if self._folder is None:
            yield
            return
        ended = [mark for mark in self._folder.glob(f"{sha256}.*.loading") if not _is_alive(mark)]
        if again:
            for mark in ended:
                mark.unlink(missing_ok=True)
        elif len(ended) >= _CRASHES:
            raise ModelLoadError(
                f"{len(ended)} workers ended while they loaded it, as the log says; export it "
                "again with another opset or exporter, or give the server more memory, then load "
                "it again"
            )
        own = self._folder / f"{sha256}.{os.getpid()}.loading"
        with contextlib.suppress(OSError):  # the disk is full; only the protection is missing
            own.touch()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                own.unlink()

    def close(self) -> None:
        """End the host, which the next trial starts again."""
        with self._lock:
            self._end_host()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock of the shared folder, which the kernel releases when this process ends."""
        self._waits(True)
        try:
            with contextlib.ExitStack() as stack:
                if self._folder is not None:
                    try:
                        lock = stack.enter_context((self._folder / "trials.lock").open("w"))
                        fcntl.flock(lock, fcntl.LOCK_EX)
                    except OSError as error:
                        if is_used_up(error):
                            raise
                        # The disk is full, or somebody has removed the folder: without turns.
                yield
        finally:
            self._waits(False)

    def _kept(self, key: str) -> dict[str, Any] | None:
        if key not in self._results and self._folder is not None:
            try:
                self._results[key] = json.loads((self._folder / f"{key}.trial").read_text())
            except OSError as error:  # there is none, mostly
                if is_used_up(error):
                    raise
        return self._results.get(key)

    def _keep(self, key: str, result: dict[str, Any]) -> None:
        self._results[key] = result
        if self._folder is not None:
            with contextlib.suppress(OSError):  # the disk is full: each worker finds out by itself
                new = self._folder / "trial.new"  # the caller holds the lock
                new.write_text(json.dumps(result))
                new.rename(self._folder / f"{key}.trial")

    def _try(self, request: dict[str, Any], trial: Trial) -> dict[str, Any]:
        """The result of a trial: `batching`, the `error` of ONNX Runtime, or why it is `refused`.

        Raises HostError, OSError.
        """
        seconds, code = _SECONDS + trial.options.max_run_s, 0
        for number in range(_CRASHES):
            try:
                answer = self._ask(request, seconds)
            except _TooSlow:
                return {
                    "refused": f"loading, verifying and warming it up took longer than {seconds:g} "
                    'seconds; declare "batching" in model.json, which saves the verification, or '
                    "lower max_run_seconds"
                }
            if "exit" not in answer:
                return answer
            code = answer["exit"]
            if not number:
                log.warning(
                    "%s %s in a process of its own; it is tried once more.",
                    trial.path,
                    f"was ended by {_signal(code)}" if code < 0 else f"exited with status {code}",
                )
        if code == -signal.SIGKILL:
            return {
                "refused": "the process that tried it was killed twice (SIGKILL), probably for "
                "lack of memory; give the server more memory, or publish a smaller model"
            }
        how = f"({_signal(code)})" if code < 0 else f"(its process exited with status {code})"
        return {
            "refused": f"ONNX Runtime crashed twice {how} when it loaded and ran this model in a "
            "process of its own; export it again with another opset or exporter, or install "
            "another version of ONNX Runtime, then load it again"
        }

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer of the host. Raises HostError, _TooSlow, OSError."""
        if self._host is None or self._host.poll() is not None:
            self._end_host()
            self._host = _start_host()
        host = self._host
        assert host.stdin is not None
        assert host.stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGKILL)  # it has a session of its own, with its child

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            host.stdin.write(json.dumps(request).encode() + b"\n")
            host.stdin.flush()
            line = host.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._end_host()
        if is_late.is_set():
            raise _TooSlow
        if host.returncode < 0:  # as if it had been the child: memory may have run out
            return {"exit": host.returncode}
        raise HostError(f"the process for trials ended with status {host.returncode}")

    def _end_host(self) -> None:
        if self._host is not None:
            with contextlib.suppress(OSError):  # unsent bytes of a request
                self._host.communicate()
            self._host = None


def _start_host() -> subprocess.Popen[bytes]:
    """Start a host. Raises HostError, or OSError if no descriptor or process is left."""
    try:
        return subprocess.Popen(  # noqa: S603 (this program)
            [sys.executable, "-P", "-c", _HOST, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a dying ONNX Runtime prints is no line of a log
            start_new_session=True,
            env=os.environ | _ONE_THREAD,
        )
    except OSError as error:
        if is_used_up(error):
            raise
        raise HostError(f"the process for trials cannot be started: {error}") from error


def _key(sha256: str, request: Mapping[str, Any]) -> str:
    """The name of a result: what is tried and how, wherever it is."""
    content = json.dumps({**request, "path": sha256}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _signal(code: int) -> str:
    """The name of the signal that this exit code stands for."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _is_alive(mark: Path) -> bool:
    """Whether the worker that left this mark is alive."""
    try:
        os.kill(int(mark.suffixes[-2].removeprefix(".")), 0)
    except (ProcessLookupError, PermissionError):  # or another user's has its number now
        return False
    return True


def _batching_to_json(batching: Batching) -> dict[str, Any]:
    """All fields but the queue, which has no part in a trial."""
    fields = batching._asdict()
    del fields["queue"]
    return fields


def array_to_json(array: Array) -> dict[str, Any]:
    """An array of any datatype as JSON.

    Objects are what a card and a BYTES tensor have: texts, numbers, booleans, None and bytes.
    """
    array = np.asarray(array)
    fields: dict[str, Any] = {"dtype": array.dtype.str, "shape": array.shape}
    if array.dtype == object:
        return fields | {"objects": [_object_to_json(each) for each in array.flat]}
    return fields | {"data": base64.b64encode(array.tobytes()).decode()}


def array_from_json(fields: Mapping[str, Any]) -> Array:
    """The inverse of `array_to_json`."""
    shape = fields["shape"]
    if "data" in fields:
        data = base64.b64decode(fields["data"])
        return np.frombuffer(data, fields["dtype"]).reshape(shape).copy()
    flat = np.empty(len(fields["objects"]), object)
    for place, each in enumerate(fields["objects"]):  # an assignment of all would look into each
        flat[place] = base64.b64decode(each["bytes"]) if isinstance(each, dict) else each
    return flat.reshape(shape)


def _object_to_json(value: object) -> object:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return _object_to_json(value.item())
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"an element of a sample is a {type(value).__name__}")


def host() -> None:
    """Serve requests until the input ends. The main function of the host."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)
    for limit in (_NO_CORE, 0):  # the hard limit may be 0
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
            break
    # Whatever prints to the standard output must not end up among the answers.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    requests = sys.stdin.buffer
    while line := requests.readline():
        _write(answers, _in_child(line, requests.fileno(), answers) + b"\n")
    os._exit(0)


def _in_child(request: bytes, requests: int, answers: int) -> bytes:
    """The answer of a child to a request, or how it ended. Kills it when the requests end."""
    parent = os.getpid()
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        try:
            _write(writes, json.dumps(_outcome(Trial.of(json.loads(request)))).encode())
        finally:  # nothing may leave this function in the child
            os._exit(0)
    os.close(writes)
    content = b""
    waiting = select.poll()
    waiting.register(reads, select.POLLIN)
    waiting.register(requests, select.POLLIN)  # the worker sends none before it has the answer
    while True:
        ready = dict(waiting.poll())
        if requests in ready:
            os.kill(child, signal.SIGKILL)
            os._exit(0)
        part = os.read(reads, 1 << 16)
        if not part:
            break
        content += part
    os.close(reads)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return content if content and not code else json.dumps({"exit": code}).encode()


def _outcome(trial: Trial) -> dict[str, Any]:
    """The result of a trial, in this process: how it may be batched, or the error of its load."""
    batching = trial.batching or verified(trial.path, trial.options)
    try:
        session = load(trial.path, trial.options._replace(provider="cpu"), batching, trial.samples)
    except ModelLoadError as error:
        return {"error": error.message}
    except Exception as error:  # as MemoryError
        return {"error": f"loading it failed: {error!r}"}
    del session  # an unload may crash as well
    return {"batching": _batching_to_json(batching)}


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
