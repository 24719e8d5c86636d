"""How often one version of a model ran, and how the time of its requests was spent.

Source: Triton's "Statistics Extension"; the typed dictionaries here have its names and units, and
are what workers send each other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypedDict

# Bounds memory against a client that sends every batch size.
_MAX_BATCH_SIZES = 1024
_MAX_UNCOUNTED = 1024


class Duration(TypedDict):
    """A number of requests or runs, and the sum of their times in nanoseconds."""

    count: int
    ns: int


class InferenceStatistics(TypedDict):
    """The extension's `inference_stats`."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(TypedDict):
    """An entry of the extension's `batch_stats`: the runs of one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class Counters(TypedDict):
    """The counters of one version of a model; `last_inference` in milliseconds since 1970."""

    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class BatchRun(NamedTuple):
    """One run of a model; times in seconds.

    `answered` and `queued` are sums over its requests: from arrival to answer, and from arrival to
    the start of the run. `joining`, `inference` and `splitting` are the run's own.
    """

    requests: int
    rows: int
    answered: float
    queued: float
    joining: float
    inference: float
    splitting: float


class ModelStatistics:
    """The counters of one version. Lives on one event loop.

    `wall_clock` returns seconds since 1970, for the time of the last inference.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        # Predictions by `accepted` and reason (core.digits), counted by operations.digits.
        self.judgements: Counter[tuple[bool | None, str]] = Counter()
        self.model = ("", "")  # name and version, for traces
        self._wall_clock = wall_clock
        self._uncounted: list[BatchRun] = []
        self._last_run = 0.0
        self._rows = 0
        self._runs = 0
        self._success = [0, 0.0]
        self._fail = [0, 0.0]
        self._queued = 0.0
        # seconds per part, summed over the requests of each run
        self._parts = [0.0, 0.0, 0.0]
        # rows -> number of runs, then seconds per part
        self._sizes: dict[int, list[float]] = {}

    def ran(self, run: BatchRun) -> None:
        """Record a run. Counting it waits for `as_dict`: this is on the request path."""
        self._last_run = self._wall_clock()
        self._uncounted.append(run)
        if len(self._uncounted) == _MAX_UNCOUNTED:
            self._count()

    def failed(self, seconds: float) -> None:
        """Count a request that ended without outputs, this long after it arrived."""
        self._fail[0] += 1
        self._fail[1] += seconds

    def shed(self, reason: str) -> None:
        """Count a request that was refused at once.

        The reason is queue (it is full), time (the wait is too long) or deadline (the wait is too
        long for the deadline of the request).
        """
        self.failed(0.0)

    def run_failed(self, error: Exception) -> None:
        """The protocol has no counter for runs that raised; `failed` counts their requests."""

    def run_terminated(self, seconds: float) -> None:
        """The protocol has no counter for runs that were ended after this time either."""

    def _count(self) -> None:
        for run in self._uncounted:
            self._rows += run.rows
            self._runs += 1
            self._success[0] += run.requests
            self._success[1] += run.answered
            self._queued += run.queued
            size = self._sizes.get(run.rows)
            if size is None and len(self._sizes) < _MAX_BATCH_SIZES:
                size = self._sizes[run.rows] = [0, 0.0, 0.0, 0.0]
            for part, seconds in enumerate((run.joining, run.inference, run.splitting)):
                self._parts[part] += seconds * run.requests
                if size is not None:
                    size[part + 1] += seconds
            if size is not None:
                size[0] += 1
        self._uncounted.clear()

    def as_dict(self) -> Counters:
        """The counters by the extension's names."""
        self._count()
        succeeded = self._success[0]
        input_s, infer_s, output_s = self._parts
        return {
            "last_inference": int(self._last_run * 1000),
            "inference_count": self._rows,
            "execution_count": self._runs,
            "inference_stats": {
                "success": _duration(*self._success),
                "fail": _duration(*self._fail),
                "queue": _duration(succeeded, self._queued),
                "compute_input": _duration(succeeded, input_s),
                "compute_infer": _duration(succeeded, infer_s),
                "compute_output": _duration(succeeded, output_s),
                "cache_hit": _duration(0, 0.0),
                "cache_miss": _duration(0, 0.0),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": _duration(runs, input_s),
                    "compute_infer": _duration(runs, infer_s),
                    "compute_output": _duration(runs, output_s),
                }
                for rows, (runs, input_s, infer_s, output_s) in sorted(self._sizes.items())
            ],
        }


def merge(counters: Iterable[Counters]) -> Counters:
    """Add up the counters of several processes; there is at least one."""
    total, *others = counters
    for other in others:
        one, two = total["inference_stats"], other["inference_stats"]
        total = {
            "last_inference": max(total["last_inference"], other["last_inference"]),
            "inference_count": total["inference_count"] + other["inference_count"],
            "execution_count": total["execution_count"] + other["execution_count"],
            "inference_stats": {
                "success": _sum(one["success"], two["success"]),
                "fail": _sum(one["fail"], two["fail"]),
                "queue": _sum(one["queue"], two["queue"]),
                "compute_input": _sum(one["compute_input"], two["compute_input"]),
                "compute_infer": _sum(one["compute_infer"], two["compute_infer"]),
                "compute_output": _sum(one["compute_output"], two["compute_output"]),
                "cache_hit": _sum(one["cache_hit"], two["cache_hit"]),
                "cache_miss": _sum(one["cache_miss"], two["cache_miss"]),
            },
            "batch_stats": _merge_batches(total["batch_stats"], other["batch_stats"]),
        }
    return total


def _merge_batches(
    one: list[BatchStatistics], other: list[BatchStatistics]
) -> list[BatchStatistics]:
    by_size = {batch["batch_size"]: batch for batch in one}
    for batch in other:
        size = batch["batch_size"]
        total = by_size.get(size)
        by_size[size] = (
            batch
            if total is None
            else {
                "batch_size": size,
                "compute_input": _sum(total["compute_input"], batch["compute_input"]),
                "compute_infer": _sum(total["compute_infer"], batch["compute_infer"]),
                "compute_output": _sum(total["compute_output"], batch["compute_output"]),
            }
        )
    return [by_size[size] for size in sorted(by_size)]


def _duration(count: float, seconds: float) -> Duration:
    return {"count": int(count), "ns": int(seconds * 1e9)}


def _sum(one: Duration, other: Duration) -> Duration:
    return {"count": one["count"] + other["count"], "ns": one["ns"] + other["ns"]}
