"""How often one version of a model ran, and how the time of its requests was spent.

Source: Triton's "Statistics Extension"; the dictionaries here have its names and units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# Bounds memory against a client that sends every batch size.
_MAX_BATCH_SIZES = 1024
_MAX_UNCOUNTED = 1024

_PARTS = ("compute_input", "compute_infer", "compute_output")


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

    def run_failed(self, error: Exception) -> None:
        """The protocol has no counter for runs that raised; `failed` counts their requests."""

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

    def as_dict(self) -> dict[str, Any]:
        """The counters by the extension's names; durations are {"count", "ns"}."""
        self._count()
        succeeded = self._success[0]
        return {
            "last_inference": int(self._last_run * 1000),
            "inference_count": self._rows,
            "execution_count": self._runs,
            "inference_stats": {
                "success": _duration(*self._success),
                "fail": _duration(*self._fail),
                "queue": _duration(succeeded, self._queued),
                **{
                    name: _duration(succeeded, seconds)
                    for name, seconds in zip(_PARTS, self._parts, strict=True)
                },
                "cache_hit": _duration(0, 0.0),
                "cache_miss": _duration(0, 0.0),
            },
            "batch_stats": [
                {"batch_size": rows}
                | {
                    name: _duration(size[0], seconds)
                    for name, seconds in zip(_PARTS, size[1:], strict=True)
                }
                for rows, size in sorted(self._sizes.items())
            ],
        }


def merge(dictionaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Add up the `as_dict` of several processes, at least one."""
    first, *others = dictionaries
    for other in others:
        first = {
            "last_inference": max(first["last_inference"], other["last_inference"]),
            "inference_count": first["inference_count"] + other["inference_count"],
            "execution_count": first["execution_count"] + other["execution_count"],
            "inference_stats": _add(first["inference_stats"], other["inference_stats"]),
            "batch_stats": _add_sizes(first["batch_stats"], other["batch_stats"]),
        }
    return first


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": int(seconds * 1e9)}


def _add(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value[key] + other[name][key] for key in ("count", "ns")}
        for name, value in one.items()
    }


def _add_sizes(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sizes = {entry["batch_size"]: entry for entry in one}
    for entry in other:
        rows = entry["batch_size"]
        if rows in sizes:
            parts = [{k: v for k, v in e.items() if k in _PARTS} for e in (sizes[rows], entry)]
            sizes[rows] = {"batch_size": rows} | _add(*parts)
        else:
            sizes[rows] = entry
    return [sizes[rows] for rows in sorted(sizes)]
