"""Named models that look row-wise but are not, and some that are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.core.batching import Batching
from service.core.datatypes import to_bfloat16
from service.core.tensors import TensorSpec
from service.runtime import row_wise
from service.runtime.row_wise import agree, fixed_rows, random_rows, verify
from service.runtime.session import SessionOptions, load
from tests.conftest import SHIPPED_MODELS

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Value = tuple[str, int, list[Any]]
ROWS: list[Value] = [("x", FLOAT, ["n", 4])]
node = helper.make_node


def write(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: list[Value] = ROWS,
    outputs: int | list[Value] = FLOAT,
    **constants: object,
) -> Path:
    """Write a model; by default it maps `x` [n,4] to `y` [n,...]. Integers are INT64."""
    if isinstance(outputs, int):
        outputs = [("y", outputs, ["n", *[None] * (len(inputs[0][2]) - 1)])]
    tensors = []
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        tensors.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        tensors,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def refused(path: Path, reason: str) -> None:
    batching = verify(path, 64)
    assert not batching.allowed
    assert reason in batching.reason
    assert batching.reason.startswith("off: ")
    assert '"batching": true in model.json' in batching.reason


def body(op: str, **attributes: object) -> onnx.GraphProto:
    return helper.make_graph(
        [node(op, ["x"], ["z"], **attributes)],
        "body",
        [],
        [helper.make_tensor_value_info("z", FLOAT, ["n", 4])],
    )


def test_the_shipped_model_is_row_wise() -> None:
    batching = verify(SHIPPED_MODELS / "mnist" / "1" / "model.onnx", 64)
    assert batching.allowed
    assert batching.reason == f"verified for up to {batching.max_rows} rows"
    assert batching.max_rows == 64
    assert batching.max_split > 64


def test_an_embedding_is_row_wise_although_large_indices_fail(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [node("Gather", ["table", "x"], ["e"]), node("ReduceSum", ["e", "last"], ["y"])],
        [("x", INT64, ["n", "length"])],
        [("y", FLOAT, ["n", "length", 1])],
        table=np.random.default_rng(0).normal(size=(20, 8)),
        last=[-1],
    )
    assert verify(path, 64).allowed


def test_several_inputs_and_outputs_may_be_row_wise(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [node("Add", ["a", "b"], ["y"]), node("ArgMax", ["a"], ["z"], axis=1, keepdims=0)],
        [("a", FLOAT, ["n", 3]), ("b", FLOAT, ["n", 3])],
        [("y", FLOAT, ["n", 3]), ("z", INT64, ["n"])],
    )
    assert verify(path, 64).allowed


def test_images_of_any_size_are_row_wise(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["y"])],
        [("x", FLOAT, ["n", 3, "height", "width"])],
        w=np.random.default_rng(0).normal(size=(2, 3, 3, 3)),
    )
    assert verify(path, 64).allowed


def test_an_inner_size_that_the_model_needs_is_guessed(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [node("Reshape", ["x", "shape"], ["r"]), node("ReduceMax", ["r", "last"], ["y"])],
        [("x", FLOAT, ["n", "width", "width"])],
        shape=[0, 32, 32],
        last=[-1],
    )
    assert verify(path, 64).allowed
    path = write(
        tmp_path,
        [node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", "width"])],
        w=np.ones((23, 2)),
    )
    refused(path, "no inner size")


def test_strings_are_row_wise(tmp_path: Path) -> None:
    encode = node(
        "LabelEncoder",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        keys_strings=["a", "b"],
        values_int64s=[1, 2],
        default_int64=-1,
    )
    path = write(tmp_path, [encode], [("x", TensorProto.STRING, ["n", 2])], INT64)
    assert verify(path, 64).allowed


def test_rows_that_lie_along_another_dimension_inside_are_row_wise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write(
        tmp_path,
        [
            node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            node("LSTM", ["steps", "w", "r"], ["", "h"], hidden_size=3),
            node("Squeeze", ["h", "first"], ["y"]),
        ],
        [("x", FLOAT, ["n", "time", 2])],
        [("y", FLOAT, ["n", 3])],
        w=rng.normal(size=(1, 12, 2)),
        r=rng.normal(size=(1, 12, 3)),
        first=[0],
    )
    assert verify(path, 64).allowed


def test_a_recurrent_net_over_the_first_dimension_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write(
        tmp_path,
        [
            node("LSTM", ["x", "w", "r"], ["h"], hidden_size=3),
            node("Squeeze", ["h", "first"], ["y"]),
        ],
        [("x", FLOAT, ["time", "batch", 2])],
        [("y", FLOAT, ["time", "batch", 3])],
        w=rng.normal(size=(1, 12, 2)),
        r=rng.normal(size=(1, 12, 3)),
        first=[1],
    )
    refused(path, "LSTM mixes rows")


@pytest.mark.parametrize(
    ("op", "constants"),
    [
        # The largest value of all rows exceeds, equals or lies between numbers only rarely.
        ("Greater", {"limit": 1e37}),
        ("Equal", {"limit": 42.0}),
        ("Less", {"limit": -1e37}),
    ],
)
def test_a_threshold_on_a_statistic_is_refused_even_if_it_is_never_crossed(
    tmp_path: Path, op: str, constants: dict[str, object]
) -> None:
    path = write(
        tmp_path,
        [
            node("ReduceMax", ["x"], ["largest"], keepdims=1),
            node(op, ["largest", "limit"], ["crossed"]),
            node("Where", ["crossed", "zero", "x"], ["y"]),
        ],
        zero=0.0,
        **constants,
    )
    refused(path, "ReduceMax mixes rows")


def test_a_vote_of_the_rows_is_refused_even_if_it_is_always_no(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            node("Greater", ["x", "limit"], ["above"]),
            node("Cast", ["above"], ["votes"], to=FLOAT),
            node("ReduceMax", ["votes"], ["any"], keepdims=1),
            node("Sub", ["x", "any"], ["y"]),
        ],
        limit=3e38,
    )
    refused(path, "ReduceMax mixes rows")


@pytest.mark.parametrize("share", [1e-3, 1e-7, 1e-30])
def test_a_faint_share_of_the_mean_is_refused(tmp_path: Path, share: float) -> None:
    path = write(
        tmp_path,
        [
            node("ReduceMean", ["x", "rows"], ["mean"]),
            node("Mul", ["mean", "share"], ["part"]),
            node("Add", ["x", "part"], ["y"]),
        ],
        rows=[0],
        share=share,
    )
    refused(path, "ReduceMean mixes rows")


def test_a_difference_beyond_a_number_of_rows_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "first"], ["rows"]),
            node("Greater", ["rows", "limit"], ["many"]),
            node("Where", ["many", "zero", "x"], ["y"]),
        ],
        first=0,
        limit=5000,
        zero=0.0,
    )
    refused(path, "Greater computes with the number of rows")


def test_a_table_that_is_read_by_the_number_of_rows_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "first"], ["rows"]),
            node("Gather", ["table", "rows"], ["factor"]),
            node("Mul", ["x", "factor"], ["y"]),
        ],
        first=0,
        table=np.where(np.arange(5000) < 3000, 1.0, 2.0),
    )
    refused(path, "Gather computes with the number of rows")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], "random"),
        ([node("Bernoulli", ["x"], ["y"])], "Bernoulli is random"),
        ([node("Dropout", ["x", "half", "yes"], ["y"])], "Dropout mixes rows or is random"),
        ([node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("Cast", ["q"], ["y"], to=1)],
         "DynamicQuantizeLinear mixes rows"),
        ([node("Concat", ["x", "x"], ["y"], axis=0)], "Concat mixes rows"),
        ([node("TopK", ["x", "one"], ["y", "i"], axis=0)], "TopK mixes rows"),
        ([node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Reshape", ["t", "shape"], ["y"])],
         "Reshape mixes rows"),
        ([node("Slice", ["x", "far", "end"], ["tail"]), node("ReduceSum", ["tail"], ["s"]),
          node("Add", ["x", "s"], ["y"])], "mixes rows"),
        ([node("If", ["yes"], ["y"], then_branch=body("Neg"), else_branch=body("Abs"))],
         "If runs a graph of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_nodes_that_mix_rows_or_hide_what_they_do_are_refused(
    tmp_path: Path, nodes: list[onnx.NodeProto], reason: str
) -> None:
    path = write(
        tmp_path,
        nodes,
        half=0.5,
        yes=np.array(True),
        one=[1],
        shape=[-1, 4],
        far=[3000],
        end=[1 << 40],
    )
    refused(path, reason)


UP, DOWN = node("Unsqueeze", ["v", "two"], ["u"]), node("Squeeze", ["w", "two"], ["m"])


@pytest.mark.parametrize(
    ("op", "nodes"),
    [
        ("CumSum", [node("CumSum", ["v", "zero"], ["m"])]),
        ("Slice", [node("Slice", ["v", "last", "far", "first", "last"], ["m"])]),
        ("Einsum", [node("Einsum", ["v", "v", "x"], ["m"], equation="ij,kj,kl->il")]),
        ("Conv", [UP, node("Conv", ["u", "ones"], ["w"], pads=[1, 0, 1, 0]), DOWN]),
        ("MaxPool", [UP, node("MaxPool", ["u"], ["w"], kernel_shape=[3, 1], pads=[1, 0, 1, 0]),
                     DOWN]),
        ("MeanVarianceNormalization", [node("MeanVarianceNormalization", ["v"], ["m"], axes=[0])]),
        ("Reshape", [node("Transpose", ["v"], ["t"], perm=[1, 0]),
                     node("Reshape", ["t", "shape"], ["m"])]),
        ("Concat", [node("Concat", ["v", "v"], ["t"], axis=0),
                    node("Reshape", ["t", "wide"], ["r"]),
                    node("Slice", ["r", "four", "eight", "one"], ["m"])]),
        ("Trilu", [node("Trilu", ["v"], ["m"], upper=0)]),
        ("Compress", [node("Not", ["hit"], ["keep"]),
                      node("Gather", ["keep", "zero"], ["k"], axis=1),
                      node("Compress", ["v", "k"], ["m"], axis=0)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_node_that_mixes_flags_is_refused_although_no_random_input_raises_one(
    tmp_path: Path, op: str, nodes: list[onnx.NodeProto]
) -> None:
    for kind in (FLOAT, INT64) if op in ("CumSum", "Slice", "Trilu") else (FLOAT,):
        flags = [
            node("Equal", ["x", "rare"], ["hit"]),
            node("Cast", ["hit"], ["v"], to=kind),
            *nodes,
            node("Cast", ["m"], ["added"], to=FLOAT),
            node("Add", ["x", "added"], ["y"]),
        ]
        path = write(
            tmp_path,
            flags,
            rare=42.0,
            zero=0,
            first=[0],
            last=[-1],
            far=[-(1 << 40)],
            two=[0, 1],
            ones=np.ones((1, 1, 3, 1)),
            shape=[-1, 4],
            wide=[-1, 8],
            four=[4],
            eight=[8],
            one=[1],
        )
        refused(path, f"the node {op} ")


def test_texts_in_another_order_are_refused_although_no_random_input_has_them(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path,
        [
            node("Equal", ["x", "rare"], ["hit"]),
            node("Where", ["hit", "x", "none"], ["w"]),
            node("Slice", ["w", "last", "far", "first", "last"], ["m"]),
            node("StringConcat", ["m", "x"], ["y"]),
        ],
        [("x", TensorProto.STRING, ["n"])],
        TensorProto.STRING,
        rare=np.array("rare", object),
        none=np.array("", object),
        first=[0],
        last=[-1],
        far=[-(1 << 40)],
    )
    refused(path, "Slice mixes rows")


def test_a_neighbour_times_zero_is_refused_since_it_may_be_nan(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            node("Unsqueeze", ["x", "two"], ["u"]),
            node("Conv", ["u", "middle"], ["w"], pads=[1, 0, 1, 0]),
            node("Squeeze", ["w", "two"], ["y"]),
        ],
        two=[0, 1],
        middle=np.array([0.0, 1, 0]).reshape(1, 1, 3, 1),
    )
    refused(path, "Conv mixes rows")


def test_rows_that_choose_among_other_rows_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [node("Gather", ["x", "i"], ["y"], axis=0)],
        [("x", FLOAT, ["n", 4]), ("i", INT64, ["n"])],
    )
    assert not verify(path, 64).allowed


def test_inputs_of_different_numbers_of_rows_are_refused(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path, nodes, [("x", FLOAT, ["n", "m"]), ("w", FLOAT, ["m", 2])])
    refused(path, "different first dimensions")
    nodes = [node("Softmax", ["x"], ["y"], axis=1)]
    refused(write(tmp_path, nodes, [("x", FLOAT, ["n", "n"])]), "also an inner dimension")


def test_a_fixed_first_dimension_is_refused_without_advice(tmp_path: Path) -> None:
    inputs: list[Value] = [("x", FLOAT, [3, 4])]
    path = write(tmp_path, [node("Neg", ["x"], ["y"])], inputs, [("y", FLOAT, [3, 4])])
    for batching in (None, Batching(True, "declared")):
        session = load(path, SessionOptions("cpu"), batching)
        assert not session.batchable
        assert session.batching.reason == "off: the first dimension of 'x' is not open"


def test_an_output_without_rows_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [node("Neg", ["x"], ["y"]), node("Expand", ["four", "shape"], ["z"])],
        ROWS,
        [("y", FLOAT, ["n", 4]), ("z", FLOAT, ["m"])],
        four=np.ones(1),
        shape=[4],
    )
    assert not verify(path, 64).allowed


def test_a_model_that_is_too_slow_or_too_large_is_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, [node("Neg", ["x"], ["y"])])
    times = count(0, 0.25)
    assert "too slow" in verify(path, 64, clock=lambda: next(times)).reason
    times = iter([0.0, *[11.0] * 1000])
    assert "not verified within 10 s" in verify(path, 64, clock=lambda: next(times)).reason
    monkeypatch.setattr(row_wise, "_VALUE_BYTES", 100)
    assert "values are too large" in verify(path, 64).reason
    monkeypatch.setattr(row_wise, "_FILE_BYTES", 10)
    assert "files are larger" in verify(path, 64).reason


def test_a_run_that_outlasts_the_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A net of 400 layers whose run takes longer than the time for verification."""
    size = 1500
    layers = [node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(400)]
    path = write(
        tmp_path,
        [node("Identity", ["x"], ["h0"]), *layers, node("Identity", ["h400"], ["y"])],
        [("x", FLOAT, ["n", size, size])],
        w=np.zeros((size, size)),
    )
    monkeypatch.setattr(row_wise, "_SECONDS", 0.3)
    batching = verify(path, 64)
    assert not batching.allowed
    assert "not verified within" in batching.reason


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    assert "verification failed" in verify(tmp_path / "model.onnx", 64).reason
    assert not verify(tmp_path / "none.onnx", 64).allowed


