"""How long one run takes: on CUDA with graphs, on CUDA without, on one thread of the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import read_mnist
from tests.gpu.check import Check, Place
from tests.gpu.sessions import ROOT, load, load_cpu

_COUNTS = (1, 4, 16, 64, 256, 512)
_SECONDS_EACH, _FEWEST = 0.25, 20


def table(place: Place) -> str:
    """Medians in microseconds, for every model that the repository has."""
    found = []
    for path in sorted((ROOT / "models").glob("*/*/model.onnx")):
        found.append(f"{path.parent.relative_to(ROOT / 'models')}\n{_table_of(place, path)}")
    return "microseconds, median of runs; " + "\n".join(found)


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
    took: list[float] = []
    end = time.perf_counter() + _SECONDS_EACH
    while len(took) < _FEWEST or time.perf_counter() < end:
        began = time.perf_counter()
        run(count)
        took.append(time.perf_counter() - began)
    return statistics.median(took[len(took) // 10 :]) * 1e6


CHECKS = (Check("latency", table, 60, alone=True),)
