from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.core.digits import HINTS, REASONS
from service.core.errors import InvalidArgument, ModelNotFound
from service.grpc.answering import Call
from service.grpc.digits import methods
from service.operations.digits import INLINE_ROWS
from service.stubs.digits.v1 import digits_pb2 as pb
from tests.e2e.onnx_models import judged_image, publish_judging
from tests.service.composition import Operations
from tests.service.linear_model import WEIGHTS, CallersOf, publish_linear, run_with_operations

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 28, 28), np.uint8)
CARD = {"output_kinds": {"scores": "logits"}}


async def predict(operations: Operations, **fields: Any) -> pb.PredictResponse:
    request = pb.PredictRequest(**fields)
    return await methods(operations.digits)["Predict"].handler(request, Call(None, "caller"))


def test_pixels_are_answered_with_one_prediction_per_image(tmp_path: Path) -> None:
    CallersOf.callers.clear()
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        answer = await predict(operations, pixels=PIXELS.tobytes())
        assert CallersOf.callers == ["caller"]
        digits = (PIXELS.reshape(3, 784) @ WEIGHTS).argmax(axis=1).tolist()
        assert [prediction.digit for prediction in answer.predictions] == digits
        assert (answer.model_name, answer.model_version) == ("linear", "1")
        for prediction in answer.predictions:
            assert abs(sum(prediction.probabilities) - 1) < 1e-5
            assert 0 <= prediction.entropy_bits <= np.log2(10)

    run_with_operations(tmp_path, scenario, CallersOf)


def test_many_images_are_answered_with_one_prediction_each(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    pixels = np.random.default_rng(2).integers(0, 256, (INLINE_ROWS + 1, 28, 28), np.uint8)

    async def scenario(operations: Operations) -> None:
        answer = await predict(operations, pixels=pixels.tobytes())
        expected = (pixels.reshape(-1, 784) @ WEIGHTS).argmax(axis=1).tolist()
        assert [prediction.digit for prediction in answer.predictions] == expected

    run_with_operations(tmp_path, scenario)


def test_picture_is_answered_with_one_prediction(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    file = io.BytesIO()
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(file, "PNG")

    async def scenario(operations: Operations) -> None:
        answer = await predict(operations, image=file.getvalue())
        assert len(answer.predictions) == 1

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, InvalidArgument, "pixels or image"),
        ({"pixels": bytes(785)}, InvalidArgument, "784"),
        ({"image": b"no image"}, InvalidArgument, "image"),
        ({"pixels": bytes(784), "model_name": "none"}, ModelNotFound, "'none'"),
        ({"pixels": bytes(784), "model_version": "9"}, ModelNotFound, "9"),
    ],
)
def test_wrong_request_is_rejected(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(error, match=message):
            await predict(operations, **fields)

    run_with_operations(tmp_path, scenario)


def test_an_answer_says_what_is_not_accepted_and_why(tmp_path: Path) -> None:
    publish_judging(tmp_path)
    images = np.stack([judged_image(3), judged_image(7, REASONS.index("unsure"), second=1)])

    async def scenario(operations: Operations) -> None:
        answer = await predict(operations, pixels=images.tobytes(), model_name="judge")
        first, second = answer.predictions
        assert (first.accepted, first.reason, first.hint) == (True, "", "")
        assert first.HasField("accepted")
        assert list(first.prediction_set) == [3]
        assert (second.accepted, second.reason) == (False, "unsure")
        assert second.HasField("accepted")
        assert second.hint == HINTS[REASONS.index("unsure")]
        assert list(second.prediction_set) == [1, 7]

    run_with_operations(tmp_path, scenario)


def test_a_model_that_does_not_judge_leaves_accepted_unset(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        (prediction,) = (await predict(operations, pixels=bytes(784))).predictions
        assert not prediction.HasField("accepted")
        assert list(prediction.prediction_set) == []

    run_with_operations(tmp_path, scenario)


def test_explain_shows_each_step_and_what_the_model_sees(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    file = io.BytesIO()
    Image.fromarray(np.eye(60, dtype=np.uint8) * 255).save(file, "PNG")

    async def scenario(operations: Operations) -> None:
        assert not (await predict(operations, image=file.getvalue())).steps
        steps = (await predict(operations, image=file.getvalue(), explain=True)).steps
        assert all(step.name for step in steps)
        assert Image.open(io.BytesIO(steps[-1].png)).size == (28, 28)

    run_with_operations(tmp_path, scenario)


def test_numbers_are_read_with_box_and_line(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    picture = Image.new("L", (300, 260), 240)
    for left, top in ((50, 40), (120, 42), (60, 160)):
        picture.paste(20, (left, top, left + 8, top + 60))
    file = io.BytesIO()
    picture.save(file, "PNG")

    async def scenario(operations: Operations) -> None:
        read = methods(operations.digits)["Read"].handler
        answer = await read(pb.ReadRequest(image=file.getvalue()), Call(None, "caller"))
        assert (answer.model_name, answer.model_version) == ("linear", "1")
        box = answer.digits[0].box
        assert (box.left, box.top, box.right, box.bottom) == (50, 40, 58, 100)
        assert [digit.line for digit in answer.digits] == [0, 0, 1]
        assert [len(line) for line in answer.lines] == [2, 1]
        assert answer.text == "\n".join(answer.lines)
        assert not answer.digits[0].prediction.HasField("accepted")
        assert len(answer.digits[0].prediction.probabilities) == 10
        with pytest.raises(InvalidArgument, match="image"):
            await read(pb.ReadRequest(), Call(None, "caller"))

    run_with_operations(tmp_path, scenario)