def test_requests_longer_than_what_was_verified_run_whole(tmp_path: Path) -> None:
    """The first 2,500 rows of any input: for fewer rows, this model is row-wise."""
    path = write(
        tmp_path, [node("Slice", ["x", "zero", "end", "zero"], ["y"])], zero=[0], end=[2500]
    )
    session = load(path, SessionOptions("cpu"))
    assert session.batchable
    assert 64 < session.batching.max_split < 2500
    x = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    assert np.array_equal(session.run([x])[0], x[:2500])
    assert np.array_equal(session.run([x[:100]])[0], x[:100])


def test_what_is_declared_is_not_verified(tmp_path: Path) -> None:
    path = write(tmp_path, [node("Neg", ["x"], ["y"])])
    declared = Batching(True, "declared", max_rows=3)
    session = load(path, SessionOptions("cpu"), declared)
    assert session.batching is declared
    assert (session.batchable, session.has_rows) == (True, True)
    session = load(path, SessionOptions("cpu"), Batching(False, "off: declared"))
    assert (session.batchable, session.has_rows) == (False, False)


def test_rows_of_an_undeclared_model_count_although_it_is_not_batched(tmp_path: Path) -> None:
    path = write(tmp_path, [node("Softmax", ["x"], ["y"], axis=0)])
    session = load(path, SessionOptions("cpu"))
    assert (session.batchable, session.has_rows) == (False, True)


