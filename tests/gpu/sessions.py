"""Sessions on CUDA: graphs are captured, also beside other calls, and answers are right."""

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
TOLERANCE = 3e-3  # of a probability: TF32 has ten bits of a float's 23; 0.0009 was seen


def load(place: Place, path: Path, rows: int = 512) -> Any:
    """The session that a server with provider `cuda` has; on the CPU, one that goes its way."""
    from service.runtime import session

    if not place.on_cuda:
        _take_cpu_for_cuda()
    options = session.SessionOptions("cuda", max_rows=min(rows, 64), max_rows_on_cuda=rows)
    return session.load(path, options)


def load_cpu(path: Path) -> Any:
    from service.runtime import session

    return session.load(path, session.SessionOptions("cpu"))


def _take_cpu_for_cuda() -> None:
    import onnxruntime as ort

    from service.runtime import session

    if session._CUDA_DEVICE == "cpu":
        return
    make = ort.InferenceSession
    names: Any = session
    names.CUDA, names._CUDA_DEVICE = session.CPU, "cpu"
    names.cuda_is_built_in = lambda: True
    ort.preload_dlls = lambda: None
    ort.InferenceSession = lambda path, *_, **__: make(path, providers=[session.CPU])


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Filled with what our runtime warns of inside."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("service"), Kept(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def capture(place: Place) -> str:
    """Batch sizes up to three parts are right, with nothing warned of; graphs are replayed."""
    from service.runtime import session

    images, _ = read_mnist()
    expected = load_cpu(SHIPPED).run([images[:1100]])
    began = time.monotonic()
    with warnings() as warned:
        ours = load(place, SHIPPED)
    took = time.monotonic() - began
    assert not warned, warned
    assert ours.provider == session.CUDA, ours.provider
    assert ours._fixed is not None, "it runs without CUDA graphs"
    worst = 0.0
    for count in [*range(1, 130), 255, 256, 257, 511, 512, 513, 1024, 1100, 1, 64, 0]:
        for wanted, got in zip(expected, ours.run([images[:count]]), strict=True):
            assert got.shape == (count, 10), (count, got.shape)
            gap = np.abs(got - wanted[:count]).max(initial=0)
            if wanted is expected[1]:
                worst = max(worst, float(gap))
                assert gap < TOLERANCE, f"{count} rows are off by {gap}"
    found = f"loaded in {took:.1f} s, probabilities of 1 to 1,100 rows within {worst:.1e}"
    return found + _replays(place)


def _replays(place: Place) -> str:
    """What ONNX Runtime's own log says of graphs, in a session that may tell."""
    import onnxruntime as ort

    from service.runtime import session

    if not place.on_cuda:
        return ""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        names: Any = session
        before, names._ERRORS_ONLY = session._ERRORS_ONLY, 1  # as much as it tells
        ort.set_default_logger_severity(1)
        try:
            told = load(place, SHIPPED)
            for _ in range(5):
                told.run([np.zeros((3, 28, 28), np.uint8)])
        finally:
            names._ERRORS_ONLY = before
            ort.set_default_logger_severity(2)
            os.dup2(kept, 2)
        file.seek(0)
        lines = file.read().decode(errors="replace").splitlines()
    (place.folder / "onnxruntime.log").write_text("\n".join(lines))
    replays = sum("replay" in line.lower() for line in lines)
    assert replays, "ONNX Runtime's log has no replay of a graph: see capture-onnxruntime.log"
    captures = sum("captur" in line.lower() and "replay" not in line.lower() for line in lines)
    return f"; ONNX Runtime tells of {captures} captures and {replays} replays"


def probabilities(place: Place) -> str:
    """10,000 test images: as the CPU has them."""
    images, labels = read_mnist()
    ours, theirs = load(place, SHIPPED).run([images])[1], load_cpu(SHIPPED).run([images])[1]
    gap = float(np.abs(ours - theirs).max())
    digits = int((ours.argmax(1) != theirs.argmax(1)).sum())
    accuracy = float((ours.argmax(1) == labels).mean())
    assert gap < TOLERANCE, f"the largest difference is {gap}, {digits} digits differ"
    return f"largest difference {gap:.1e}, {digits} other digits, {accuracy:.2%} right"


