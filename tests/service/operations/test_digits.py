from __future__ import annotations

import asyncio
import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from service.core import digits as digits_module
from service.core.batching import Batcher
from service.core.digits import Prediction
from service.core.errors import InvalidArgument, ModelNotFound, Overloaded, RequestTooLarge
from service.core.pictures.digit import Found, find_digit
from service.core.pictures.files import open_picture
from service.operations import digits
from service.operations.digits import Digits
from tests.conftest import ROOT
from tests.e2e.onnx_models import judged_image, publish_judging
from tests.service.composition import Operations
from tests.service.linear_model import WEIGHTS, CallersOf, publish_linear, run_with_operations

PNG = (ROOT / "docs" / "seven.png").read_bytes()
PIXELS = np.random.default_rng(1).integers(0, 256, (3, 28, 28), np.uint8)


def test_logits_of_a_foreign_model_become_probabilities(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})

    async def scenario(operations: Operations) -> None:
        answer = await operations.digits.classify(values=PIXELS)
        logits = (PIXELS.reshape(3, 784) / np.float32(255)) @ WEIGHTS
        expected = np.exp(logits - logits.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        for prediction, row in zip(answer.rows, expected, strict=True):
            assert np.abs(prediction.probabilities - row).max() < 1e-5
            assert prediction.digit == row.argmax()
            assert 0 <= prediction.entropy_bits <= np.log2(10)

    run_with_operations(tmp_path, scenario)


def test_model_whose_output_kind_is_unknown_does_not_classify(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="output_kinds"):
            await operations.digits.classify(values=PIXELS)

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("side", "in_a_thread"), [(28, False), (64, False), (65, True)], ids=["28", "64", "65"]
)
def test_a_large_picture_is_decoded_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, in_a_thread: bool
) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    picture = io.BytesIO()
    Image.fromarray(np.eye(side, dtype=np.uint8) * 255).save(picture, "PNG")
    threads: list[int] = []

    def finding(image: Image.Image) -> Found:
        threads.append(threading.get_ident())
        return find_digit(image)

    monkeypatch.setattr(digits, "find_digit", finding)

    async def scenario(operations: Operations) -> None:
        answer = await operations.digits.classify(picture=picture.getvalue())
        assert (answer.model, answer.version, len(answer.rows)) == ("linear", "1", 1)

    run_with_operations(tmp_path, scenario)
    assert (threads != [threading.get_ident()]) == in_a_thread


def test_a_small_picture_in_a_large_file_is_read_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    junk = b"juNk" + bytes(1000)
    chunk = struct.pack(">I", 1000) + junk + struct.pack(">I", zlib.crc32(junk))
    threads: list[int] = []

    def opening(*arguments: Any) -> Image.Image:
        threads.append(threading.get_ident())
        return open_picture(*arguments)

    monkeypatch.setattr(digits, "open_picture", opening)

    async def scenario(operations: Operations) -> None:
        await operations.digits.classify(picture=PNG[:33] + chunk * 20 + PNG[33:])

    run_with_operations(tmp_path, scenario)
    assert threads != [threading.get_ident()]


def test_no_more_large_pictures_are_decoded_at_a_time_than_the_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    picture = io.BytesIO()
    Image.fromarray(np.eye(200, dtype=np.uint8) * 255).save(picture, "PNG")
    at_a_time: list[int] = []
    both_run, lock = threading.Barrier(2), threading.Lock()
    running = 0

    def finding(image: Image.Image) -> Found:
        nonlocal running
        with lock:
            running += 1
            at_a_time.append(running)
        both_run.wait(timeout=60)
        with lock:
            running -= 1
        return find_digit(image)

    monkeypatch.setattr(digits, "find_digit", finding)

    async def scenario(operations: Operations) -> None:
        bound = Digits(operations.inference.repository, "linear", max_decodings=2)
        answers = [bound.classify(picture=picture.getvalue()) for _ in range(10)]
        assert len(await asyncio.gather(*answers)) == 10

    run_with_operations(tmp_path, scenario)
    assert max(at_a_time) == 2


def test_many_images_for_a_model_of_floats_are_converted_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    images = np.random.default_rng(2).integers(0, 256, (1200, 28, 28), np.uint8)
    converted: list[int] = []
    inputs = digits_module.DigitLayout.inputs

    def recording(self: digits_module.DigitLayout, pixels: np.ndarray) -> list[np.ndarray]:
        converted.append(len(pixels))
        return inputs(self, pixels)

    async def scenario(operations: Operations) -> None:
        classify = operations.digits.classify
        alone = [(await classify(values=images[i])).rows[0].digit for i in range(0, 1200, 100)]
        monkeypatch.setattr(digits_module.DigitLayout, "inputs", recording)
        together = list((await classify(pixels=images.tobytes())).rows)
        assert len(together) == 1200
        assert [row.digit for row in together[::100]] == alone

    run_with_operations(tmp_path, scenario)
    assert converted == [512, 512, 176]


class Crowded(Batcher):
    """Refuses everything but the first run of each request and what follows it."""

    admitted: ClassVar[list[bool]] = []

    def submit(self, *values: Any, is_admitted: bool = False, **named: Any) -> Any:
        if not is_admitted and self.admitted:
            raise Overloaded.of("The queue is full", 1.0)
        self.admitted.append(is_admitted)
        return super().submit(*values, is_admitted=is_admitted, **named)


