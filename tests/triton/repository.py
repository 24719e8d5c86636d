"""Models with the names and signatures of Triton's example repository, made here.

`python -m tests.triton.repository FOLDER` writes them, for trying Triton's own clients.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.onnx_models import ELEMENT_TYPES, publish

NAMES = (
    "densenet_onnx",
    "simple",
    "simple_identity",
    "simple_int8",
    "simple_sequence",
    "simple_string",
)
CLASSES = 1000


def publish_examples(root: Path) -> None:
    """Write all models of NAMES into `root`."""
    publish_simple(root, "simple", "INT32")
    publish_simple(root, "simple_int8", "INT8")
    publish_simple(root, "simple_string", "BYTES")
    publish(
        root,
        "simple_identity",
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        [("INPUT0", TensorProto.STRING, ["batch", "length"])],
        [("OUTPUT0", TensorProto.STRING, ["batch", "length"])],
    )
    _configure(root, "simple_identity", 8, _tensors(["INPUT0"], ["OUTPUT0"], "STRING", -1))
    publish_sequence(root)
    publish_densenet(root)


def publish_simple(root: Path, name: str, datatype: str) -> None:
    """[N,16] INPUT0 and INPUT1 to their sum OUTPUT0 and difference OUTPUT1; BYTES are numbers."""
    kind = ELEMENT_TYPES[datatype]
    nodes = [
        helper.make_node("Cast", ["INPUT0"], ["a"], to=TensorProto.INT32),
        helper.make_node("Cast", ["INPUT1"], ["b"], to=TensorProto.INT32),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("Cast", ["sum"], ["OUTPUT0"], to=kind),
        helper.make_node("Cast", ["difference"], ["OUTPUT1"], to=kind),
    ]
    inputs, outputs = ["INPUT0", "INPUT1"], ["OUTPUT0", "OUTPUT1"]
    publish(
        root,
        name,
        nodes,
        [(tensor, kind, ["batch", 16]) for tensor in inputs],
        [(tensor, kind, ["batch", 16]) for tensor in outputs],
    )
    _configure(root, name, 8, _tensors(inputs, outputs, datatype.replace("BYTES", "STRING"), 16))


def publish_sequence(root: Path) -> None:
    """INT32 [N,1] INPUT to OUTPUT = INPUT + START, with control inputs of a sequence batcher."""
    publish(
        root,
        "simple_sequence",
        [
            helper.make_node("Mul", ["START", "READY"], ["starts"]),
            helper.make_node("Add", ["INPUT", "starts"], ["OUTPUT"]),
        ],
        [(name, TensorProto.INT32, ["batch", 1]) for name in ("INPUT", "START", "READY")],
        [("OUTPUT", TensorProto.INT32, ["batch", 1])],
    )
    controls = "".join(
        f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{name} '
        "int32_false_true: [ 0, 1 ] } } "
        for name in ("START", "READY")
    )
    tensors = _tensors(["INPUT"], ["OUTPUT"], "INT32", 1)
    _configure(root, "simple_sequence", 8, f"sequence_batching {{ {controls} }}\n{tensors}")


def publish_densenet(root: Path) -> None:
    """A classifier of FP32 [1,3,224,224] pictures, which the configuration presents as [3,224,224].

    The score of class c is its share of red, green and blue, so that a picture of one colour has
    the classes 0, 1 or 2.
    """
    weights = np.zeros((CLASSES, 3, 1, 1), np.float32)
    weights[:3] = np.eye(3, dtype=np.float32)[:, :, None, None]
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["data_0"], ["mean"]),
            helper.make_node("Conv", ["mean", "weights"], ["fc6_1"]),
        ],
        "densenet_onnx",
        [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("fc6_1", TensorProto.FLOAT, [1, CLASSES, 1, 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder = root / "densenet_onnx" / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    labels = ["RED", "GREEN", "BLUE", *(f"CLASS {index}" for index in range(3, CLASSES))]
    (folder.parent / "densenet_labels.txt").write_text("\n".join(labels) + "\n")
    _configure(
        root,
        "densenet_onnx",
        0,
        'input { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ] '
        "reshape { shape: [ 1, 3, 224, 224 ] } }\n"
        f'output {{ name: "fc6_1" data_type: TYPE_FP32 dims: [ {CLASSES} ] '
        f"reshape {{ shape: [ 1, {CLASSES}, 1, 1 ] }} "
        'label_filename: "densenet_labels.txt" }\n',
    )


def _tensors(inputs: list[str], outputs: list[str], datatype: str, size: int) -> str:
    return "".join(
        f'{kind} {{ name: "{name}" data_type: TYPE_{datatype} dims: [ {size} ] }}\n'
        for kind, names in (("input", inputs), ("output", outputs))
        for name in names
    )


def _configure(root: Path, name: str, max_batch_size: int, rest: str) -> None:
    text = f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {max_batch_size}\n'
    (root / name / "config.pbtxt").write_text(text + rest)


if __name__ == "__main__":
    publish_examples(Path(sys.argv[1]))
