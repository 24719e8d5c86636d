"""python -m benchmarks.engine: what each option of ONNX Runtime costs, beside its default.

No server: a session in a loop, for both models, at 1 to 512 rows. Configurations take turns, so
that drift hits all alike; the memory of each is read in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from benchmarks import machine, models
from benchmarks.engine_report import write_report
from benchmarks.models import Pixels, Probabilities
from benchmarks.settings import RESULTS
from benchmarks.statistics import median
from service.runtime.session import SessionOptions, load

Run = Callable[[Pixels], Sequence[Probabilities]]
_LEAST_RUNS = 3


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run a model; the defaults are ONNX Runtime's own, on one thread.

    `file` is what is loaded: the published file, that graph optimised beforehand, or the same in
    ORT's own format. `part` is the most rows of one run, 0 for no bound. `call` is how it is run:
    by the public method, by the one within it, or with bound outputs allocated beforehand.
    `served` is what the service does, whatever the other fields say.
    """

    name: str
    threads: int = 1
    spinning: bool = True
    level: str = "ORT_ENABLE_ALL"
    arena: Literal["", "off", "as requested", "shrunk"] = ""
    pattern: bool = True
    part: int = 0
    call: Literal["run", "inner", "bound"] = "run"
    file: Literal["onnx", "optimised", "ort"] = "onnx"
    served: bool = False


