from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.core.classification.pictures import PictureInput, picture_input, rule_of
from service.core.errors import InvalidArgument, RequestTooLarge
from service.core.tensors import TensorSpec
from service.operations.classification import Classifications, _prepared, classify, usable
from service.operations.digits import Digits
from tests.service.classifiers import COLOURS, publish_colours, publish_lengths, publish_mixing
from tests.service.composition import Operations
from tests.service.linear_model import CallersOf, publish_linear, run_with_operations

KINDS = {"output_kinds": {"y": "logits"}}


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (9, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


async def ask(
    operations: Operations, model: str, top: int = 10, digits: Digits | None = None, **how: Any
) -> Classifications:
    served = operations.inference.repository.get(model)
    assert served.classifier is not None
    return await classify(digits or operations.digits, served, served.classifier, top=top, **how)


def test_pictures_pixels_and_arrays_get_the_same_answer(tmp_path: Path) -> None:
    publish_colours(tmp_path, **KINDS, labels=COLOURS, picture={})

    async def scenario(operations: Operations) -> None:
        pixels = np.full((4, 4, 3), (0, 255, 51), np.uint8)
        answers = [
            await ask(operations, "colours", picture=picture((0, 255, 51))),
            await ask(operations, "colours", picture=lambda: picture((0, 255, 51))),
            await ask(operations, "colours", pixels=pixels.tobytes()),
            await ask(operations, "colours", values=pixels.tolist()),
            await ask(operations, "colours", values=pixels.ravel().tolist()),
        ]
        for answer in answers:
            (row,) = answer.rows
            assert (row.label, row.class_index) == ("green", 1)
            exact = np.exp([2, 0.4, 0])
            assert row.probabilities == pytest.approx(
                dict(zip(("green", "blue", "red"), exact / exact.sum(), strict=True)), abs=1e-6
            )
        statistics = operations.inference.repository.get("colours").batcher.statistics
        assert statistics.judgements == {(None, ""): 5}

    run_with_operations(tmp_path, scenario)


def test_many_rows_are_converted_and_run_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_colours(tmp_path, **KINDS, batching=True, picture={})
    classes = np.arange(20_000) % 3
    pixels = np.random.default_rng(0).integers(0, 100, (20_000, 4, 4, 3), np.uint8)
    for number in range(3):
        pixels[classes == number, ..., number] += 100
    converted: list[tuple[int, bool]] = []
    array = PictureInput.array

    def recording(self: PictureInput, part: np.ndarray) -> np.ndarray:
        converted.append((len(part), threading.current_thread() is threading.main_thread()))
        return array(self, part)

    monkeypatch.setattr(PictureInput, "array", recording)

    async def scenario(operations: Operations) -> None:
        answer = await ask(operations, "colours", pixels=pixels.tobytes(), top=1)
        assert [row.class_index for row in answer.rows] == classes.tolist()

    run_with_operations(tmp_path, scenario)
    assert [count for count, _ in converted] == [8333, 8333, 3334]
    assert not any(on_loop for _, on_loop in converted)


def test_rows_of_a_model_that_mixes_them_are_run_alone(tmp_path: Path) -> None:
    publish_mixing(tmp_path, **KINDS)

    async def scenario(operations: Operations) -> None:
        answer = await ask(operations, "mixing", values=[[3, 1], [7, 1], [0, 0]])
        # Without its own mean every row is zero.
        assert [row.probabilities for row in answer.rows] == [{"0": 0.5, "1": 0.5}] * 3

    run_with_operations(tmp_path, scenario)


def test_fields_by_the_names_of_the_inputs(tmp_path: Path) -> None:
    publish_lengths(tmp_path, **KINDS, labels=["long", "wide"])

    async def scenario(operations: Operations) -> None:
        CallersOf.callers.clear()
        answer = await ask(operations, "lengths", values={"a": 2, "b": 1}, caller="me")
        assert [row.label for row in answer.rows] == ["long"]
        many = {"a": [0.0] * 20_000, "b": [1.0] * 20_000}
        answer = await ask(operations, "lengths", values=many)
        assert [row.label for row in answer.rows] == ["wide"] * 20_000
        assert CallersOf.callers[0] == "me"

    run_with_operations(tmp_path, scenario, CallersOf)


def test_input_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    publish_lengths(tmp_path, **KINDS)
    publish_colours(tmp_path, **KINDS, picture={})

    async def scenario(operations: Operations) -> None:
        for how in ({"picture": picture((1, 2, 3))}, {"pixels": bytes(48)}):
            with pytest.raises(
                InvalidArgument, match=r"lacks picture.*fields: a, b\..*use: colours\."
            ):
                await ask(operations, "lengths", **how)
        with pytest.raises(InvalidArgument, match="data URL"):
            await ask(operations, "colours", values=None)
        with pytest.raises(InvalidArgument, match="image: must hold only numbers"):
            await ask(operations, "colours", values=["a"])
        with pytest.raises(InvalidArgument, match="4x4x3"):
            await ask(operations, "colours", pixels=bytes(47))

    run_with_operations(tmp_path, scenario)


def test_limits_of_pictures_and_of_answers(tmp_path: Path) -> None:
    publish_lengths(tmp_path, **KINDS)
    publish_colours(tmp_path, **KINDS, picture={})

    async def scenario(operations: Operations) -> None:
        few = Digits(operations.inference.repository, "linear", max_image_pixels=50)
        with pytest.raises(RequestTooLarge, match="max_image_pixels"):
            await ask(operations, "colours", picture=picture((1, 2, 3)), digits=few)
        many = [0.0] * 20_000
        with pytest.raises(RequestTooLarge, match="top"):
            await ask(operations, "lengths", values={"a": many, "b": many}, top=1000)

    run_with_operations(tmp_path, scenario)


def test_the_picture_as_the_model_sees_it(tmp_path: Path) -> None:
    publish_colours(tmp_path, **KINDS, picture={})

    async def scenario(operations: Operations) -> None:
        answer = await ask(operations, "colours", picture=picture((1, 2, 3)), explain=True)
        seen = Image.open(io.BytesIO(answer.seen))
        assert (seen.size, seen.getpixel((0, 0))) == ((4, 4), (1, 2, 3))

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize("colour", ["grey", "RGB"])
@pytest.mark.parametrize("size", [(1, 4), (4, 1), (1, 1)])
def test_a_picture_of_one_pixel_a_side_is_explained(size: tuple[int, int], colour: str) -> None:
    height, width = size
    spec = TensorSpec("x", "FP32", (-1, 1 if colour == "grey" else 3, *size))
    form = picture_input(rule_of({}), [spec])
    with Image.open(io.BytesIO(picture((9, 9, 9)))) as image:
        _, file = _prepared(form, True, image)
    seen = Image.open(io.BytesIO(file))
    assert (seen.mode, seen.size) == ("L" if colour == "grey" else "RGB", (width, height))


def test_usable_models_are_named(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    publish_lengths(tmp_path, **KINDS)
    publish_mixing(tmp_path)

    async def scenario(operations: Operations) -> None:
        assert usable(operations.inference.repository) == "/predict can use: lengths, linear."

    run_with_operations(tmp_path, scenario)
