"""Prometheus metrics of all workers of one server; any worker can report them.

prometheus_client's multiprocess mode keeps the values of every worker in files of one folder. The
supervising process names the folder in PROMETHEUS_MULTIPROC_DIR before it starts the workers.
Without the variable (`flask run`, tests) this process gets a folder of its own. prometheus_client
reads the variable when it is imported, hence the order below.
"""

from __future__ import annotations

import atexit
import errno
import logging
import mmap
import os
import re
import shutil
import tempfile
import time
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

if DIRECTORY not in os.environ:
    os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="mnist-metrics-")
    atexit.register(shutil.rmtree, os.environ[DIRECTORY], ignore_errors=True)

import prometheus_client.values  # noqa: E402
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE  # noqa: E402
from prometheus_client.metrics_core import CounterMetricFamily, Metric  # noqa: E402
from prometheus_client.mmap_dict import MmapedDict  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

from service.core.digits import REASONS  # noqa: E402
from service.core.statistics import BatchRun, ModelStatistics  # noqa: E402

if TYPE_CHECKING:
    from service.pulse import Replacements

__all__ = ["CONTENT_TYPE", "DIRECTORY", "Metrics", "ModelMetrics", "exposition", "share"]

log = logging.getLogger(__name__)

_FILE_BYTES = 65536  # of a new file; prometheus_client doubles it as needed
_REMINDER_S = 60.0  # between two log lines that say that the disk is full


class ReservedDict(MmapedDict):
    """prometheus_client's file of metrics, whose disk space is reserved before it is mapped.

    prometheus_client makes files that have no blocks yet. If the disk is full when a value is
    written, the kernel finds no block for it and ends the process with SIGBUS. Here, a metric for
    which there is no space is missing from the file; each later write tries again, and writes the
    metric's value, which its owner keeps.
    """

    _silent_until = 0.0  # of all files of the process, by the monotonic clock

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Open no file yet."""
        self._f = None  # type: ignore[assignment]
        self._fname = filename
        self._positions: dict[str, int] = {}
        self._used = self._capacity = 0

    def read_value(self, key: str) -> tuple[float, float]:
        """The value and timestamp of a metric, which is added with 0 if it is new."""
        return super().read_value(key) if self._holds(key) else (0.0, 0.0)  # type: ignore[no-untyped-call]

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Write a metric, if there is space for it."""
        if self._holds(key):
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _holds(self, key: str) -> bool:
        """Whether the file holds this metric, or now has space for it."""
        if key in self._positions:
            return True
        try:
            if self._f is None:
                self._open()
            # The size of an entry, as in `MmapedDict._init_value`.
            length = len(key.encode())
            needed = self._used + 4 + length + (8 - (length + 4) % 8) + 16
            capacity = self._capacity
            while capacity < needed:
                capacity *= 2
            if capacity > self._capacity:
                with open(self._fname, "r+b") as file:  # noqa: PTH123
                    _reserve(file.fileno(), self._capacity, capacity)
                    self._m = mmap.mmap(file.fileno(), capacity)
                self._capacity = capacity
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # `Service.watch_descriptors` says so
                return False
            if (now := time.monotonic()) > ReservedDict._silent_until:
                ReservedDict._silent_until = now + _REMINDER_S
                log.error(
                    "Metrics are incomplete until %s has space again: %s.",
                    Path(self._fname).parent,
                    error.strerror,
                )
            return False
        self._init_value(key)  # type: ignore[no-untyped-call]
        return True

    def _open(self) -> None:
        path = Path(self._fname)
        if not path.exists():  # else it is that of a dead process of the same id
            # By rename, so that no other worker reads an empty file.
            new = path.with_suffix(".new")
            try:
                with new.open("wb") as file:
                    _reserve(file.fileno(), 0, _FILE_BYTES)
            except OSError:
                new.unlink(missing_ok=True)
                raise
            new.rename(path)
        try:
            MmapedDict.__init__(self, self._fname)  # type: ignore[no-untyped-call]
        except OSError:  # the mapping takes a descriptor too
            if self._f is not None:
                self._f.close()
                self._f = None  # type: ignore[assignment]
            raise


