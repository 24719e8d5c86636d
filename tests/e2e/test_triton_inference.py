"""Inference by the real tritonclient: every client, every datatype, every option of a request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conftest import SHIPPED_MODELS, Mnist, Server
from tests.e2e.onnx_models import (
    ELEMENT_TYPES,
    publish_identity,
    publish_log,
    publish_scalar,
    publish_sum,
)
from tests.e2e.triton import OVER_HTTP, Triton, fixture_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, and one for each datatype of the protocol."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(SHIPPED_MODELS / "mnist", root / "mnist")
    for datatype in ELEMENT_TYPES:
        publish_identity(root, datatype)
    publish_sum(root)
    publish_scalar(root)
    publish_log(root)
    return root


@pytest.fixture(scope="module")
def models_server(start_server: Callable[..., Server], models: Path) -> Server:
    return start_server(models)


@pytest.fixture(scope="module")
def grpcio_server(start_server: Callable[..., Server], models: Path) -> Server:
    return start_server(models, fast_grpc=False)


triton = fixture_of("models_server", grpcio_fixture="grpcio_server")
http_triton = fixture_of("models_server", OVER_HTTP)

EXAMPLES: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False], [False, False], [True, True]]),
    "BYTES": np.array([[b"a", b""], ["é€".encode(), b"\0"], [b"seven", b" "]], object),
    "BF16": np.array([[1, -2.5], [0, 3e38], [1e-30, 256]], ml_dtypes.bfloat16),
    **{
        name: np.array([[np.iinfo(kind).min, np.iinfo(kind).max], [0, 1], [2, 3]], kind)
        for name in ELEMENT_TYPES
        if "INT" in name and (kind := np.dtype(name.lower()))
    },
    **{
        f"FP{bits}": np.array([[1.5, -2], [0, np.finfo(kind).max], [np.finfo(kind).tiny, 3]], kind)
        for bits in (16, 32, 64)
        if (kind := np.dtype(f"float{bits}"))
    },
}


@pytest.mark.parametrize("datatype", sorted(ELEMENT_TYPES))
def test_every_datatype_survives_a_round_trip(triton: Triton, datatype: str) -> None:
    array = EXAMPLES[datatype]
    result = triton.infer(f"identity_{datatype.lower()}", [triton.input("x", array, datatype)])
    answer = result.as_numpy("y")
    assert answer.shape == array.shape
    assert answer.tolist() == array.tolist()


# tritonclient itself rejects BF16 in JSON.
@pytest.mark.parametrize("datatype", sorted(set(ELEMENT_TYPES) - {"BF16"}))
def test_every_datatype_survives_a_round_trip_in_json(http_triton: Triton, datatype: str) -> None:
    array = EXAMPLES[datatype]
    result = http_triton.infer(
        f"identity_{datatype.lower()}",
        [http_triton.input("x", array, datatype, binary_data=False)],
        outputs=[http_triton.output("y", binary_data=False)],
    )
    answer = result.as_numpy("y")
    expected = array.tolist()
    if datatype == "BYTES":
        expected = [[text.decode() for text in row] for row in expected]
        texts = http_triton.answer(result)["outputs"][0]["data"]
        answer = np.array(texts, object).reshape(array.shape)
    assert answer.tolist() == expected


def test_json_and_binary_tensors_may_be_mixed(http_triton: Triton) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    for a_binary, total_binary in ((True, False), (False, True)):
        result = http_triton.infer(
            "sum",
            [
                http_triton.input("a", rows, "FP32", binary_data=a_binary),
                http_triton.input("b", rows, "FP32", binary_data=not a_binary),
            ],
            outputs=[
                http_triton.output("total", binary_data=total_binary),
                http_triton.output("gap", binary_data=not total_binary),
            ],
        )
        assert result.as_numpy("total").tolist() == (2 * rows).tolist()
        assert result.as_numpy("gap").tolist() == [[0, 0, 0], [0, 0, 0]]
        assert ("data" in result.get_output("total")) != total_binary


def test_model_without_a_batch_takes_a_scalar(triton: Triton) -> None:
    result = triton.infer("scalar", [triton.input("x", np.array(21), "INT64")])
    assert result.as_numpy("y").tolist() == 42


def test_nan_and_infinity_come_and_go_in_binary_and_in_json(
    triton: Triton, models_server: Server
) -> None:
    array = np.array([-1, 0, 1], np.float32)
    answer = triton.infer("log", [triton.input("x", array, "FP32")]).as_numpy("y")
    assert np.isnan(answer[0])
    assert answer[1:].tolist() == [-np.inf, 0]
    tensor = {"name": "x", "datatype": "FP32", "shape": [3], "data": array.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    _, parsed = models_server.post("/v2/models/log/infer", body, "application/json")
    assert parsed["outputs"][0]["data"] == [None, -np.inf, 0.0]  # as Triton writes it
    if not triton.is_grpc:
        odd = np.array([[np.nan, np.inf], [-np.inf, 1]], np.float32)
        given = triton.input("x", odd, "FP32", binary_data=False)
        result = triton.infer(
            "identity_fp32", [given], outputs=[triton.output("y", binary_data=False)]
        )
        np.testing.assert_array_equal(result.as_numpy("y").astype(np.float32), odd)


def images(triton: Triton, mnist: Mnist, count: int = 3) -> list[Any]:
    return [triton.input("image", mnist.images[:count], "UINT8")]


def test_real_digits_are_recognised(triton: Triton, mnist: Mnist) -> None:
    result = triton.infer("mnist", images(triton, mnist, 500), model_version="1")
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (500, 10)
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-6
    assert (probabilities.argmax(axis=1) == mnist.labels[:500]).mean() > 0.98
    answer = triton.answer(result)
    assert (answer["model_name"], answer["model_version"]) == ("mnist", "1")


def test_requested_outputs_are_returned_in_their_order(triton: Triton, mnist: Mnist) -> None:
    def names(*requested: str) -> list[str]:
        outputs = [triton.output(name) for name in requested] or None
        result = triton.infer("mnist", images(triton, mnist), outputs=outputs)
        return [output["name"] for output in triton.answer(result)["outputs"]]

    judgement = ["accepted", "reason", "prediction_set"]
    assert names() == ["logits", "probabilities", *judgement]
    assert names("reason", "accepted") == ["reason", "accepted"]
    assert names("probabilities", "logits") == ["probabilities", "logits"]
    assert names("probabilities") == ["probabilities"]


def test_request_id_is_returned(triton: Triton, mnist: Mnist) -> None:
    result = triton.infer("mnist", images(triton, mnist), request_id="my id 7 é")
    assert triton.answer(result)["id"] == "my id 7 é"
    assert "id" not in triton.answer(triton.infer("mnist", images(triton, mnist)))


def test_classification_returns_the_top_classes_with_their_labels(
    triton: Triton, mnist: Mnist
) -> None:
    whole = triton.infer("mnist", images(triton, mnist)).as_numpy("probabilities")
    outputs = [triton.output("probabilities", class_count=3), triton.output("logits")]
    result = triton.infer("mnist", images(triton, mnist), outputs=outputs)
    top = result.as_numpy("probabilities")
    assert top.shape == (3, 3)
    for row, classes in zip(whole, top, strict=True):
        best = np.argsort(-row)[:3]
        assert [c.decode() for c in classes] == [f"{row[i]:f}:{i}:{i}" for i in best]
    assert result.as_numpy("logits").shape == (3, 10)
    more = [triton.output("probabilities", class_count=99)]
    result = triton.infer("mnist", images(triton, mnist), outputs=more)
    assert result.as_numpy("probabilities").shape == (3, 10)


def test_classes_of_a_model_without_labels_have_no_label(triton: Triton) -> None:
    rows = np.array([[1, 3, 2]], np.float32)
    inputs = [triton.input("a", rows, "FP32"), triton.input("b", rows, "FP32")]
    result = triton.infer("sum", inputs, outputs=[triton.output("total", class_count=2)])
    assert result.as_numpy("total").tolist() == [[b"6.000000:1", b"4.000000:2"]]


def test_sequences_priorities_and_custom_parameters_are_accepted(
    triton: Triton, mnist: Mnist
) -> None:
    for sequence in (17, "seventeen"):
        result = triton.infer(
            "mnist",
            images(triton, mnist),
            sequence_id=sequence,
            sequence_start=True,
            sequence_end=False,
            priority=2,
            timeout=30_000_000,
            parameters={"mine": "x", "count": 3, "ratio": 0.5, "on": True},
        )
        assert result.as_numpy("probabilities").argmax(axis=1).tolist() == [7, 2, 1]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_and_answers_may_be_compressed(
    triton: Triton, mnist: Mnist, algorithm: str
) -> None:
    algorithms = (
        {"compression_algorithm": algorithm}
        if triton.is_grpc
        else {
            "request_compression_algorithm": algorithm,
            "response_compression_algorithm": algorithm,
        }
    )
    result = triton.infer("mnist", images(triton, mnist, 100), **algorithms)
    assert result.as_numpy("probabilities").shape == (100, 10)


def wrong_inputs(triton: Triton, mnist: Mnist) -> list[tuple[str, list[Any], dict[str, Any], str]]:
    image = mnist.images[:1]
    right = images(triton, mnist, 1)
    return [
        ("mnist", [triton.input("image", np.zeros((1, 28, 28), np.float32), "FP32")], {}, "UINT8"),
        ("mnist", [triton.input("image", EXAMPLES["BYTES"], "BYTES")], {}, "UINT8"),
        ("mnist", [triton.input("image", EXAMPLES["BF16"], "BF16")], {}, "UINT8"),
        ("mnist", [triton.input("image", image.reshape(1, 784), "UINT8")], {}, "shape"),
        ("mnist", [triton.input("picture", image, "UINT8")], {}, "picture"),
        ("mnist", [*right, *images(triton, mnist, 1)], {}, "already exists"),
        ("mnist", right, {"outputs": [triton.output("digit")]}, "digit"),
        ("mnist", right, {"model_version": "one"}, "one"),
        (
            "sum",
            [triton.input("a", np.zeros((1, 3), np.float32), "FP32")],
            {},
            r"missing required input\(s\) \['b'\]",
        ),
        (
            "sum",
            [
                triton.input("a", np.zeros((1, 3), np.float32), "FP32"),
                triton.input("b", np.zeros((2, 3), np.float32), "FP32"),
            ],
            {},
            "batch size does not match",
        ),
        (
            "identity_bytes",
            [triton.input("x", EXAMPLES["BYTES"], "BYTES")],
            {"outputs": [triton.output("y", class_count=1)]},
            "class result not available",
        ),
        ("identity_bytes", [triton.input("x", np.array([[b"\xff", b""]]), "BYTES")], {}, "UTF-8"),
        ("mnist", right, {"timeout": -1}, "timeout"),
    ]


def test_wrong_request_is_rejected_by_name_and_the_client_stays_usable(
    triton: Triton, mnist: Mnist
) -> None:
    for model, inputs, options, word in wrong_inputs(triton, mnist):
        with pytest.raises(InferenceServerException, match=word) as caught:
            triton.infer(model, inputs, **options)
        assert triton.code(caught.value) == "INVALID_ARGUMENT", caught.value
    with pytest.raises(InferenceServerException, match="'none' is not found") as caught:
        triton.infer("none", images(triton, mnist))
    assert triton.code(caught.value) == "NOT_FOUND"
    with pytest.raises(InferenceServerException, match="version 9") as caught:
        triton.infer("mnist", images(triton, mnist), model_version="9")
    assert triton.code(caught.value) == "NOT_FOUND"
    result = triton.infer("mnist", images(triton, mnist))
    assert result.as_numpy("probabilities").argmax(axis=1).tolist() == [7, 2, 1]