def test_a_request_of_several_runs_is_refused_before_the_first_or_never(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    Crowded.admitted.clear()

    async def scenario(operations: Operations) -> None:
        images = bytes(784 * (2 * digits.INLINE_ROWS + 1))
        answer = await operations.digits.classify(pixels=images)
        assert len(answer.rows) == 2 * digits.INLINE_ROWS + 1
        assert Crowded.admitted == [False, True, True]
        with pytest.raises(Overloaded):
            await operations.digits.classify(pixels=images)

    run_with_operations(tmp_path, scenario, Crowded)


def test_every_form_of_the_same_image_gets_the_same_prediction(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    # A dark border, so that the picture is taken as it is.
    image = np.pad(PIXELS[0, 1:-1, 1:-1], 1)
    picture = io.BytesIO()
    Image.fromarray(image).save(picture, "PNG")

    async def scenario(operations: Operations) -> None:
        classify = operations.digits.classify
        answers = [
            await classify(picture=picture.getvalue()),
            await classify(pixels=image.tobytes(), model="linear", version="1"),
            await classify(values=image),
            await classify(values=image.ravel()),
        ]
        first = answers[0].rows[0]
        for answer in answers:
            (row,) = answer.rows
            assert row.digit == first.digit
            assert np.array_equal(row.probabilities, first.probabilities)

    run_with_operations(tmp_path, scenario)


def test_missing_input_and_unknown_model_are_rejected(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="pixels or image"):
            await operations.digits.classify()
        with pytest.raises(ModelNotFound, match="'other'"):
            await operations.digits.classify(values=PIXELS, model="other")
        with pytest.raises(ModelNotFound, match="version 7"):
            await operations.digits.classify(values=PIXELS, version="7")
        with pytest.raises(RequestTooLarge, match="pixels"):
            await Digits(operations.inference.repository, "linear", max_image_pixels=100).classify(
                picture=PNG
            )

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize("model", ["linear", "judge"])
def test_what_the_pipeline_says_of_a_picture_overrides_the_model(
    tmp_path: Path, model: str
) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    publish_judging(tmp_path)
    picture = io.BytesIO()
    Image.new("L", (100, 100), 255).save(picture, "PNG")

    async def scenario(operations: Operations) -> None:
        answer = await operations.digits.classify(picture=picture.getvalue(), model=model)
        (row,) = answer.rows
        assert (row.accepted, row.reason) == (False, "blank")
        assert row.hint
        statistics = operations.inference.repository.get(model, "").batcher.statistics
        assert statistics.judgements == {(False, "blank"): 1}

    run_with_operations(tmp_path, scenario)


def test_a_hint_of_the_pipeline_replaces_that_of_the_model() -> None:
    row = Prediction(3, np.zeros(10, np.float32), 0.0, (3,), False, "unsure", "of the model")
    found = Found(np.zeros((1, 28, 28), np.uint8), "", "of the pipeline", ())
    assert digits._judged(row, found) == row._replace(hint="of the pipeline")
    accepted = row._replace(accepted=True, reason="", hint="")
    assert digits._judged(accepted, found) == accepted


@pytest.mark.parametrize("rows", [3, digits.INLINE_ROWS + 3])
def test_predictions_are_counted_by_judgement(tmp_path: Path, rows: int) -> None:
    publish_judging(tmp_path)
    images = np.stack([judged_image(5, 4 if i == 0 else 0) for i in range(rows)])

    async def scenario(operations: Operations) -> None:
        answer = await operations.digits.classify(values=images, model="judge")
        assert [row.accepted for row in answer.rows] == [False] + [True] * (rows - 1)
        statistics = operations.inference.repository.get("judge", "").batcher.statistics
        assert statistics.judgements == {(False, "unsure"): 1, (True, ""): rows - 1}

    run_with_operations(tmp_path, scenario)


def bars(*corners: tuple[int, int]) -> bytes:
    picture = Image.new("L", (400, 300), 240)
    for left, top in corners:
        picture.paste(20, (left, top, left + 8, top + 60))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_all_digits_of_a_picture_are_read_with_one_run(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    picture = bars((50, 40), (120, 42), (200, 38), (60, 160))

    async def scenario(operations: Operations) -> None:
        CallersOf.callers.clear()
        answer = await operations.digits.read(picture, caller="me")
        assert CallersOf.callers == ["me"]
        assert [len(line) for line in answer.lines] == [3, 1]
        assert answer.text == "\n".join(answer.lines)
        assert [digit.box.left for digit in answer.digits] == [50, 120, 200, 60]
        served = operations.inference.repository.get("linear", "")
        assert served.batcher.statistics.judgements[None, ""] == 4

    run_with_operations(tmp_path, scenario, CallersOf)


def test_reading_is_bounded_by_the_setting(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    picture = bars(*[(left, 40) for left in range(10, 390, 30)])

    async def scenario(operations: Operations) -> None:
        few = Digits(operations.inference.repository, "linear", max_read_digits=3)
        with pytest.raises(RequestTooLarge, match="max_read_digits"):
            await few.read(picture)
        assert len((await operations.digits.read(picture)).digits) == 13

    run_with_operations(tmp_path, scenario)


def test_a_model_of_something_else_reads_nothing(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="output_kinds"):
            await operations.digits.read(bars((50, 40)))

    run_with_operations(tmp_path, scenario)
