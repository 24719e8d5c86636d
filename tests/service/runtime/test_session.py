"""One session: inputs that are too long for one run are split, and the outputs do not show it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.core.batching import Batching
from service.core.datatypes import MISSING
from service.core.errors import ModelLoadError, ProviderUnavailable, is_used_up
from service.runtime import session as module
from service.runtime.session import (
    CPU,
    CUDA,
    Session,
    SessionOptions,
    load,
)
from tests.conftest import SHIPPED_MODELS, Mnist
from tests.descriptors import free_descriptors
from tests.e2e.onnx_models import (
    publish,
    publish_identity,
    publish_log,
    publish_loop,
    publish_lower_case,
    publish_sum,
)
from tests.service.linear_model import publish_linear

DECLARED = Batching(True, "declared")
SHIPPED = SHIPPED_MODELS / "mnist" / "1" / "model.onnx"


def load_cpu(path: Path, max_rows: int = 1 << 20) -> Session:
    return load(path, SessionOptions("cpu", max_rows=max_rows))


def test_a_load_without_a_free_descriptor_is_one_that_may_work_later() -> None:
    options = SessionOptions("cpu")
    with free_descriptors(0), pytest.raises(ModelLoadError, match="Too many open files") as raised:
        load(SHIPPED, options, DECLARED)
    assert is_used_up(raised.value)
    assert load(SHIPPED, options, DECLARED).warm_up_error == ""


class CountingRuntime:
    """The compiled half of an ONNX Runtime session, which remembers the rows of every run."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.rows: list[int] = []

    def run(self, names: list[str], feed: dict[str, np.ndarray], options: None) -> Any:
        self.rows.append(len(next(iter(feed.values()))))
        return self._runtime.run(names, feed, options)


