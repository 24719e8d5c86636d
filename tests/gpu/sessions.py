"""Sessions on CUDA: graphs are captured, also beside other calls, and answers are correct."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import read_mnist
from tests.gpu.check import Check, Place

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "models" / "mnist" / "1" / "model.onnx"
TOLERANCE = 3e-3  # of a probability: TF32 keeps 10 of 23 mantissa bits; the largest seen is 0.0009


def load(place: Place, path: Path, rows: int = 512) -> Any:
    """The session of a server with provider `cuda`; on the CPU, one with the same code path."""
    from service.core.batching import Batching
    from service.runtime import session

    if not place.on_cuda:
        _pretend_cpu_is_cuda()
    options = session.SessionOptions("cuda", max_rows=min(rows, 64), max_rows_on_cuda=rows)
    return session.load(path, options, Batching(True, "declared"))


def load_cpu(path: Path) -> Any:
    from service.runtime import session

    return session.load(path, session.SessionOptions("cpu"))


def _pretend_cpu_is_cuda() -> None:
    import onnxruntime as ort

    from service.runtime import session

    if session._CUDA_DEVICE == "cpu":
        return
    inference_session = ort.InferenceSession
    names: Any = session
    names.CUDA, names._CUDA_DEVICE = session.CPU, "cpu"
    names.cuda_is_built_in = lambda: True
    ort.preload_dlls = lambda: None
    ort.InferenceSession = lambda path, *_, **__: inference_session(path, providers=[session.CPU])


@contextmanager
def warnings() -> Iterator[list[str]]:
    """A list that receives the warnings that service/ logs inside the block."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("service"), Collector(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def capture(place: Place) -> str:
    """Batches of up to three parts are correct without a warning, and graphs are replayed."""
    from service.runtime import session

    images, _ = read_mnist()
    expected = load_cpu(SHIPPED).run([images[:1100]])
    start = time.monotonic()
    with warnings() as logged:
        loaded = load(place, SHIPPED)
    took = time.monotonic() - start
    assert not logged, logged
    assert loaded.provider == session.CUDA, loaded.provider
    assert loaded._fixed is not None, "the session runs without CUDA graphs"
    worst = 0.0
    for count in [*range(1, 130), 255, 256, 257, 511, 512, 513, 1024, 1100, 1, 64, 0]:
        for reference, output in zip(expected, loaded.run([images[:count]]), strict=True):
            assert output.shape == (count, 10), (count, output.shape)
            gap = np.abs(output - reference[:count]).max(initial=0)
            if reference is expected[1]:
                worst = max(worst, float(gap))
                assert gap < TOLERANCE, f"{count} rows are off by {gap}"
    result = f"loaded in {took:.1f} s, probabilities of 1 to 1,100 rows within {worst:.1e}"
    return result + _replays(place)


def _replays(place: Place) -> str:
    """Count graph captures and replays in the verbose log of ONNX Runtime."""
    import onnxruntime as ort

    from service.runtime import session

    if not place.on_cuda:
        return ""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        names: Any = session
        before, names._ERRORS_ONLY = session._ERRORS_ONLY, 1  # 1 is "information"
        ort.set_default_logger_severity(1)
        try:
            verbose = load(place, SHIPPED)
            for _ in range(5):
                verbose.run([np.zeros((3, 28, 28), np.uint8)])
        finally:
            names._ERRORS_ONLY = before
            ort.set_default_logger_severity(2)
            os.dup2(stderr, 2)
        file.seek(0)
        lines = file.read().decode(errors="replace").splitlines()
    (place.folder / "onnxruntime.log").write_text("\n".join(lines))
    replays = sum("replay" in line.lower() for line in lines)
    assert replays, "ONNX Runtime's log has no replay of a graph: see capture-onnxruntime.log"
    captures = sum("captur" in line.lower() and "replay" not in line.lower() for line in lines)
    return f"; ONNX Runtime logs {captures} captures and {replays} replays"


def probabilities(place: Place) -> str:
    """Probabilities of the 10,000 test images agree with the CPU."""
    images, labels = read_mnist()
    on_cuda, on_cpu = load(place, SHIPPED).run([images])[1], load_cpu(SHIPPED).run([images])[1]
    gap = float(np.abs(on_cuda - on_cpu).max())
    digits = int((on_cuda.argmax(1) != on_cpu.argmax(1)).sum())
    accuracy = float((on_cuda.argmax(1) == labels).mean())
    assert gap < TOLERANCE, f"the largest difference is {gap}, {digits} digits differ"
    return f"largest difference {gap:.1e}, {digits} digits differ, accuracy {accuracy:.2%}"


def concurrent(place: Place) -> str:
    """Two sessions answer 16 threads at once."""
    images, _ = read_mnist()
    two = [load(place, SHIPPED), load(place, SHIPPED)]
    expected = load_cpu(SHIPPED).run([images[:300]])[1]

    def gap_of(number: int) -> float:
        start = number * 7 % 150
        rows = slice(start, start + 1 + number % 140)
        output = two[number % 2].run([images[rows]])[1]
        return float(np.abs(output - expected[rows]).max())

    start = time.monotonic()
    with ThreadPoolExecutor(16) as executor:
        worst = max(executor.map(gap_of, range(2000)))
    assert worst < TOLERANCE, worst
    return f"2,000 calls within {worst:.1e} in {time.monotonic() - start:.1f} s"


