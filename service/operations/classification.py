"""Classifying anything with models that have a card for it: pictures, numbers and strings."""

from __future__ import annotations

import io
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from service.core.classification.classifier import Classification, Classifier
from service.core.classification.fields import arrays_of
from service.core.classification.pictures import GREY, PictureInput
from service.core.datatypes import Array
from service.core.digits import Pixels
from service.core.errors import InvalidArgument, RequestTooLarge, excerpt
from service.core.off_loop import off_loop
from service.core.tensors import numbers
from service.core.trace import Trace
from service.operations.digits import Digits, Picture
from service.repository.models import Repository, ServedModel

# Values of an input that are made and run at a time: pixels of long requests would take four times
# their memory as floats.
_PART_VALUES = 400_000
# Up to this many of them, and of probabilities, the arithmetic takes less than a millisecond.
_INLINE_VALUES = 32_768
_INLINE_FIELDS = 4096  # of JSON, which are converted one by one
# Predictions and probabilities of one answer.
_MOST_ANSWERS = 200_000


class Classifications(NamedTuple):
    """The answer of one version of a model: one classification per row.

    `seen` is the picture as the model sees it, as a PNG, if asked for; `seconds` are how long the
    input took, and the model with its queue.
    """

    rows: list[Classification]
    seen: bytes
    seconds: tuple[float, float]


def usable(repository: Repository, *, pictures: bool = False) -> str:
    """A sentence that names the loaded models that /predict can use, all or those for pictures."""
    names = dict.fromkeys(
        model.name
        for model in repository.loaded
        if model.layout or (model.classifier and (model.classifier.picture or not pictures))
    )
    return f"/predict can use: {excerpt(', '.join(names) or 'none')}."


async def classify(
    digits: Digits,
    served: ServedModel,
    classifier: Classifier,
    *,
    picture: Picture | None = None,
    pixels: bytes | None = None,
    values: Any = None,
    top: int,
    deadline: float | None = None,
    caller: str = "",
    trace: Trace | None = None,
    explain: bool = False,
) -> Classifications:
    """Classify one of: a picture, raw pixels, or parsed JSON (pixels or what `arrays_of` takes).

    Every row is classified by itself, also by a model that is not row-wise. `top` is the most
    probabilities of a row, `deadline` is in the event loop's time. Raises InvalidArgument for input
    that the model does not take, RequestTooLarge for a picture over the limits or an answer that
    would be too long, and what `Batcher.submit` raises.
    """
    began = monotonic()
    form, seen = classifier.picture, b""
    rows: list[Array] = []
    size = len(pixels or b"") or _leaves(values)
    if form is None:
        if picture is not None or pixels is not None:
            raise InvalidArgument(
                f"Model '{served.name}' takes no pictures: its model.json lacks picture, which "
                "says what a picture becomes. Send JSON with its inputs as fields: "
                f"{excerpt(', '.join(spec.name for spec in classifier.inputs))}. For pictures, "
                f"{usable(digits.repository, pictures=True)}"
            )
        if size > _INLINE_FIELDS:
            rows = await off_loop(arrays_of, classifier.inputs, values, size=8 * size)
        else:
            rows = arrays_of(classifier.inputs, values)
    elif picture is not None:
        found, seen = await digits.decoded(picture, partial(_prepared, form, explain))
        rows = [found]
    elif pixels is not None:
        rows = [form.pixels_from_bytes(pixels)]
    elif size > _INLINE_VALUES:
        rows = [await off_loop(_pixels_of, form, values, size=size)]
    else:
        rows = [_pixels_of(form, values)]

    count = len(rows[0])
    if count * (min(top, len(classifier.labels) or top) + 4) > _MOST_ANSWERS:
        raise RequestTooLarge(
            f"The answer for {count} rows with {top} probabilities each would be too long; send "
            "fewer rows at a time, or ask for fewer with ?top=."
        )
    one = sum(array.size for array in rows) // count
    step = max(1, _PART_VALUES // one) if served.session.batchable else 1
    answers: list[Classification] = []
    before, run = monotonic() - began, 0.0
    for start in range(0, count, step):
        part = [array[start : start + step] for array in rows]
        length = len(part[0])
        if form is not None:
            is_long = length * one > _INLINE_VALUES
            make, chosen = form.array, part[0]
            part = [await off_loop(make, chosen, size=chosen.size) if is_long else make(chosen)]
        inputs = classifier.without_count(part)
        submitted = monotonic()
        outputs = await served.batcher.submit(inputs, length, deadline, caller, trace)
        run += monotonic() - submitted
        size = outputs[classifier.output].size
        how = classifier.classifications, outputs, length, top, served.name
        answers += (
            await off_loop(*how, size=8 * size) if size > _INLINE_VALUES else how[0](*how[1:])
        )
    served.batcher.statistics.judgements[None, ""] += count
    return Classifications(answers, seen, (before, run))


def _leaves(values: Any) -> int:
    """About how many values parsed JSON holds."""
    leaves = 0
    for value in values.values() if isinstance(values, dict) else [values]:
        count, inner = 1, value
        while isinstance(inner, list) and inner:  # orjson bounds the depth, but not to Python's
            count, inner = count * len(inner), inner[0]
        leaves += count * (len(inner) if isinstance(inner, dict) else 1)
    return leaves


def _prepared(form: PictureInput, explain: bool, image: Image.Image) -> tuple[Pixels, bytes]:
    """The pixels of a picture, and with `explain` the same as a PNG."""
    pixels, file = form.pixels(image), io.BytesIO()
    if explain:
        seen = pixels[0, ..., 0] if form.colour == GREY else pixels[0]
        Image.fromarray(seen).save(file, "PNG")
    return pixels, file.getvalue()


def _pixels_of(form: PictureInput, values: Any) -> Pixels:
    if not isinstance(values, list):
        raise InvalidArgument(
            'image: send a list of pixels, bare or as {"image": ...}, or a picture as a data URL.'
        )
    return form.pixels_from_values(numbers("image:", values, np.dtype(np.uint8)))