def concurrent(place: Place) -> str:
    """Two sessions asked by 16 threads at once."""
    images, _ = read_mnist()
    two = [load(place, SHIPPED), load(place, SHIPPED)]
    expected = load_cpu(SHIPPED).run([images[:300]])[1]

    def ask(number: int) -> float:
        start = number * 7 % 150
        rows = slice(start, start + 1 + number % 140)
        got = two[number % 2].run([images[rows]])[1]
        return float(np.abs(got - expected[rows]).max())

    began = time.monotonic()
    with ThreadPoolExecutor(16) as executor:
        worst = max(executor.map(ask, range(2000)))
    assert worst < TOLERANCE, worst
    return f"2,000 calls within {worst:.1e} in {time.monotonic() - began:.1f} s"


def _publish_wide(folder: Path) -> Path:
    """A model whose rows have any length: it cannot have fixed buffers."""
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
    """A model of open sizes runs on CUDA, right, with one warning."""
    from service.runtime import session

    with warnings() as warned:
        wide = load(place, _publish_wide(place.folder))
    assert len(warned) == 1, warned
    assert "without CUDA graphs" in warned[0], warned
    assert (wide.provider, wide._fixed) == (session.CUDA, None)
    for shape in ((2, 5), (3, 7), (200, 2)):
        x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        assert np.array_equal(wide.run([x])[0], x * x)
    return warned[0]


def capture_beside_runs(place: Place) -> str:
    """Graphs are captured while other models are loaded, asked and dropped; none is harmed.

    A capture forbids every thread of the process to take memory of the device or give it back.
    """
    path = _publish_wide(place.folder)
    wide = load(place, path)
    done, failures = threading.Event(), list[str]()
    counts = {"asked": 0, "without graphs": 0, "with graphs": 0}

    def ask(session: Any, width: int, what: str) -> None:
        x = np.full((60, width), 3, np.float32)
        assert np.array_equal(session.run([x])[0], x * x), "the answer is wrong"
        counts[what] += 1

    def load_graphs_and_drop(_: int) -> None:
        session = load(place, SHIPPED, rows=2)
        assert session._fixed is not None, "it has no graphs"
        session.run([np.zeros((3, 28, 28), np.uint8)])
        counts["with graphs"] += 1

    def keep_on(one: Callable[[int], None]) -> None:
        width = 1
        while not done.is_set():
            width = width % 60_000 + 997  # ever other sizes, so that it has to take memory
            try:
                one(width)
            except Exception as error:  # of any kind: it is counted
                failures.append(" ".join(str(error).split())[:200])

    ways = [
        lambda width: ask(wide, width, "asked"),
        lambda width: ask(load(place, path), width, "without graphs"),
        load_graphs_and_drop,
    ]
    threads = [threading.Thread(target=keep_on, args=(way,), daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    try:
        with warnings() as all_warned:
            loaded = [load(place, SHIPPED) for _ in range(3)]
            warned = [each for each in all_warned if "wide" not in each]
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    plain = sum(each._fixed is None for each in loaded)
    assert not warned, f"{plain} of 3 have no graphs, {len(failures)} calls failed: {warned[0]}"
    assert not failures, f"{len(failures)} calls failed beside {counts}: {failures[0]}"
    assert all(counts.values()), counts
    dropped = f"{counts['without graphs']} without and {counts['with graphs']} with graphs"
    return f"3 models loaded during {counts['asked']} calls; {dropped} loaded and dropped"


def smaller_models(place: Place) -> str:
    """An fp16 export is as the CPU has it; an int8 one is refused by CUDA and left to the CPU."""
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
    found = []
    for name, tolerance in (("mnist", TOLERANCE), ("mnist-fp16", 0.1)):
        path = models / name / "1" / "model.onnx"
        theirs = load_cpu(path).run([images[:2000]])[1]
        with warnings() as warned:
            ours = load(place, path)
        gap = float(np.abs(ours.run([images[:2000]])[1] - theirs).max())
        assert not warned, warned
        assert gap < tolerance, f"{name} is off by {gap}"
        found.append(f"{name} within {gap:.1e}")
    if place.on_cuda:  # which has no kernels for what is quantised
        path = models / "mnist-int8" / "1" / "model.onnx"
        with pytest.raises(ProviderUnavailable):
            load(place, path)
        left = session.load(path, session.SessionOptions("auto"))
        assert left.provider == session.CPU, left.provider
        assert left.fallback
        assert "is missing" not in left.fallback, left.fallback
        found.append(f"mnist-int8 on the CPU: {left.fallback}")
    return ", ".join(found)


CHECKS = (
    Check("serve-capture", capture, 60),
    Check("serve-probabilities", probabilities, 60),
    Check("serve-concurrent", concurrent, 60),
    Check("serve-without-graphs", without_graphs, 60),
    Check("serve-capture-beside-runs", capture_beside_runs, 90),
    Check("serve-smaller-models", smaller_models, 100),
)