def _publish_wide(folder: Path) -> Path:
    """A model whose rows may have any length, so it cannot have fixed buffers."""
    from onnx import TensorProto, helper

    from tests.e2e.onnx_models import publish

    any_size: list[str | int] = ["batch", "width"]
    publish(
        folder,
        "wide",
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, any_size)],
        [("y", TensorProto.FLOAT, any_size)],
    )
    return folder / "wide" / "1" / "model.onnx"


def without_graphs(place: Place) -> str:
    """A model with more than one varying size is correct on CUDA without graphs; one warning."""
    from service.runtime import session

    with warnings() as logged:
        wide = load(place, _publish_wide(place.folder))
    assert len(logged) == 1, logged
    assert "without CUDA graphs" in logged[0], logged
    assert (wide.provider, wide._fixed) == (session.CUDA, None)
    for shape in ((2, 5), (3, 7), (200, 2)):
        x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        assert np.array_equal(wide.run([x])[0], x * x)
    return logged[0]


def capture_beside_runs(place: Place) -> str:
    """Graphs are captured while other models are loaded, run and dropped, without a failure.

    During a capture no thread of the process may allocate or free memory on the device.
    """
    path = _publish_wide(place.folder)
    wide = load(place, path)
    done, failures = threading.Event(), list[str]()
    counts = {"calls": 0, "without graphs": 0, "with graphs": 0}

    def check_run(session: Any, width: int, kind: str) -> None:
        x = np.full((60, width), 3, np.float32)
        assert np.array_equal(session.run([x])[0], x * x), "the answer is wrong"
        counts[kind] += 1

    def load_graphs_and_drop(_: int) -> None:
        session = load(place, SHIPPED, rows=2)
        assert session._fixed is not None, "the session has no graphs"
        session.run([np.zeros((3, 28, 28), np.uint8)])
        counts["with graphs"] += 1

    def repeat(step: Callable[[int], None]) -> None:
        width = 1
        while not done.is_set():
            width = width % 60_000 + 997  # a new size each time forces an allocation
            try:
                step(width)
            except Exception as error:  # every kind counts as a failure
                failures.append(" ".join(str(error).split())[:200])

    steps = [
        lambda width: check_run(wide, width, "calls"),
        lambda width: check_run(load(place, path), width, "without graphs"),
        load_graphs_and_drop,
    ]
    threads = [threading.Thread(target=repeat, args=(step,), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    try:
        with warnings() as logged:
            loaded = [load(place, SHIPPED) for _ in range(3)]
            unexpected = [message for message in logged if "wide" not in message]
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    plain = sum(session._fixed is None for session in loaded)
    failed = f"{plain} of 3 have no graphs, {len(failures)} calls failed"
    assert not unexpected, f"{failed}: {unexpected[0]}"
    assert not failures, f"{len(failures)} calls failed beside {counts}: {failures[0]}"
    assert all(counts.values()), counts
    dropped = f"{counts['without graphs']} without and {counts['with graphs']} with graphs"
    return f"3 models loaded during {counts['calls']} calls; {dropped} loaded and dropped"


def smaller_models(place: Place) -> str:
    """An fp16 export agrees with the CPU; CUDA rejects an int8 export, and the CPU runs it."""
    from service.core.errors import ProviderUnavailable
    from service.runtime import session

    models = place.folder / "models"
    done = subprocess.run(
        [sys.executable, "-m", "training.commands.train", "--models", models,
         "--runs", place.folder / "runs", "--device", place.device, "--recipe", "fast",
         "--epochs", "2", "--train-limit", "10000", "--also", "fp16", "int8", "--force"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    images, _ = read_mnist()
    results = []
    for name, tolerance in (("mnist", TOLERANCE), ("mnist-fp16", 0.1)):
        path = models / name / "1" / "model.onnx"
        on_cpu = load_cpu(path).run([images[:2000]])[1]
        with warnings() as logged:
            loaded = load(place, path)
        gap = float(np.abs(loaded.run([images[:2000]])[1] - on_cpu).max())
        assert not logged, logged
        assert gap < tolerance, f"{name} is off by {gap}"
        results.append(f"{name} within {gap:.1e}")
    if place.on_cuda:  # CUDA has no kernels for the quantised operators
        path = models / "mnist-int8" / "1" / "model.onnx"
        with pytest.raises(ProviderUnavailable):
            load(place, path)
        automatic = session.load(path, session.SessionOptions("auto"))
        assert automatic.provider == session.CPU, automatic.provider
        assert automatic.fallback
        assert "is missing" not in automatic.fallback, automatic.fallback
        results.append(f"mnist-int8 on the CPU: {automatic.fallback}")
    return ", ".join(results)


CHECKS = (
    Check("serve-capture", capture, 60),
    Check("serve-probabilities", probabilities, 60),
    Check("serve-concurrent", concurrent, 60),
    Check("serve-without-graphs", without_graphs, 60),
    Check("serve-capture-beside-runs", capture_beside_runs, 90),
    Check("serve-smaller-models", smaller_models, 100),
)
