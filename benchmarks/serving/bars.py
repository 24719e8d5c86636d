"""The performance targets ("bars") of this server as data, and whether a run reaches them.

A bar is a ratio to a reference in the same run, or an absolute bound. Where the model matters, each
model has its own bar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.medians import median
from benchmarks.served_models import NAMES
from benchmarks.serving.results import Results, Sample

# throughput is requests/s; per_core corrects it for the CPU that the load generator used.
Metric = Literal["throughput", "per_core", "ready_seconds", "worker_rss_mb"]
SLOW_RIVALS = ("mlserver", "litserve", "bentoml", "ray", "kserve")


@dataclass(frozen=True, slots=True)
class Bar:
    """`factor` is the lowest ratio to the reference, or the highest absolute value."""

    name: str
    scenario: str
    factor: float
    metric: Metric = "throughput"
    contender: str = "ours"
    reference: str = ""
    reference_scenario: str = ""

    @property
    def is_ratio(self) -> bool:
        return bool(self.reference)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and its measured value; NaN and `holds` None if it was not measured."""

    bar: Bar
    measured: float
    holds: bool | None


def judge(results: Results, bars: Sequence[Bar]) -> list[Verdict]:
    """Compare every bar with the medians of a run."""
    verdicts = []
    for bar in bars:
        measured = _value(results, bar.metric, bar.contender, bar.scenario)
        if bar.is_ratio:
            scenario = bar.reference_scenario or bar.scenario
            below = _value(results, bar.metric, bar.reference, scenario)
            measured = measured / below if below else math.nan
        if math.isnan(measured):
            verdicts.append(Verdict(bar, measured, None))
        else:
            holds = measured >= bar.factor if bar.is_ratio else measured <= bar.factor
            verdicts.append(Verdict(bar, measured, holds))
    return verdicts


def _value(results: Results, metric: Metric, contender: str, scenario: str) -> float:
    """A median; NaN if it was not measured."""
    record = next((record for record in results.contenders if record.name == contender), None)
    if record is None:
        return math.nan
    if metric == "ready_seconds":
        return median(record.ready_seconds)
    if metric == "worker_rss_mb":
        return record.peak_worker_rss_mb or math.nan
    workers = {each.name: each.workers for each in results.scenarios}
    return median(
        sample.requests_per_s
        if metric == "throughput"
        else per_core(sample, workers[scenario], results.machine.cores)
        for sample in results.undisturbed()
        if (sample.contender, sample.scenario) == (contender, scenario)
    )


def per_core(sample: Sample, workers: int, cores: int) -> float:
    """Requests/s of all workers if each had a core to itself.

    One worker has its own core, because the load generator is pinned to another. More workers share
    all cores with the generator, so its share is added back in proportion.
    """
    if workers == 1:
        return sample.requests_per_s
    available = min(float(workers), cores - sample.generator_cores)
    return sample.requests_per_s * workers / available


def _of_model(model: str) -> list[Bar]:
    suffix = "" if model == "fast" else f"-{model}"
    bars = []

    def ratio(
        name: str, scenario: str, factor: float, reference: str, of: str = "", **rest: Metric
    ) -> None:
        below = of + suffix if of else ""
        bars.append(
            Bar(
                name=f"{name} ({model})",
                scenario=scenario + suffix,
                factor=factor,
                reference=reference,
                reference_scenario=below,
                **rest,
            )
        )

    for connections in (16, 64):
        raw = f"raw-{connections}"
        ratio("raw: bare RSGI floor", raw, 0.75, "floor-rsgi")
        for rival in SLOW_RIVALS:
            ratio(f"raw: {rival}", raw, 5.0, rival)
        ratio("JSON: MLServer", f"json-{connections}", 4.0, "mlserver")
    for connections in (1, 16, 64):
        ratio("raw: Mosec", f"raw-{connections}", 1.0, "mosec")
        ratio("binary: raw", f"binary-{connections}", 0.9, "ours", f"raw-{connections}")
    for load in ("1", "32", "4x8"):
        ratio("gRPC: bare grpc.aio floor", f"grpc-{load}", 0.9, "floor-grpc")
        ratio("gRPC: MLServer", f"grpc-{load}", 2.0, "mlserver")
    for wire in ("binary", "grpc"):
        ratio("512 images: ONNX Runtime", f"bulk-{wire}", 0.85, "onnxruntime")
    for load, of in (("raw-128-2w", "raw-64"), ("grpc-16x4-2w", "grpc-4x8")):
        ratio("2 workers: 1 worker", load, 1.8, "ours", of, metric="per_core")
    return bars


BARS: Sequence[Bar] = [
    *(bar for model in NAMES for bar in _of_model(model)),
    Bar("batching: none, at 64 connections", "raw-64", 1.0, reference="ours-unbatched"),
    Bar("batching: none, at 1 connection", "raw-1", 0.97, reference="ours-unbatched"),
    Bar(name="seconds from start to ready", scenario="", factor=1.0, metric="ready_seconds"),
    Bar(name="MB of the largest process", scenario="", factor=130.0, metric="worker_rss_mb"),
]