def _reserve(descriptor: int, size: int, new_size: int) -> None:
    """Make a file longer, with disk space. Raises OSError, and then leaves the file as it was."""
    # Written, since macOS has no posix_fallocate.
    end = size
    try:
        while end < new_size:
            end += os.pwrite(descriptor, bytes(new_size - end), end)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


prometheus_client.values.MmapedDict = ReservedDict  # type: ignore[attr-defined]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_PER_MODEL = ["model", "version"]
_WHY = REASONS[1:]
_ACCEPTED = {None: "unknown", True: "true", False: "false"}


class BufferedHistogram(Histogram):
    """A histogram that collects observations in a list until `flush` counts them all at once.

    Counting one observation takes two writes to the file that the workers share, some 5 us; the
    three observations of a request would take a sixth of its time.
    """

    def _metric_init(self) -> None:  # called once per set of labels
        super()._metric_init()
        self._pending: list[float] = []
        _buffered.append(self)

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count a value at the next `flush`."""
        self._pending.append(amount)

    def flush(self) -> None:
        """Count the values observed since the last call."""
        if not self._pending:
            return
        values, self._pending = self._pending, []
        self._sum.inc(sum(values))
        # A value belongs to the first bucket whose upper bound it does not exceed.
        for index, count in Counts(bisect_left(self._upper_bounds, v) for v in values).items():
            self._buckets[index].inc(count)


class BufferedCounter(Counter):
    """A counter that writes what it counted at the next `flush`: requests are refused in floods."""

    def _metric_init(self) -> None:  # called once per set of labels
        super()._metric_init()
        self._pending = 0.0
        _buffered.append(self)

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Count at the next `flush`."""
        self._pending += amount

    def flush(self) -> None:
        """Count what was counted since the last call."""
        if self._pending:
            pending, self._pending = self._pending, 0.0
            super().inc(pending)


_buffered: list[BufferedHistogram | BufferedCounter | Judgements | TritonCounters] = []


def flush() -> None:
    """Write the observations of this process to the files that every worker reads."""
    for metric in _buffered:
        metric.flush()


_requests = BufferedHistogram(
    "mnist_request_seconds",
    "Time from a request's arrival to its answer; its count is the number of requests.",
    ["transport", "operation", "code"],
    buckets=_SECONDS,
)
_batches = BufferedHistogram(
    "mnist_batch_images", "Images in each run of a model.", _PER_MODEL, buckets=_ROWS
)
_inference = BufferedHistogram(
    "mnist_inference_seconds", "Time of each run of a model.", _PER_MODEL, buckets=_SECONDS
)
_loop_lag = BufferedHistogram(
    "mnist_event_loop_lag_seconds",
    "How late the event loop of a worker runs a timer that is due 10 times a second.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0),
)
_inference_failures = Counter(
    "mnist_inference_failures", "Runs of a model that raised an error.", _PER_MODEL
)
_grpc_connections_closed = Counter(
    "mnist_grpc_connections_closed",
    "gRPC connections that ended: closed by the client (peer), or by the server, by reason.",
    ["reason"],
)
_shed = BufferedCounter(
    "mnist_shed_requests",
    "Requests refused at once: the queue is full (queue), the wait too long (time), or too long "
    "for the deadline (deadline).",
    [*_PER_MODEL, "reason"],
)
_access_refused = BufferedCounter(
    "mnist_access_refused",
    "Requests refused because of what their callers show: no key (missing), something that is no "
    "key (malformed), a key or certificate that is not in the file (unknown), one that has "
    "expired, or one without the scope (scope).",
    ["reason"],
)
_predictions = Counter(
    "mnist_predictions",
    "Digits predicted for people, by whether the input was accepted as a digit (unknown: the "
    "model does not judge), and why not.",
    [*_PER_MODEL, "accepted", "reason"],
)
_runs_terminated = Counter(
    "mnist_runs_terminated", "Runs of a model that were ended after max_run_seconds.", _PER_MODEL
)
_http_connections_closed = Counter(
    "mnist_http_connections_closed",
    "HTTP connections that the server closed because nothing happened on them, by reason.",
    ["reason"],
)
_model_info = Gauge(
    "mnist_model_info",
    "1 for a loaded version, with the execution provider that runs it and its file's SHA-256.",
    [*_PER_MODEL, "provider", "sha256"],
    multiprocess_mode="livemax",
)
_load_failures = Gauge(
    "mnist_model_load_failures",
    "Versions in the repository that could not be loaded.",
    multiprocess_mode="livemax",
)
_inflight_bytes = Gauge(
    "mnist_inflight_bytes",
    "Bytes of requests and answers that the workers hold (max_inflight_bytes each).",
    multiprocess_mode="livesum",
)
_inflight_refused = Counter(
    "mnist_inflight_refused",
    "Requests that were refused or given up because of max_inflight_bytes.",
    ["transport"],
)
_limited = Counter(
    "mnist_limited_requests",
    "Requests that were refused because their caller had used up a limit: requests or images.",
    ["limit"],
)
_traces_exported = Counter("mnist_traces_exported", "Traces that were sent to the collector.")
_traces_dropped = Counter(
    "mnist_traces_dropped",
    "Traces that were lost: the queue was full (queue), or the collector did not take them "
    "(export).",
    ["reason"],
)
traces_exported = _traces_exported.inc


