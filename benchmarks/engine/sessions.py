"""The options of ONNX Runtime under test, and the sessions that use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from benchmarks import served_models
from benchmarks.served_models import Output, Pixels
from service.runtime.session import SessionOptions, load

Run = Callable[[Pixels], Sequence[Output]]

_DTYPES = {"tensor(float)": np.float32, "tensor(bool)": np.bool_, "tensor(uint8)": np.uint8}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run a model; the defaults are ONNX Runtime's own, on one thread.

    `file` is the published file, its optimised graph as ONNX, or the same in ORT format. `part` is
    the largest number of rows per run; 0 means no limit. `call` is the public method, the method
    that it wraps, or a run with preallocated bound outputs. `served` uses the service's session
    and ignores the other fields.
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


def make_run(configuration: Configuration, files: Mapping[str, Path]) -> Run:
    """Load the model; returns a function from images [N,28,28] to its outputs."""
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

    def in_parts(images: Pixels) -> Sequence[Output]:
        if len(images) <= part:
            return run(images)
        parts = [run(images[start : start + part]) for start in range(0, len(images), part)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    return in_parts


def _options(configuration: Configuration) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = configuration.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, configuration.level)
    options.enable_mem_pattern = configuration.pattern
    options.enable_cpu_mem_arena = configuration.arena != "off"
    spinning = str(int(configuration.spinning))
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    if configuration.arena == "as requested":
        info = ort.OrtMemoryInfo(
            "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
        )
        # No limit, kSameAsRequested, and defaults. A process has one such allocator: a second one
        # replaces the first.
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, 1, -1, -1))
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _call(session: ort.InferenceSession, configuration: Configuration) -> Run:
    if configuration.call == "bound":
        return _bound(session)
    names = [node.name for node in session.get_outputs()]
    run = session.run if configuration.call == "run" else session._sess.run
    options = ort.RunOptions() if configuration.arena == "shrunk" else None
    if options is not None:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return lambda images: run(names, {"image": images}, options)


def _bound(session: ort.InferenceSession) -> Run:
    nodes = session.get_outputs()
    dtypes = [_DTYPES[node.type] for node in nodes]
    bindings: dict[int, tuple[ort.IOBinding, list[Output]]] = {}

    def run(images: Pixels) -> Sequence[Output]:
        if len(images) not in bindings:
            # Every dimension but the first is fixed.
            outputs: list[Output] = [
                np.empty((len(images), *node.shape[1:]), dtype)
                for node, dtype in zip(nodes, dtypes, strict=True)
            ]
            binding = session.io_binding()
            for node, output in zip(nodes, outputs, strict=True):
                address = output.ctypes.data
                binding.bind_output(node.name, "cpu", 0, output.dtype, output.shape, address)
            bindings[len(images)] = binding, outputs
        binding, outputs = bindings[len(images)]
        binding.bind_cpu_input("image", images)
        session.run_with_iobinding(binding)
        return outputs

    return run


def write_files(model: str, folder: Path) -> dict[str, Path]:
    """The published file, and its optimised graph as ONNX and in ORT format in the folder."""
    files = {"onnx": served_models.onnx_file(model)}
    for kind, name in (("optimised", "model.onnx"), ("ort", "model.ort")):
        options = ort.SessionOptions()
        options.log_severity_level = 3  # no warning that the file suits this kind of CPU only
        files[kind] = folder / name
        options.optimized_model_filepath = str(files[kind])
        ort.InferenceSession(str(files["onnx"]), options, providers=["CPUExecutionProvider"])
    return files
