"""Both transports return what PyTorch computes, with the real model on real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import Mnist, Server
from training.run import checkpoint

COUNT = 1000


@pytest.fixture(scope="module")
def trained_server(start_server: Callable[..., Server], fast_run: Any) -> Server:
    return start_server(fast_run.model_dir.parent.parent)


@pytest.fixture(scope="module")
def expected(fast_run: Any, mnist: Mnist) -> np.ndarray:
    model = checkpoint.load(fast_run.run_dir / "checkpoint.safetensors")
    with torch.inference_mode():
        _, probabilities, *_ = model(torch.from_numpy(mnist.images[:COUNT].copy()))
    return probabilities.numpy()


def check(answers: list[Any], expected: np.ndarray, labels: np.ndarray) -> None:
    probabilities = np.array([answer["probabilities"] for answer in answers])
    assert np.abs(probabilities - expected).max() <= 1e-5
    assert np.abs(probabilities.sum(axis=1) - 1).max() <= 1e-6
    digits = np.array([answer["digit"] for answer in answers])
    assert (digits == expected.argmax(axis=1)).all()
    assert (digits == labels).mean() > 0.98


def test_http_returns_the_distributions_of_the_checkpoint(
    trained_server: Server, mnist: Mnist, expected: np.ndarray
) -> None:
    answers = []
    for image in mnist.images[:COUNT]:
        status, body = trained_server.post("/predict", image.tobytes(), "application/octet-stream")
        assert status == 200
        assert (body["model_name"], body["model_version"]) == ("mnist", "1")
        answers += body["predictions"]
    check(answers, expected, mnist.labels[:COUNT])


def test_one_http_request_may_hold_all_images(
    trained_server: Server, mnist: Mnist, expected: np.ndarray
) -> None:
    # Without spaces, which max_json_bytes has no room for.
    body = json.dumps(mnist.images[:COUNT].tolist(), separators=(",", ":")).encode()
    status, answer = trained_server.post("/predict", body, "application/json")
    assert status == 200
    check(answer["predictions"], expected, mnist.labels[:COUNT])


def test_grpc_returns_the_distributions_of_the_checkpoint(
    trained_server: Server, mnist: Mnist, expected: np.ndarray
) -> None:
    answers = []
    with grpc.insecure_channel(trained_server.grpc) as channel:
        stub = digits_pb2_grpc.DigitClassifierStub(channel)
        for image in mnist.images[:COUNT]:
            answer = stub.Predict(digits_pb2.PredictRequest(pixels=image.tobytes()))
            assert (answer.model_name, answer.model_version) == ("mnist", "1")
            (prediction,) = answer.predictions
            probabilities = list(prediction.probabilities)
            answers.append({"digit": prediction.digit, "probabilities": probabilities})
    check(answers, expected, mnist.labels[:COUNT])