def traces_dropped(reason: str, count: int) -> None:
    """Count traces that were not exported. May be called from any thread."""
    _traces_dropped.labels(reason).inc(count)


class Judgements:
    """Predictions of one version by `accepted` and reason, which go to Prometheus at a `flush`."""

    def __init__(self, model: str, version: str) -> None:
        keys = [(None, ""), (True, ""), *((False, reason) for reason in _WHY)]
        self._counters = {
            (accepted, reason): _predictions.labels(model, version, _ACCEPTED[accepted], reason)
            for accepted, reason in keys
        }
        self.counts: Counts[tuple[bool | None, str]] = Counts()
        _buffered.append(self)

    def flush(self) -> None:
        """Count the predictions made since the last call."""
        for (accepted, reason), count in self.counts.items():
            # A model of another convention may give a reason for what it accepts, or none.
            key = accepted, "" if accepted is not False else reason or _WHY[-1]
            self._counters[key].inc(count)
        self.counts.clear()


_judgements = cache(Judgements)


# Triton's counters, by the fields that `TritonCounters.flush` adds up. They are gauges for
# prometheus_client, which would give counters the suffix _total; `exposition` calls them counters.
_triton = {
    name: Gauge(f"nv_inference_{name}", doc, labels, multiprocess_mode="sum")
    for name, doc, labels in (
        ("request_success", "Requests that succeeded.", _PER_MODEL),
        ("request_failure", "Requests that failed.", [*_PER_MODEL, "reason"]),
        ("count", "Inferences: a request with N rows counts N times.", _PER_MODEL),
        ("exec_count", "Runs of the model.", _PER_MODEL),
        ("request_duration_us", "Microseconds from arrival to answer.", _PER_MODEL),
        ("queue_duration_us", "Microseconds that requests waited.", _PER_MODEL),
        ("compute_input_duration_us", "Microseconds to join inputs.", _PER_MODEL),
        ("compute_infer_duration_us", "Microseconds of inference.", _PER_MODEL),
        ("compute_output_duration_us", "Microseconds to split outputs.", _PER_MODEL),
    )
}
_triton_pending = Gauge(
    "nv_inference_pending_request_count",
    "Requests in the queue.",
    _PER_MODEL,
    multiprocess_mode="livesum",
)
_TRITON_TYPE = re.compile(rb"(?m)^(# TYPE nv_inference_(?!pending)\w+) gauge$")