def counting_session(
    path: Path, max_rows: int, batching: Batching = DECLARED
) -> tuple[Session, list[int]]:
    """A session, and the rows of every run that ONNX Runtime is asked for from now on."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    counting = session._sess = CountingRuntime(session._sess)
    counted = Session(session, max_rows, batching)
    counting.rows.clear()  # those of the warm-up
    return counted, counting.rows


@pytest.mark.parametrize("count", [1, 7, 8, 9, 32, 33, 40, 50])
def test_parts_have_the_outputs_of_the_whole(mnist: Mnist, count: int) -> None:
    images = mnist.images[:count]
    whole = load_cpu(SHIPPED)
    split, rows = counting_session(SHIPPED, max_rows=8)
    for expected, output in zip(whole.run([images]), split.run([images]), strict=True):
        assert output.shape == expected.shape == (count, 10)
        assert output.dtype == expected.dtype
        assert np.abs(output - expected).max() < 1e-4
    assert sum(rows) == count
    # Four parts run at once.
    assert rows == [count] if count <= 32 else max(rows) == 8


@pytest.mark.parametrize(
    ("batching", "expected"),
    [
        (DECLARED, [20]),
        (DECLARED._replace(max_rows=9), [8, 8, 4]),  # the largest batch of config.pbtxt
        (Batching(True, "verified", max_rows=8, max_split=19, declared=False), [20]),
        (Batching(True, "verified", max_rows=8, max_split=32, declared=False), [20]),
        (DECLARED._replace(max_rows=4), [4] * 5),
    ],
)
def test_parts_run_at_once_only_if_that_is_safe(
    mnist: Mnist, batching: Batching, expected: list[int]
) -> None:
    session, rows = counting_session(SHIPPED, max_rows=8, batching=batching)
    session.run([mnist.images[:20]])
    assert rows == expected


def test_every_input_and_output_is_split(tmp_path: Path) -> None:
    publish_sum(tmp_path)
    session = load_cpu(tmp_path / "sum" / "1" / "model.onnx", max_rows=4)
    a, b = np.random.default_rng(0).normal(size=(2, 19, 3)).astype(np.float32)
    total, gap = session.run([a, b])
    assert np.array_equal(total, a + b)
    assert np.array_equal(gap, a - b)


@pytest.mark.parametrize("datatype", ["BF16", "BYTES", "BOOL", "FP64"])
def test_parts_keep_every_datatype(tmp_path: Path, datatype: str) -> None:
    publish_identity(tmp_path, datatype)
    name = f"identity_{datatype.lower()}"
    session = load_cpu(tmp_path / name / "1" / "model.onnx", max_rows=4)
    kinds = {"BF16": np.uint16, "BYTES": object, "BOOL": bool, "FP64": np.float64}
    values = np.arange(38).reshape(19, 2)
    x = (values.astype(str) if datatype == "BYTES" else values).astype(kinds[datatype])
    (y,) = session.run([x])
    assert y.tolist() == x.tolist()


def test_a_model_with_more_output_rows_than_input_rows_runs_whole(tmp_path: Path) -> None:
    publish(
        tmp_path,
        "twice",
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        [("x", TensorProto.FLOAT, ["batch", 2])],
        [("y", TensorProto.FLOAT, ["other", 2])],
    )
    session = load_cpu(tmp_path / "twice" / "1" / "model.onnx", max_rows=4)
    x = np.arange(38, dtype=np.float32).reshape(19, 2)
    assert np.array_equal(session.run([x])[0], np.concatenate([x, x]))


def test_a_model_that_is_not_batchable_is_never_split(tmp_path: Path) -> None:
    publish(
        tmp_path,
        "mean",
        [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)],
        [("x", TensorProto.FLOAT, ["rows", 2])],
        [("y", TensorProto.FLOAT, [1, 1])],
    )
    session = load_cpu(tmp_path / "mean" / "1" / "model.onnx", max_rows=4)
    x = np.arange(38, dtype=np.float32).reshape(19, 2)
    assert not session.batchable
    assert session.run([x])[0].item() == pytest.approx(18.5)


@pytest.mark.parametrize(
    ("shape", "batching", "expected"),
    [
        (["batch", 2], DECLARED, True),
        (["batch", 2], DECLARED._replace(max_split=64), False),
        (["batch", 2], Batching(False, "off: declared"), False),
        (["batch", "length"], DECLARED, False),
    ],
)
def test_memory_is_planned_only_where_shapes_are_few(
    tmp_path: Path, shape: list[int | str], batching: Batching, expected: bool
) -> None:
    publish(
        tmp_path,
        "neg",
        [helper.make_node("Neg", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "neg" / "1" / "model.onnx"
    session = load(path, SessionOptions(provider="cpu"), batching)
    assert session._session.get_session_options().enable_mem_pattern == expected


def test_if_a_part_fails_the_whole_decides(tmp_path: Path) -> None:
    publish(
        tmp_path,
        "pick",
        [helper.make_node("Gather", ["x", "i"], ["y"], axis=0)],
        [("x", TensorProto.FLOAT, ["batch"]), ("i", TensorProto.INT64, ["batch"])],
        [("y", TensorProto.FLOAT, ["batch"])],
    )
    session = load_cpu(tmp_path / "pick" / "1" / "model.onnx", max_rows=4)
    x, backwards = np.arange(19, dtype=np.float32), np.arange(19)[::-1].copy()
    assert session.run([x, backwards])[0].tolist() == x[::-1].tolist()
    backwards[18] = 19
    with pytest.raises(Exception, match="out of data bounds"):
        session.run([x, backwards])


def test_onnx_runtime_sends_no_telemetry_unless_it_is_enabled() -> None:
    script = "import os, service.runtime.session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environ = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    for variables, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environ | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


def test_model_that_cannot_be_served_is_rejected_at_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="float8"):
        load(publish_linear(tmp_path, TensorProto.FLOAT8E4M3FN), SessionOptions("cpu"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelLoadError):
        load(broken, SessionOptions("cpu"))


def test_an_output_without_a_datatype_is_left_out(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    both = helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, ["n"])
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["both"]),
        helper.make_node("Neg", ["x"], ["y"]),
    ]
    for outputs in ([both, y], [both]):
        graph = helper.make_graph(nodes, "g", [x], outputs)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(made, tmp_path / "model.onnx")
        if y not in outputs:
            with pytest.raises(ModelLoadError, match=r"^tensor 'both' is a seq\("):
                load_cpu(tmp_path / "model.onnx")
            return
        session = load_cpu(tmp_path / "model.onnx")
        assert [spec.name for spec in session.outputs] == ["y"]
        assert session.unserved == ["output 'both' (seq(tensor(float)) is not supported)"]
        assert session.run([np.ones(3, np.float32)])[0].tolist() == [-1, -1, -1]


def test_cuda_on_a_cpu_build_is_an_error_and_auto_says_why(tmp_path: Path) -> None:
    model = publish_linear(tmp_path)
    with pytest.raises(ProviderUnavailable, match="without CUDA"):
        load(model, SessionOptions("cuda"))
    session = load(model, SessionOptions("auto"))
    assert session.provider == CPU
    assert "without CUDA" in session.fallback
    assert load(model, SessionOptions("cpu")).fallback == ""


def ended() -> ort.RunOptions:
    """The options of a run that another thread has ended."""
    options = Session.options()
    options.terminate = True
    return options


@pytest.mark.parametrize("datatype", ["FP32", "BF16"])
@pytest.mark.parametrize("count", [1, 9, 19])
def test_every_kind_of_run_can_be_ended(tmp_path: Path, datatype: str, count: int) -> None:
    publish_identity(tmp_path, datatype)
    path = tmp_path / f"identity_{datatype.lower()}" / "1" / "model.onnx"
    x = np.zeros((count, 2), np.uint16 if datatype == "BF16" else np.float32)
    for batching in (DECLARED, Batching(False, "off")):
        session = load(path, SessionOptions("cpu", max_rows=4), batching)
        with pytest.raises(Exception, match="terminate flag"):
            session.run([x], ended())
        assert len(session.run([x], Session.options())[0]) == count


def test_the_warm_up_says_how_long_runs_take_if_only_rows_are_open(tmp_path: Path) -> None:
    timing = load(publish_linear(tmp_path), SessionOptions("cpu"), DECLARED).timing
    assert timing.is_known
    assert timing.fixed_s + timing.row_s > 0
    assert not timing.may_depend_on_values
    assert timing.device is None
    publish_log(tmp_path)
    whole = load(tmp_path / "log" / "1" / "model.onnx", SessionOptions("cpu"), Batching(False, ""))
    assert not whole.timing.is_known  # its shape is [n], and other n have other times
    publish(
        tmp_path,
        "words",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", "words"])],
        [("y", TensorProto.FLOAT, ["batch", "words"])],
    )
    words = load(tmp_path / "words" / "1" / "model.onnx", SessionOptions("cpu"), DECLARED)
    assert not words.timing.is_known


def test_runs_are_timed_by_the_cpu_time_of_their_thread_if_they_have_no_other(
    tmp_path: Path,
) -> None:
    path = publish_linear(tmp_path)
    assert load(path, SessionOptions("cpu")).timing.clock is time.thread_time
    several = load(path, SessionOptions("cpu", intra_op_threads=2)).timing
    assert several.clock is time.perf_counter
    assert not several.is_cpu_time


def test_the_time_of_a_loop_may_depend_on_values(tmp_path: Path) -> None:
    publish_loop(tmp_path)
    path = tmp_path / "loop" / "1" / "model.onnx"
    assert load(path, SessionOptions("cpu")).timing.may_depend_on_values


@pytest.mark.parametrize(
    ("cuda_fails", "cpu_fails", "provider"),
    [(False, False, CUDA), (True, True, CUDA), (True, False, CPU)],
)
def test_a_warm_up_that_fails_on_the_cpu_as_well_says_nothing_about_cuda(
    monkeypatch: pytest.MonkeyPatch, cuda_fails: bool, cpu_fails: bool, provider: str
) -> None:
    """Without a device: what `load` makes of sessions that cannot be created here."""

    def create(*arguments: Any, fixed: bool = True, may_fail: bool = False, **_: Any) -> Any:
        is_cpu = arguments[3] == [CPU]
        if fixed and not is_cpu:
            raise ModelLoadError("no graph")
        fails = cpu_fails if is_cpu else cuda_fails
        if fails and not is_cpu and not may_fail:
            raise ModelLoadError("its warm-up failed")
        error = "wrong inputs" if fails else ""
        return SimpleNamespace(provider=CPU if is_cpu else CUDA, warm_up_error=error, fallback="")

    monkeypatch.setattr(module, "_create", create)
    monkeypatch.setattr(module, "cuda_is_built_in", lambda: True)
    monkeypatch.setattr(module.cuda, "what_is_missing", lambda: "")
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    session = load(SHIPPED, SessionOptions("auto"), DECLARED)
    assert session.provider == provider
    assert bool(session.fallback) == (provider == CPU)
    if provider == CPU:
        with pytest.raises(ProviderUnavailable, match="its warm-up failed"):
            load(SHIPPED, SessionOptions("cuda"), DECLARED)


def published(repository: Path, name: str) -> Path:
    return repository / name / "1" / "model.onnx"


def test_a_warm_up_that_does_not_end_is_ended_and_the_model_loads(tmp_path: Path) -> None:
    publish_loop(tmp_path, is_endless=True)
    session = load(published(tmp_path, "loop"), SessionOptions("cpu", max_run_s=0.1))
    assert session.warm_up_error == "it took longer than 0.1 seconds (max_run_seconds)"
    assert not session.timing.is_known


def publish_division(repository: Path) -> Path:
    """A model `division` of INT64 [N,3] `x` to `y` = 6 / x, which fails for a zero."""
    publish(
        repository,
        "division",
        [
            helper.make_node("Constant", [], ["six"], value_ints=[6]),
            helper.make_node("Div", ["six", "x"], ["y"]),
        ],
        [("x", TensorProto.INT64, ["batch", 3])],
        [("y", TensorProto.INT64, ["batch", 3])],
    )
    return published(repository, "division")


def publish_padded(repository: Path, height: int) -> Path:
    """A model `convolution` of FP32 [N,1,H,W] whose kernel needs a `height` of its input."""
    publish(
        repository,
        "convolution",
        [
            helper.make_node(
                "Constant",
                [],
                ["kernel"],
                value=helper.make_tensor("k", TensorProto.FLOAT, [1, 1, height, 1], [1.0] * height),
            ),
            helper.make_node("Conv", ["x", "kernel"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        [("y", TensorProto.FLOAT, ["batch", 1, "h", "w"])],
    )
    return published(repository, "convolution")


def test_the_warm_up_tries_other_values_and_sizes_than_zeros_and_ones(tmp_path: Path) -> None:
    for path in (publish_division(tmp_path), publish_padded(tmp_path, 30)):
        assert load(path, SessionOptions("cpu"), DECLARED).warm_up_error == ""


def test_a_model_whose_warm_up_fails_is_loaded_and_says_so(tmp_path: Path) -> None:
    session = load(publish_padded(tmp_path, 300), SessionOptions("cpu"), DECLARED)
    assert "Conv" in session.warm_up_error
    assert not session.timing.is_known
    assert session.run([np.ones((2, 1, 300, 5), np.float32)])[0].shape == (2, 1, 1, 5)


def test_a_model_whose_locale_is_missing_is_refused_with_its_name_and_a_remedy(
    tmp_path: Path,
) -> None:
    publish_lower_case(tmp_path, locale="xx_XX.UTF-8")
    with pytest.raises(ModelLoadError, match=r"needs the locale xx_XX\.UTF-8.*locales-all"):
        load(published(tmp_path, "lower"), SessionOptions("cpu"))


def test_a_model_changes_the_case_of_texts_that_are_not_ascii(tmp_path: Path) -> None:
    publish_lower_case(tmp_path, locale="C.UTF-8")
    session = load(published(tmp_path, "lower"), SessionOptions("cpu"))
    (lower,) = session.run([np.array(["GRÜSSE", "ÉCOLE"], object)])
    assert lower.tolist() == ["grüsse", "école"]


def test_samples_are_the_inputs_of_the_warm_up(tmp_path: Path) -> None:
    path = publish_padded(tmp_path, 300)
    sample = {"x": np.ones((1, 1, 300, 300))}  # in any dtype
    assert load(path, SessionOptions("cpu"), DECLARED, [sample]).warm_up_error == ""
    division = publish_division(tmp_path)
    for wrong, words in (
        ({"x": np.zeros((1, 3))}, "Div"),
        ({"y": np.ones((1, 3))}, "names 'y'"),
        ({}, "lacks the input 'x'"),
        ({"x": np.ones((1, 4))}, "shape"),
        ({"x": np.array([["a", "b", "c"]])}, "invalid literal"),
    ):
        assert words in load(division, SessionOptions("cpu"), DECLARED, [wrong]).warm_up_error


def test_a_tensor_of_unknown_rank_is_no_scalar_and_is_not_batched(tmp_path: Path) -> None:
    node = [helper.make_node("Neg", ["x"], ["y"])]
    unknown: Any = None
    publish(tmp_path, "any", node, [("x", 1, unknown)], [("y", 1, unknown)])
    session = load(published(tmp_path, "any"), SessionOptions("cpu"), DECLARED)
    assert not session.inputs[0].has_rank
    assert not session.outputs[0].has_rank
    assert session.batching.reason == "off: the number of dimensions of 'x' is open"
    assert session.run([np.ones((2, 3), np.float32)])[0].shape == (2, 3)
    publish(tmp_path, "scalar", node, [("x", 1, [])], [("y", 1, [])])
    assert load(published(tmp_path, "scalar"), SessionOptions("cpu")).inputs[0].has_rank


def test_a_model_without_inputs_runs(tmp_path: Path) -> None:
    node = helper.make_node("RandomUniform", [], ["y"], shape=[2])
    publish(tmp_path, "dice", [node], [], [("y", TensorProto.FLOAT, ["n"])])
    session = load(published(tmp_path, "dice"), SessionOptions("cpu"), DECLARED)
    assert not session.batchable
    assert not session.has_rows
    assert session.warm_up_error == ""
    assert session.run([])[0].shape == (2,)


def test_an_input_with_a_value_in_the_model_may_be_left_out_or_replaced(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "scale",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, ir_version=10), path)
    session = load(path, SessionOptions("cpu"), Batching(False, "off"))
    x, w = np.ones((1, 2), np.float32), np.array([5, 6], np.float32)
    assert [spec.name for spec in session.inputs] == ["x"]
    assert [spec.name for spec in session.defaults] == ["w"]
    assert session.run([x])[0].tolist() == session.run([x, MISSING])[0].tolist() == [[1, 2]]
    assert session.run([x, w])[0].tolist() == [[5, 6]]
    assert load(path, SessionOptions("cpu")).batchable
