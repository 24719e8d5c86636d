"""Measures the time of one run: on CUDA with and without graphs, and on one CPU thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import read_mnist
from tests.gpu.check import Check, Place
from tests.gpu.sessions import ROOT, load, load_cpu

_COUNTS = (1, 4, 16, 64, 256, 512)
_MIN_SECONDS, _MIN_RUNS = 0.25, 20


def table(place: Place) -> str:
    """Median times in microseconds, for every model in models/."""
    tables = []
    for path in sorted((ROOT / "models").glob("*/*/model.onnx")):
        tables.append(f"{path.parent.relative_to(ROOT / 'models')}\n{_table_of(place, path)}")
    return "microseconds, median of runs; " + "\n".join(tables)


def _table_of(place: Place, path: Path) -> str:
    import onnxruntime as ort

    from service.runtime import session

    images, _ = read_mnist()
    cpu = load_cpu(path)
    of_64, of_256, of_512 = (load(place, path, rows) for rows in (64, 256, 512))
    plain = ort.InferenceSession(
        str(path), providers=[session.CUDA if place.on_cuda else session.CPU]
    )
    assert plain.get_providers()[0] == session.CUDA, plain.get_providers()
    (name,) = [node.name for node in plain.get_inputs()]
    columns: dict[str, Callable[[int], object]] = {
        "graphs to 64": lambda count: of_64.run([images[:count]]),
        "graphs to 256": lambda count: of_256.run([images[:count]]),
        "graphs to 512": lambda count: of_512.run([images[:count]]),
        "no graphs": lambda count: plain.run(None, {name: images[:count]}),
        "cpu": lambda count: cpu.run([images[:count]]),
    }
    lines = [" ".join(f"{title:>14}" for title in ("images", *columns))]
    for count in _COUNTS:
        medians = [_median(run, count) for run in columns.values()]
        lines.append(" ".join(f"{value:>14.0f}" for value in (count, *medians)))
    return "\n".join(lines)


def _median(run: Callable[[int], object], count: int) -> float:
    times: list[float] = []
    end = time.perf_counter() + _MIN_SECONDS
    while len(times) < _MIN_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run(count)
        times.append(time.perf_counter() - start)
    return statistics.median(times[len(times) // 10 :]) * 1e6  # without the first tenth: warm-up


CHECKS = (Check("latency", table, 60, alone=True),)