class TritonCounters:
    """What Triton counts of one version, which goes to Prometheus at a `flush`."""

    def __init__(self, model: str, version: str) -> None:
        labels = model, version
        self._counters = {
            name: gauge.labels(*labels)
            for name, gauge in _triton.items()
            if name != "request_failure"
        }
        self._failures = {
            reason: _triton["request_failure"].labels(*labels, reason)
            for reason in ("REJECTED", "OTHER")
        }
        self.runs: list[BatchRun] = []
        self.failures: Counts[str] = Counts()
        _buffered.append(self)

    def flush(self) -> None:
        """Count the runs and failures since the last call."""
        sums = dict.fromkeys(self._counters, 0.0)
        for run in self.runs:
            sums["request_success"] += run.requests
            sums["count"] += run.rows
            sums["exec_count"] += 1
            sums["request_duration_us"] += run.answered
            sums["queue_duration_us"] += run.queued
            # The times of a run are those of each of its requests, as in Triton's statistics.
            sums["compute_input_duration_us"] += run.joining * run.requests
            sums["compute_infer_duration_us"] += run.inference * run.requests
            sums["compute_output_duration_us"] += run.splitting * run.requests
        self.runs.clear()
        for name, value in sums.items():
            if value:
                self._counters[name].inc(value * 1e6 if name.endswith("_us") else value)
        for reason, number in self.failures.items():
            self._failures[reason].inc(number)
        self.failures.clear()


_triton_counters = cache(TritonCounters)


class ModelMetrics(ModelStatistics):
    """The statistics of one version of a model, which also go to Prometheus and to the log."""

    def __init__(self, model: str, version: str) -> None:
        super().__init__()
        self.model = model, version
        self._name = f"Model {model} version {version}"
        self.judgements = _judgements(model, version).counts
        self._rows_of_runs = _batches.labels(model, version)
        self._seconds_of_runs = _inference.labels(model, version)
        self._failures = _inference_failures.labels(model, version)
        self._shed = {r: _shed.labels(model, version, r) for r in ("queue", "time", "deadline")}
        self._terminated = _runs_terminated.labels(model, version)

    def ran(self, run: BatchRun) -> None:
        """Record a run that succeeded."""
        super().ran(run)
        self._rows_of_runs.observe(run.rows)
        self._seconds_of_runs.observe(run.joining + run.inference + run.splitting)

    def shed(self, reason: str) -> None:
        """Count a request that was refused at once."""
        super().shed(reason)
        self._shed[reason].inc()

    def run_failed(self, error: Exception) -> None:
        """Record what the model raised on a single request."""
        self._failures.inc()
        log.error("%s failed on a request: %s", self._name, error)

    def run_terminated(self, seconds: float) -> None:
        """Record that a run was ended after this time."""
        self._terminated.inc()
        log.error("%s: a run is ended after %g s (max_run_seconds).", self._name, seconds)


class TritonModelMetrics(ModelMetrics):
    """The same, which also go to Prometheus under Triton's names."""

    def __init__(self, model: str, version: str) -> None:
        super().__init__(model, version)
        self._triton = _triton_counters(model, version)

    def ran(self, run: BatchRun) -> None:
        """Record a run that succeeded."""
        super().ran(run)
        self._triton.runs.append(run)

    def shed(self, reason: str) -> None:
        """Count a request that was refused at once."""
        super().shed(reason)
        self._triton.failures["OTHER"] -= 1  # as which `failed` has counted it
        self._triton.failures["REJECTED"] += 1

    def failed(self, seconds: float) -> None:
        """Count a request that ended without outputs."""
        super().failed(seconds)
        self._triton.failures["OTHER"] += 1