CONFIGURATIONS: Sequence[Configuration] = (
    Configuration("default, 1 thread"),
    Configuration("spinning off", spinning=False),
    Configuration("2 threads", threads=2),
    Configuration("2 threads, spinning off", threads=2, spinning=False),
    Configuration("graph not optimised", level="ORT_DISABLE_ALL"),
    Configuration("graph optimised: basic", level="ORT_ENABLE_BASIC"),
    Configuration("graph optimised: extended", level="ORT_ENABLE_EXTENDED"),
    Configuration("no memory pattern", pattern=False),
    Configuration("no arena", arena="off"),
    Configuration("arena grows as requested", arena="as requested"),
    Configuration("arena shrunk after a run", arena="shrunk"),
    *(Configuration(f"parts of {rows}", part=rows) for rows in (32, 64, 128, 256)),
    Configuration("parts of 64, no pattern", part=64, pattern=False),
    Configuration("without the Python wrapper", call="inner"),
    Configuration("bound, allocated outputs", call="bound"),
    Configuration("optimised graph from a file", file="optimised", level="ORT_DISABLE_ALL"),
    Configuration("ORT format", file="ort", level="ORT_DISABLE_ALL"),
    Configuration("as served", served=True),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: rows of a run, rounds, and seconds of each in a round."""

    rows: Sequence[int] = (1, 16, 64, 512)
    rounds: int = 5
    seconds: float = 0.1
    # After so many runs of the most rows, memory is read again.
    runs_before_memory: int = 20


@dataclass(slots=True)
class Measured:
    """Samples of one configuration with one model, one a round; MB of its own process."""

    configuration: str
    model: str
    load_ms: list[float] = field(default_factory=list)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    loaded_mb: float = 0.0
    used_mb: float = 0.0
    peak_mb: float = 0.0


def make_run(configuration: Configuration, files: Mapping[str, Path]) -> Run:
    """Load the model; a function that gives its outputs for some images."""
    path = files[configuration.file]
    if configuration.served:
        served = load(path, SessionOptions("cpu"))
        return lambda images: served.run([images])
    session = ort.InferenceSession(
        str(path), _options(configuration), providers=["CPUExecutionProvider"]
    )
    run = _call(session, configuration)
    part = configuration.part
    if not part:
        return run

    def in_parts(images: Pixels) -> Sequence[Probabilities]:
        if len(images) <= part:
            return run(images)
        parts = [run(images[start : start + part]) for start in range(0, len(images), part)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    return in_parts


def _options(configuration: Configuration) -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.intra_op_num_threads = configuration.threads
    made.inter_op_num_threads = 1
    made.log_severity_level = 3
    made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, configuration.level)
    made.enable_mem_pattern = configuration.pattern
    made.enable_cpu_mem_arena = configuration.arena != "off"
    spinning = str(int(configuration.spinning))
    made.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    if configuration.arena == "as requested":
        info = ort.OrtMemoryInfo(
            "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
        )
        # No bound, kSameAsRequested, and the defaults of the rest. One a process: a second one
        # takes the place of the first.
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, 1, -1, -1))
        made.add_session_config_entry("session.use_env_allocators", "1")
    return made


def _call(session: ort.InferenceSession, configuration: Configuration) -> Run:
    names = [node.name for node in session.get_outputs()]
    if configuration.call == "bound":
        return _bound(session, names)
    run = session.run if configuration.call == "run" else session._sess.run
    options = ort.RunOptions() if configuration.arena == "shrunk" else None
    if options is not None:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return lambda images: run(names, {"image": images}, options)


def _bound(session: ort.InferenceSession, names: Sequence[str]) -> Run:
    bindings: dict[int, tuple[ort.IOBinding, list[Probabilities]]] = {}

    def run(images: Pixels) -> Sequence[Probabilities]:
        if len(images) not in bindings:
            outputs = [np.empty((len(images), 10), np.float32) for _ in names]
            binding = session.io_binding()
            for name, output in zip(names, outputs, strict=True):
                binding.bind_output(name, "cpu", 0, np.float32, output.shape, output.ctypes.data)
            bindings[len(images)] = binding, outputs
        binding, outputs = bindings[len(images)]
        binding.bind_cpu_input("image", images)
        session.run_with_iobinding(binding)
        return outputs

    return run


def write_files(model: str, folder: Path) -> dict[str, Path]:
    """The published file, and in the folder its optimised graph as ONNX and in ORT's format."""
    files = {"onnx": models.onnx_file(model)}
    for kind, name in (("optimised", "model.onnx"), ("ort", "model.ort")):
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that the file fits this kind of CPU only
        files[kind] = folder / name
        options.optimized_model_filepath = str(files[kind])
        ort.InferenceSession(str(files["onnx"]), options, providers=["CPUExecutionProvider"])
    return files


def memory_mb(
    configuration: Configuration, files: Mapping[str, Path], rows: int, runs: int
) -> tuple[float, float, float]:
    """Of this process: resident after loading, after so many runs, and at its peak."""
    images = models.test_images(rows)
    run = make_run(configuration, files)
    loaded = _status_mb("VmRSS")
    for _ in range(runs):
        run(images)
    return loaded, _status_mb("VmRSS"), _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status does not tell {name}")


def measure_model(
    model: str, configurations: Sequence[Configuration], plan: Plan, folder: Path
) -> list[Measured]:
    """Every configuration with one model."""
    files = write_files(model, folder)
    told = [
        Measured(each.name, model, seconds={n: [] for n in plan.rows}) for each in configurations
    ]
    runs = [make_run(each, files) for each in configurations]
    for _ in range(plan.rounds):
        for configuration, measured in zip(configurations, told, strict=True):
            start = time.perf_counter()
            make_run(configuration, files)
            measured.load_ms.append((time.perf_counter() - start) * 1000)
        for rows in plan.rows:
            images = models.test_images(rows)
            for run, measured in zip(runs, told, strict=True):
                measured.seconds[rows].append(_time(run, images, plan.seconds))
    fresh = multiprocessing.get_context("spawn")
    for configuration, measured in zip(configurations, told, strict=True):
        with ProcessPoolExecutor(1, mp_context=fresh) as executor:
            measured.loaded_mb, measured.used_mb, measured.peak_mb = executor.submit(
                memory_mb, configuration, files, max(plan.rows), plan.runs_before_memory
            ).result()
    return told


def _time(run: Run, images: Pixels, seconds: float) -> float:
    """Seconds of a run, the median of as many as fit."""
    run(images)
    times: list[float] = []
    start = before = time.perf_counter()
    while before - start < seconds or len(times) < _LEAST_RUNS:
        run(images)
        after = time.perf_counter()
        times.append(after - before)
        before = after
    return median(times)


def measure(
    names: Sequence[str], configurations: Sequence[Configuration], plan: Plan, folder: Path
) -> Path:
    """Measure the models of these names; the file written."""
    described, now = machine.describe(), datetime.datetime.now(datetime.UTC)
    told: dict[str, Any] = {
        "date": now.isoformat(timespec="seconds"), "machine": described, "plan": asdict(plan),
        "onnxruntime": ort.__version__, "configurations": [asdict(each) for each in configurations],
        "measured": [],
    }  # fmt: skip
    path = machine.results_file(folder, now, described, "engine")
    folder.mkdir(parents=True, exist_ok=True)
    for model in names:
        with tempfile.TemporaryDirectory(prefix="mnist-engine-") as scratch:
            found = measure_model(model, configurations, plan, Path(scratch))
        told["measured"] += [asdict(each) for each in found]
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write DATE-MACHINE-engine.json with its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--models", default=",".join(models.NAMES), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=Plan().rounds)
    parser.add_argument("--seconds", type=float, default=Plan().seconds)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    names = given.models.split(",")
    if unknown := set(names) - set(models.NAMES):
        print(f"engine: There is no model '{min(unknown)}'.", file=sys.stderr)
        return 2
    plan = Plan(rounds=given.rounds, seconds=given.seconds)
    print(write_report(measure(names, CONFIGURATIONS, plan, given.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
