"""The two ONNX models that every contender serves, and the right answers to test images.

`fast` is the CNN that ships in models/, with its card. `mlp` is the 784-256-10 net of the course
notes with random weights, whose values do not change the cost of a request; it has no card. Both
take uint8 images [N,28,28] and return logits and probabilities, float32 [N,10]; `fast` also judges
each image.
"""

from __future__ import annotations

import filecmp
import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.paths import MODELS, ROOT

Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
Output = npt.NDArray[np.generic]

NAMES = ("fast", "mlp")
_SHIPPED = ROOT / "models" / "mnist" / "2"


def repository(model: str) -> Path:
    """A Triton-style repository with one of the two models as `mnist`, version 1."""
    folder = MODELS / model
    version = folder / "mnist" / "1"
    version.mkdir(parents=True, exist_ok=True)
    file = version / "model.onnx"
    if model == "fast":
        # Servers may be watching this folder: leave files that are up to date alone.
        for name in ("model.json", "model.onnx"):
            if not _are_same(_SHIPPED / name, version / name):
                shutil.copyfile(_SHIPPED / name, version / name)
    elif not file.exists():
        write_mlp(file)
    return folder


def _are_same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def onnx_file(model: str) -> Path:
    """The ONNX file of one of the two models."""
    return repository(model) / "mnist" / "1" / "model.onnx"


def write_mlp(path: Path, seed: int = 0) -> None:
    """Write a 784-256-10 net whose random weights have the scale of trained ones."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "scale": np.float32(255),
        "flat": np.array([-1, 784]),
        "w1": random.normal(0, 0.05, (784, 256)).astype(np.float32),
        "b1": random.normal(0, 0.1, 256).astype(np.float32),
        "w2": random.normal(0, 0.1, (256, 10)).astype(np.float32),
        "b2": random.normal(0, 0.1, 10).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "w1", "b1"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 28, 28])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10])
            for name in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)


def test_images(count: int) -> Pixels:
    """The first images of MNIST's test set, uint8 [N,28,28]."""
    raw = gzip.decompress((ROOT / "training/data/bundled/t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, count * 784, offset=16).reshape(-1, 28, 28)


def expected(model: str, images: Pixels) -> Probabilities:
    """Probabilities [N,10] of ONNX Runtime in this process, one image per run."""
    from benchmarks.floors.session import make_session

    session = make_session(onnx_file(model))
    rows = [session.run(["probabilities"], {"image": image[None]})[0] for image in images]
    return np.concatenate(rows)