class Metrics:
    """The metrics of one worker. An observation costs next to nothing until it is flushed."""

    def __init__(self) -> None:
        _forget_dead_workers()
        self._loaded: set[tuple[str, str, str, str]] = set()
        self._pending: set[tuple[str, str]] = set()

    # Requests use the same few sets of labels; looking one up in prometheus_client takes 3 us.
    request = staticmethod(cache(_requests.labels))
    loop_lag = staticmethod(_loop_lag.observe)
    inflight_bytes = staticmethod(_inflight_bytes.set)

    @staticmethod
    def inflight_refused(transport: str) -> None:
        """Count a request that `max_inflight_bytes` refused."""
        _inflight_refused.labels(transport).inc()

    @staticmethod
    def limited(limit: str) -> None:
        """Count a request of a caller that has used up its `requests` or `images`."""
        _limited.labels(limit).inc()

    def pending(self, requests: Mapping[tuple[str, str], int]) -> None:
        """Report how many requests wait for each (model, version), under Triton's name."""
        for version in self._pending - requests.keys():
            _triton_pending.labels(*version).set(0)
        for version, count in requests.items():
            _triton_pending.labels(*version).set(count)
        self._pending = set(requests)

    def models_loaded(self, models: set[tuple[str, str, str, str]], failures: int) -> None:
        """Report the loaded (model, version, provider, sha256), and how many versions failed."""
        # A set of labels cannot be removed in multiprocess mode: 0 means no longer loaded.
        for unloaded in self._loaded - models:
            _model_info.labels(*unloaded).set(0)
        for model in models:
            _model_info.labels(*model).set(1)
        self._loaded = models
        _load_failures.set(failures)


# Each reason exists from the start: a counter that begins at 1 has not increased for Prometheus.
_HTTP_REASONS = ("headers", "idle", "keepalive", "unread", "displaced", "malformed")
_http_closed = {reason: _http_connections_closed.labels(reason) for reason in _HTTP_REASONS}
_GRPC_REASONS = ("peer", "headers", "idle", "keepalive", "age", "unread", "resets", "error", "stop")
_grpc_closed = {
    reason: _grpc_connections_closed.labels(reason)
    for reason in (*_GRPC_REASONS, "displaced", "refused", "handshake")
}


def http_connection_closed(reason: str) -> None:
    """Count an HTTP connection that the server closed."""
    _http_closed[reason].inc()


def grpc_connection_closed(reason: str) -> None:
    """Count a connection of the server's own gRPC front that ended."""
    _grpc_closed[reason].inc()


def access_refused(reason: str) -> None:
    """Count a request that the gate refused."""
    _access_refused.labels(reason).inc()


def exposition() -> bytes:
    """The flushed metrics of all workers, in Prometheus' text format 0.0.4.

    Raises OSError if they cannot be read, as without a free descriptor.
    """
    registry = CollectorRegistry()
    registry.register(_AllWorkers())
    registry.register(_SharedCounts())
    return _TRITON_TYPE.sub(rb"\1 counter", generate_latest(registry))


_replaced: Replacements | None = None


def share(replaced: Replacements) -> None:
    """Report what the supervisor counts in memory that it shares with the workers."""
    global _replaced  # noqa: PLW0603
    _replaced = replaced


class _AllWorkers:
    """What the files of all workers hold.

    prometheus_client's own collector takes a folder that it cannot list for an empty one.
    """

    def collect(self) -> Iterable[Metric]:
        files = [
            str(path) for path in Path(os.environ[DIRECTORY]).iterdir() if path.suffix == ".db"
        ]
        metrics: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return metrics


class _SharedCounts:
    def collect(self) -> Iterator[CounterMetricFamily]:
        if _replaced is not None:
            family = CounterMetricFamily(
                "mnist_workers_replaced",
                "Workers that were replaced because they did not respond (silent), ended, or had "
                "a run of a model that could not be ended (stuck_run).",
                labels=["reason"],
            )
            family.add_metric(["silent"], _replaced.silent)
            family.add_metric(["ended"], _replaced.ended)
            family.add_metric(["stuck_run"], _replaced.stuck_run)
            yield family


def _forget_dead_workers() -> None:
    """Remove the gauges of killed workers; their counters and histograms stay."""
    for file in Path(os.environ[DIRECTORY]).glob("gauge_live*.db"):
        pid = int(file.stem.rsplit("_", 1)[-1])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
