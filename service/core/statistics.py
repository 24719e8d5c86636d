"""How often one version of a model ran, and where the time of its requests went.

Source: Triton's "Statistics Extension"; the dictionaries here have its names and units.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

# Batch sizes that are counted apart; a caller who sends every size there is fills no memory.
_MOST_BATCH_SIZES = 1024
_MOST_WAITING = 1024

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
    """The counters of one version. Lives on one event loop."""

    def __init__(self) -> None:
        self._waiting: list[BatchRun] = []
        self._last_run = 0.0
        self._rows = 0
        self._runs = 0
        self._success = [0, 0.0]
        self._fail = [0, 0.0]
        self._queued = 0.0
        # seconds by part, summed over the requests that shared in a run
        self._parts = [0.0, 0.0, 0.0]
        # rows -> runs, then seconds by part
        self._sizes: dict[int, list[float]] = {}

    def ran(self, run: BatchRun) -> None:
        """Count a run, once there are many or somebody asks: this is on the path of a request."""
        self._last_run = time.time()
        self._waiting.append(run)
        if len(self._waiting) == _MOST_WAITING:
            self._count()

    def _count(self) -> None:
        for run in self._waiting:
            self._add(run)
        self._waiting.clear()

    def _add(self, run: BatchRun) -> None:
        self._rows += run.rows
        self._runs += 1
        self._success[0] += run.requests
        self._success[1] += run.answered
        self._queued += run.queued
        size = self._sizes.get(run.rows)
        if size is None and len(self._sizes) < _MOST_BATCH_SIZES:
            size = self._sizes[run.rows] = [0, 0.0, 0.0, 0.0]
        for part, seconds in enumerate(run[-3:]):
            self._parts[part] += seconds * run.requests
            if size is not None:
                size[part + 1] += seconds
        if size is not None:
            size[0] += 1

    def failed(self, seconds: float) -> None:
        """Count a request that got no answer, so many seconds after it came."""
        self._fail[0] += 1
        self._fail[1] += seconds

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
    """Add up what `as_dict` says in several processes; there is at least one."""
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