def test_a_model_that_is_not_batched_may_refuse_the_rows_of_the_warm_up(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path, nodes, [("x", FLOAT, ["n", "m"]), ("w", FLOAT, ["m", 2])])
    session = load(path, SessionOptions("cpu"))
    x, w = np.ones((3, 5), np.float32), np.ones((5, 2), np.float32)
    assert session.run([x, w])[0].tolist() == [[5, 5]] * 3


def test_fixed_rows_names_the_first_such_tensor() -> None:
    batch, fixed = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (1, -1))
    assert fixed_rows([batch], [batch]) == ""
    assert "'y'" in fixed_rows([batch], [fixed])
    assert "'s'" in fixed_rows([TensorSpec("s", "FP32", ())], [fixed])


@pytest.mark.parametrize(
    ("datatype", "a", "b", "same"),
    [
        ("FP32", [[1.0, 1e6]], [[1.0 + 50, 1e6]], True),
        ("FP32", [[1.0, 1e6]], [[1.0 + 150, 1e6]], False),
        ("FP32", [[1.0], [1e6]], [[1.001], [1e6]], False),  # each row has its own scale
        ("FP32", [[np.nan, np.inf]], [[np.nan, np.inf]], True),
        ("FP32", [[np.inf]], [[-np.inf]], False),
        ("FP32", [[np.nan]], [[0.0]], False),
        ("FP64", [[1.0]], [[1.0 + 1e-8]], False),
        ("INT64", [[1 << 60]], [[(1 << 60) + 1]], False),
        ("BYTES", [["a"]], [["a"]], True),
        ("BYTES", [["a"]], [["b"]], False),
        ("BOOL", [[True]], [[False]], False),
    ],
)
def test_agreement_is_within_the_tolerance_of_a_row(
    datatype: str, a: list[Any], b: list[Any], same: bool
) -> None:
    dtype = {"FP32": np.float32, "FP64": np.float64, "BYTES": object}.get(datatype)
    assert agree(datatype, np.array(a, dtype), np.array(b, dtype)) is same


def test_bfloat16_agrees_by_value_and_not_by_bits() -> None:
    a, b = to_bfloat16(np.array([[1.0], [0.0]])), to_bfloat16(np.array([[1.01], [-0.0]]))
    assert agree("BF16", a, b)
    assert not agree("BF16", a, to_bfloat16(np.array([[1.2], [0.0]])))


@pytest.mark.parametrize("kind", ["unit", "small", "scales", "extreme", "alike", "zeros"])
@pytest.mark.parametrize(
    "datatype",
    ["BOOL", "UINT8", "INT8", "UINT64", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES"],
)
def test_random_rows_are_finite_and_have_shape_and_datatype(kind: str, datatype: str) -> None:
    rng = np.random.default_rng(0)
    spec = TensorSpec("x", datatype, (-1, 2, -1))
    rows = random_rows(rng, spec, 7, kind, inner_size=3)
    assert rows.shape == (7, 2, 3)
    assert agree(datatype, rows, rows)
    if datatype.startswith("FP"):
        assert np.isfinite(rows).all()
    if kind == "alike" and datatype == "FP32":
        assert len(np.unique(rows, axis=0)) == 2
