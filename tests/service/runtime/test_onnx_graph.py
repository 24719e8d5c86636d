from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.runtime import onnx_graph
from service.runtime.onnx_graph import Node
from tests.conftest import SHIPPED_MODELS
from tests.service.runtime.random_graphs import MIXING, random_model

SHIPPED = SHIPPED_MODELS / "mnist" / "1" / "model.onnx"


def expected(model: onnx.ModelProto) -> tuple[Node, ...]:
    return tuple(
        Node(
            op=node.op_type,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            has_body=any(attribute.HasField("g") for attribute in node.attribute),
        )
        for node in model.graph.node
    )


def test_nodes_are_those_that_the_package_onnx_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    for _ in range(30):
        random_model(rng, MIXING, path)
        graph = onnx_graph.read(path.read_bytes())
        assert graph.nodes == expected(onnx.load(path))
        assert (graph.inputs, graph.outputs) == (("x",), ("y",))
    assert onnx_graph.read(SHIPPED.read_bytes()).nodes == expected(onnx.load(SHIPPED))


def test_a_node_with_a_graph_of_its_own_and_a_function_are_noticed() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "body",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"])],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    function = helper.make_function(
        "ours", "f", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [], []
    )
    plain = helper.make_model(helper.make_graph(nodes, "g", [], []))
    graph = onnx_graph.read(plain.SerializeToString())
    assert graph.nodes[0].has_body
    assert not graph.has_functions
    extended = helper.make_model(helper.make_graph(nodes, "g", [], []), functions=[function])
    assert onnx_graph.read(extended.SerializeToString()).has_functions


def test_weights_among_the_inputs_are_no_inputs() -> None:
    value = helper.make_tensor_value_info
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    inputs = [value("x", TensorProto.FLOAT, ["n"]), value("w", TensorProto.FLOAT, [1])]
    outputs = [value("y", TensorProto.FLOAT, ["n"])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight]))
    assert onnx_graph.read(model.SerializeToString()).inputs == ("x",)


def test_inputs_and_outputs_without_a_shape_are_unranked() -> None:
    value, tensor = helper.make_tensor_value_info, helper.make_tensor_type_proto
    inputs = [
        *(value("any", 1, None), value("scalar", 1, []), value("row", 1, ["n"])),
        helper.make_value_info("maybe", helper.make_optional_type_proto(tensor(1, None))),
        helper.make_value_info("maybe_row", helper.make_optional_type_proto(tensor(1, ["n"]))),
    ]
    graph = helper.make_graph([], "g", inputs, [value("out", 1, None)])
    content = helper.make_model(graph).SerializeToString()
    assert onnx_graph.read(content).unranked == {"any", "maybe", "out"}


@pytest.mark.parametrize(
    ("shape", "only_rows_are_open"),
    [
        (["batch", 28, 28], True),
        ([None, 28, 28], True),
        ([1, 0], True),
        (["batch"], True),
        ([], True),
        (["batch", "length"], False),
        (["batch", None, 28], False),
        (None, False),
    ],
)
def test_inputs_that_are_open_in_more_than_their_rows_are_noticed(
    shape: list[int | str | None] | None, only_rows_are_open: bool
) -> None:
    fixed = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 2])
    other = helper.make_tensor_value_info("b", TensorProto.FLOAT, shape)
    model = helper.make_model(helper.make_graph([], "g", [fixed, other], [fixed]))
    graph = onnx_graph.read(model.SerializeToString())
    assert graph.only_rows_are_open == only_rows_are_open


def test_weights_in_other_files_are_found_wherever_they_are() -> None:
    def weight(place: str) -> TensorProto:
        tensor = TensorProto(name=place, data_type=1, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=place)
        return tensor

    def constant(place: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [place], value=weight(place))

    body = helper.make_graph([constant("body")], "body", [], [], [weight("inner")])
    sparse = onnx.SparseTensorProto(values=weight("sparse"), indices=weight("indices"))
    nodes = [constant("node"), helper.make_node("If", ["c"], [], then_branch=body)]
    nodes.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    graph = helper.make_graph(nodes, "g", [], [], [weight("w"), weight("w")])
    graph.sparse_initializer.append(sparse)
    function = helper.make_function("ours", "f", [], ["f"], [constant("f")], [], [])
    content = helper.make_model(graph, functions=[function]).SerializeToString()
    places = {"w", "node", "body", "inner", "sparse", "indices", "f"}
    assert sorted(onnx_graph.read(content).external) == sorted(places)


def test_added_outputs_are_values_inside_the_graph() -> None:
    content = SHIPPED.read_bytes()
    names = [name for node in onnx_graph.read(content).nodes for name in node.outputs]
    session = ort.InferenceSession(SHIPPED, providers=["CPUExecutionProvider"])
    added = set(names) - {node.name for node in session.get_outputs()}
    session = ort.InferenceSession(
        onnx_graph.with_outputs(content, added), providers=["CPUExecutionProvider"]
    )
    assert {node.name for node in session.get_outputs()} == set(names)


@pytest.mark.parametrize("content", [b"\x80", b"\xff" * 20, b"\x3a\x05\x01", b"\x3b", b"\x3a\x80"])
def test_a_malformed_file_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="ONNX file"):
        onnx_graph.read(content)


def test_any_prefix_of_a_file_is_read_or_is_a_value_error(tmp_path: Path) -> None:
    random_model(np.random.default_rng(1), MIXING, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    for end in range(len(content)):
        try:
            onnx_graph.read(content[:end])
        except ValueError:
            continue


def test_a_free_value_is_an_input_of_the_nodes_that_use_it_and_still_made() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["v"]), helper.make_node("Abs", ["v"], ["y"])]
    shape = ["n"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    free = onnx_graph.with_free_values(model.SerializeToString(), {"v": TensorProto.FLOAT}, ["v"])
    session = ort.InferenceSession(free, providers=["CPUExecutionProvider"])
    feed = {
        name: np.array([value], np.float32)
        for name, value in (("x", 3), (onnx_graph.free_name("v"), -5))
    }
    assert [value.tolist() for value in session.run(["v", "y"], feed)] == [[-3], [5]]
