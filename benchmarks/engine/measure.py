"""Measures every configuration: configurations take turns, so that drift affects all alike."""

from __future__ import annotations

import datetime
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import onnxruntime as ort

from benchmarks import host, served_models
from benchmarks.engine.results import EngineResults, Measured, Plan
from benchmarks.engine.sessions import Configuration, Run, make_run, write_files
from benchmarks.json_file import write_json
from benchmarks.medians import median
from benchmarks.served_models import Pixels

_MIN_RUNS = 3


def measure(
    models: Sequence[str], configurations: Sequence[Configuration], plan: Plan, folder: Path
) -> Path:
    """Measure the models with these names; returns the results file."""
    now, machine = datetime.datetime.now(datetime.UTC), host.describe()
    results = EngineResults(
        date=now.isoformat(timespec="seconds"),
        machine=machine,
        plan=plan,
        onnxruntime=ort.__version__,
        configurations=list(configurations),
    )
    path = host.results_file(folder, now, machine, "engine")
    for model in models:
        with tempfile.TemporaryDirectory(prefix="mnist-engine-") as scratch:
            results.measured += measure_model(model, configurations, plan, Path(scratch))
        write_json(path, results)
    return path


def measure_model(
    model: str, configurations: Sequence[Configuration], plan: Plan, folder: Path
) -> list[Measured]:
    """Measure every configuration with one model; the folder gets its optimised files."""
    files = write_files(model, folder)
    pairs = [
        (configuration, Measured(configuration.name, model, seconds={n: [] for n in plan.rows}))
        for configuration in configurations
    ]
    runs = [make_run(configuration, files) for configuration in configurations]
    for _ in range(plan.rounds):
        for configuration, measured in pairs:
            start = time.perf_counter()
            make_run(configuration, files)
            measured.load_ms.append((time.perf_counter() - start) * 1000)
        for rows in plan.rows:
            images = served_models.test_images(rows)
            for run, (_, measured) in zip(runs, pairs, strict=True):
                measured.seconds[rows].append(_seconds_per_run(run, images, plan.seconds))
    # The memory of a configuration is that of a new process.
    spawn = multiprocessing.get_context("spawn")
    for configuration, measured in pairs:
        with ProcessPoolExecutor(1, mp_context=spawn) as executor:
            measured.loaded_mb, measured.used_mb, measured.peak_mb = executor.submit(
                memory_mb, configuration, files, max(plan.rows), plan.runs_before_memory
            ).result()
    return [measured for _, measured in pairs]


def memory_mb(
    configuration: Configuration, files: Mapping[str, Path], rows: int, runs: int
) -> tuple[float, float, float]:
    """MB of this process: resident after loading, resident after the runs, and the peak."""
    images = served_models.test_images(rows)
    run = make_run(configuration, files)
    loaded = _status_mb("VmRSS")
    for _ in range(runs):
        run(images)
    return loaded, _status_mb("VmRSS"), _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {name}.")


def _seconds_per_run(run: Run, images: Pixels, seconds: float) -> float:
    """The median of the runs that fit into the time, at least three."""
    run(images)
    times: list[float] = []
    start = before = time.perf_counter()
    while before - start < seconds or len(times) < _MIN_RUNS:
        run(images)
        after = time.perf_counter()
        times.append(after - before)
        before = after
    return median(times)
