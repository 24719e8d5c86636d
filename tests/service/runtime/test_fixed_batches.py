"""Batches of fixed sizes, as on CUDA, but here on the CPU and without graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.core.batching import Batching
from service.core.errors import ProviderUnavailable
from service.core.tensors import TensorSpec
from service.runtime import session as sessions
from service.runtime.fixed_batches import FixedBatches, _Buffers, have_fixed_rows, sizes
from service.runtime.session import CPU, Session, SessionOptions, load
from tests.conftest import SHIPPED_MODELS, Mnist
from tests.e2e.onnx_models import judged_image, publish, publish_judging, publish_sum

DECLARED = Batching(True, "declared")
SHIPPED = SHIPPED_MODELS / "mnist" / "1" / "model.onnx"


def on_device(path: Path, max_rows: int = 8) -> Session:
    session = ort.InferenceSession(str(path), providers=[CPU])
    return Session(session, max_rows, DECLARED, device="cpu")


def plain(path: Path) -> Session:
    return load(path, SessionOptions("cpu", max_rows=1 << 20))


@pytest.fixture
def sizes_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the size of every run."""
    run_sizes: list[int] = []
    run = _Buffers.run

    def counted(buffers: _Buffers) -> None:
        run_sizes.append(buffers.size)
        run(buffers)

    monkeypatch.setattr(_Buffers, "run", counted)
    return run_sizes


def test_the_ladder_doubles_up_to_the_largest_batch():
    assert sizes(1) == [1]
    assert sizes(2) == [1, 2]
    assert sizes(64) == [1, 2, 4, 8, 16, 32, 64]
    assert sizes(100) == [1, 2, 4, 8, 16, 32, 64, 100]


@pytest.mark.parametrize(
    ("count", "run"),
    [
        (0, [1]),
        (1, [1]),
        (2, [2]),
        (3, [4]),
        (5, [8]),
        (8, [8]),
        (9, [8, 1]),
        (15, [8, 8]),
        (16, [8, 8]),
        (35, [8, 8, 8, 8, 4]),
    ],
)
def test_a_batch_is_padded_to_the_next_size_and_split_above_the_largest(
    mnist: Mnist, sizes_run: list[int], count: int, run: list[int]
) -> None:
    session, images = on_device(SHIPPED), mnist.images[:count]
    sizes_run.clear()
    outputs = session.run([images])
    assert sizes_run == run
    for expected, output in zip(plain(SHIPPED).run([images]), outputs, strict=True):
        assert output.shape == expected.shape == (count, 10)
        assert output.dtype == expected.dtype
        assert np.abs(output - expected).max(initial=0) < 1e-4


def test_every_size_is_run_before_the_first_request(sizes_run: list[int]) -> None:
    session = ort.InferenceSession(str(SHIPPED), providers=[CPU])
    inputs = [TensorSpec("image", "UINT8", (-1, 28, 28))]
    outputs = [TensorSpec(name, "FP32", (-1, 10)) for name in ("logits", "probabilities")]
    FixedBatches(session, inputs, outputs, max_rows=6, device="cpu")
    assert sizes_run == [1, 2, 4, 6, 6]


def test_outputs_outlive_the_next_run(mnist: Mnist) -> None:
    session = on_device(SHIPPED)
    first = session.run([mnist.images[:3]])
    kept = [output.copy() for output in first]
    session.run([mnist.images[3:6]])
    for output, before in zip(first, kept, strict=True):
        assert np.array_equal(output, before)


def test_padding_is_zero_after_a_larger_batch(tmp_path: Path) -> None:
    # The rows of this model are not independent, so its output shows the padding below a batch.
    publish(
        tmp_path,
        "total",
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=1),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["batch", 1])],
        [("y", TensorProto.FLOAT, ["batch", 1])],
    )
    session = on_device(tmp_path / "total" / "1" / "model.onnx", max_rows=4)
    session.run([np.full((4, 1), 100, np.float32)])
    assert session.run([np.full((3, 1), 1, np.float32)])[0].tolist() == [[4], [4], [4]]


def test_every_input_and_output_has_its_buffers(tmp_path: Path) -> None:
    publish_sum(tmp_path)
    session = on_device(tmp_path / "sum" / "1" / "model.onnx", max_rows=4)
    a, b = np.random.default_rng(0).normal(size=(2, 11, 3)).astype(np.float32)
    total, gap = session.run([a, b])
    assert np.array_equal(total, a + b)
    assert np.array_equal(gap, a - b)


def test_two_sessions_can_run_from_many_threads_at_once(mnist: Mnist) -> None:
    two = [on_device(SHIPPED), on_device(SHIPPED)]
    expected = plain(SHIPPED).run([mnist.images[:200]])[1]

    def ask(number: int) -> float:
        start = number * 7 % 150
        rows = slice(start, start + 1 + number % 40)
        probabilities = two[number % 2].run([mnist.images[rows]])[1]
        return float(np.abs(probabilities - expected[rows]).max())

    with ThreadPoolExecutor(8) as executor:
        assert max(executor.map(ask, range(120))) < 1e-4


