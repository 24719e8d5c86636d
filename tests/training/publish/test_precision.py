"""fp16 and int8 exports of a trained network."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort

from service.runtime import row_wise
from tests.training.runs import evaluation_of, train
from training.publish.precision import loses_too_much

SMALL = ["--recipe", "fast", "--channels", "8,16", "--epochs", "1", "--train-limit", "6000"]


def test_fp16_and_int8_are_measured_reported_and_published_beside_fp32(tmp_path: Path) -> None:
    arguments = ["--also", "fp16", "int8", "--force", "--batch-size", "64"]
    run = train(tmp_path, *SMALL, *arguments)
    precisions = evaluation_of(run)["precisions"]
    assert list(precisions) == ["fp32", "fp16", "int8"]
    assert precisions["fp32"]["accuracy"] == evaluation_of(run)["accuracy"] > 0.8
    for precision in ("fp16", "int8"):
        assert precisions[precision]["accuracy"] > precisions["fp32"]["accuracy"] - 0.02
        assert precisions[precision]["bytes"] < precisions["fp32"]["bytes"]
        assert set(precisions[precision]["microseconds"]) == {"1", "64"}
        folder = tmp_path / "models" / f"mnist-{precision}" / "1"
        card = json.loads((folder / "model.json").read_text())
        assert (card["model"], card["precision"]) == (f"mnist-{precision}", precision)
        assert card["batching"] is True
        if precision == "int8":
            # In 16 bits rounding depends on the size of the batch, by more than float32 may differ.
            assert row_wise.verify(folder / "model.onnx", 64).allowed
        assert card["accuracy"] == precisions[precision]["accuracy"]
        graph = onnx.load(folder / "model.onnx")
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", 18)]
        session = ort.InferenceSession(folder / "model.onnx")
        (image,) = session.get_inputs()
        assert (image.type, image.shape) == ("tensor(uint8)", ["batch", 28, 28])
        assert [o.type for o in session.get_outputs()] == [
            *["tensor(float)"] * 2,
            *("tensor(bool)", "tensor(uint8)", "tensor(bool)"),
        ]
    kinds = {
        tensor.data_type
        for tensor in onnx.load(tmp_path / "models/mnist-int8/1/model.onnx").graph.initializer
    }
    assert onnx.TensorProto.INT8 in kinds
    page = (run / "report.html").read_text()
    assert "Precisions" in page
    assert "int8" in page


def test_export_may_lose_a_thousandth_of_accuracy() -> None:
    assert not loses_too_much(0.994, 0.995)
    assert not loses_too_much(0.996, 0.995)
    assert loses_too_much(0.9939, 0.995)