@pytest.mark.parametrize(
    ("datatype", "shape", "fits"),
    [
        ("UINT8", (-1, 28, 28), True),
        ("FP32", (-1,), True),
        ("FP32", (4, 2), False),
        ("FP32", (), False),
        ("FP32", (-1, -1), False),
        ("BYTES", (-1, 2), False),
        ("BF16", (-1, 2), False),
    ],
)
def test_only_the_number_of_rows_may_be_open(
    datatype: str, shape: tuple[int, ...], fits: bool
) -> None:
    assert have_fixed_rows([TensorSpec("x", datatype, shape)]) is fits


@pytest.fixture
def cpu_as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading goes through the code for CUDA, on the CPU."""
    monkeypatch.setattr(sessions, "CUDA", CPU)
    monkeypatch.setattr(sessions, "_CUDA_DEVICE", "cpu")
    monkeypatch.setattr(sessions, "cuda_is_built_in", lambda: True)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    create: Callable[..., ort.InferenceSession] = ort.InferenceSession

    def without_cuda_options(path: str, options: object, *, providers: object, **rest: object):
        # The CPU's provider accepts none of CUDA's options.
        return create(path, None, providers=[CPU], **rest)

    monkeypatch.setattr(ort, "InferenceSession", without_cuda_options)


@pytest.mark.usefixtures("cpu_as_cuda")
def test_cuda_is_loaded_with_fixed_sizes(mnist: Mnist, sizes_run: list[int]) -> None:
    session = load(SHIPPED, SessionOptions("cuda", max_rows=4, max_rows_on_cuda=4))
    assert (session.provider, session.fallback) == (CPU, "")
    sizes_run.clear()
    session.run([mnist.images[:3]])
    assert sizes_run == [4]


@pytest.mark.usefixtures("cpu_as_cuda")
def test_if_a_capture_fails_the_model_runs_without_graphs_after_one_warning(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(buffers: _Buffers) -> None:
        raise RuntimeError("operation not permitted when stream is capturing ; GPU=0 ; line=536")

    monkeypatch.setattr(_Buffers, "run", fail)
    with caplog.at_level(logging.WARNING):
        session = load(SHIPPED, SessionOptions("cuda", max_rows=8, max_rows_on_cuda=8))
    (record,) = caplog.records
    assert "without CUDA graphs" in record.getMessage()
    assert record.getMessage().endswith("not permitted when stream is capturing.")
    assert session.run([mnist.images[:3]])[0].shape == (3, 10)


@pytest.mark.usefixtures("cpu_as_cuda")
def test_a_model_with_other_open_sizes_runs_on_cuda_without_graphs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(
        tmp_path,
        "wide",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", "width"])],
        [("y", TensorProto.FLOAT, ["batch", "width"])],
    )
    session = load(tmp_path / "wide" / "1" / "model.onnx", SessionOptions("cuda"))
    assert "without CUDA graphs" in caplog.text
    assert session.run([np.ones((2, 5), np.float32)])[0].shape == (2, 5)


@pytest.mark.usefixtures("cpu_as_cuda")
def test_a_model_that_cuda_cannot_load_is_an_error_without_a_warning_about_graphs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ProviderUnavailable):
        load(tmp_path / "model.onnx", SessionOptions("cuda"))
    assert caplog.text == ""


def test_a_run_of_several_parts_can_be_ended_between_them(sizes_run: list[int]) -> None:
    session = on_device(SHIPPED)
    sizes_run.clear()
    options = session.options()

    class Images(np.ndarray):
        """Ends the run when a part is taken of it."""

        def __getitem__(self, key: Any) -> Any:
            options.terminate = True
            return super().__getitem__(key)

    with pytest.raises(RuntimeError, match="was ended"):
        session.run([np.zeros((80, 28, 28), np.uint8).view(Images)], options)
    assert sizes_run == [8]
    assert len(session.run([np.zeros((80, 28, 28), np.uint8)], session.options())[0]) == 80


def test_booleans_and_bytes_of_a_model_that_judges_come_in_fixed_batches(tmp_path: Path) -> None:
    publish_judging(tmp_path)
    path = tmp_path / "judge" / "1" / "model.onnx"
    images = np.stack([judged_image(i % 10, i % 5, second=(i + 1) % 10) for i in range(21)])
    expected = plain(path).run([images])
    outputs = on_device(path).run([images])
    assert [output.dtype for output in outputs[2:]] == [bool, np.uint8, bool]
    for output, other in zip(outputs, expected, strict=True):
        assert output.dtype == other.dtype
        assert np.array_equal(output, other)
