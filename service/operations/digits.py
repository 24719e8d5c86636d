"""Classifying digits, for every transport: a picture, raw pixels or numbers in, predictions out."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import NamedTuple, NoReturn, TypeVar

from PIL import Image

from service.access.limits import Limits
from service.core.datatypes import Array
from service.core.digits import (
    FEW_ROWS,
    DigitLayout,
    Pixels,
    Prediction,
    Rows,
    pixels_from_bytes,
    pixels_from_values,
)
from service.core.errors import InvalidArgument, ServiceError
from service.core.off_loop import MAX_JSON_BYTES, off_loop
from service.core.pictures.digit import Found, find_digit
from service.core.pictures.files import Room, memory_of, open_picture
from service.core.pictures.parts import check_parts
from service.core.pictures.reading import ReadDigit, candidates_on, choose, further
from service.core.queueing import Share
from service.core.trace import Trace
from service.repository.models import Repository, ServedModel

# Up to these sizes a picture takes at most a millisecond. Reading its header takes time for its
# bytes: 4 KB of empty chunks take 0.8 ms.
_INLINE_PICTURE_PIXELS = 64 * 64
_INLINE_PICTURE_BYTES = 4096
# For pictures that are decoded at the same time: a WebP or a progressive JPEG of 4 million pixels
# takes 48 MB, and other pictures of that size 16.
_PICTURES_BYTES = 52_000_000
# Up to this many images, their pixels and predictions take less than a millisecond.
INLINE_ROWS = 512

NO_DIGITS = (
    "No digits were found; are they at least 10 pixels high, and is the pen clearly darker or "
    "lighter than the paper?"
)

T = TypeVar("T")
# The file of a picture, or a function that takes it out of a larger body.
Picture = bytes | Callable[[], bytes]


class Predictions(NamedTuple):
    """The answer of one version of a model: one prediction per image.

    If asked for, `steps` has a name and a PNG for each step from a picture to its pixels, and
    `seconds` how long the picture took, and the model with its queue.
    """

    model: str
    version: str
    rows: Sequence[Prediction] | Rows  # Rows of more than FEW_ROWS images
    steps: list[tuple[str, bytes]]
    seconds: tuple[float, float] | None = None


class ReadAnswer(NamedTuple):
    """What a version of a model reads on a picture: its digits in reading order, and the text.

    `lines` has the text of each line; `hint` says what may be wrong if there are no digits;
    `seconds` are those of `Predictions`.
    """

    model: str
    version: str
    digits: list[ReadDigit]
    lines: list[str]
    hint: str
    seconds: tuple[float, float]

    @property
    def text(self) -> str:
        """The lines, with line breaks between them."""
        return "\n".join(self.lines)


class Digits:
    """Classifies 28x28 images with the models of one repository. Lives on one event loop.

    Up to `max_decodings` large pictures are decoded at a time, each in a thread, and fewer if they
    are large; others wait. `limits` are those of images.
    """

    def __init__(
        self,
        repository: Repository,
        default_model: str,
        *,
        max_image_pixels: int = 16_000_000,
        max_decoded_pixels: int = 4_000_000,
        max_decodings: int = 2,
        max_json_bytes: int = MAX_JSON_BYTES,
        max_read_digits: int = 256,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits
        self.max_json_bytes = max_json_bytes
        self.repository = repository
        self.default_model = default_model
        self._max_read_digits = max_read_digits
        self._max_pixels = max_image_pixels, max_decoded_pixels
        self._decoders = ThreadPoolExecutor(max_decodings, "decode")
        self._room = Room(_PICTURES_BYTES)

    async def classify(
        self,
        *,
        picture: Picture | None = None,
        pixels: bytes | None = None,
        values: Array | None = None,
        model: str = "",
        version: str = "",
        served: ServedModel | None = None,
        deadline: float | None = None,
        caller: str = "",
        trace: Trace | None = None,
        explain: bool = False,
    ) -> Predictions:
        """Classify one of: a picture, raw pixels (784 bytes per image), an uint8 array.

        Arrays are [28,28], [784], [N,28,28] or [N,784]. Pixels and arrays hold bright ink (255) on
        a dark background (0); pictures may have either. `served` is the model, if it is known;
        otherwise `model` and `version` name it. `deadline` is in the event loop's time, `caller` is
        who asks (core.callers), `trace` that of a traced request. With `explain`, the answer has
        the steps of a picture and the times.
        Raises InvalidArgument for malformed input and for a model that does not classify 28x28
        images, RequestTooLarge for a picture over the limit, ModelNotFound, and what
        `Limits.images` and `Batcher.submit` raise.
        """
        began = monotonic() if explain else 0.0
        found: Found | None = None
        steps: list[tuple[str, bytes]] = []
        if picture is not None:
            image = (
                open_picture(picture, *self._max_pixels)
                if isinstance(picture, bytes)
                and len(picture) <= _INLINE_PICTURE_BYTES
                # deflated, up to 1 MB: pictures/parts.py
                and not (explain or b"TXt" in picture or b"iCCP" in picture)
                else None
            )
            if image is not None and image.width * image.height <= _INLINE_PICTURE_PIXELS:
                found = find_digit(image)
            else:
                decoded = await self.decoded(picture, _explained if explain else _found)
                found, steps = decoded
            images = found.pixels
        elif pixels is not None:
            images = pixels_from_bytes(pixels)
        elif values is not None:
            images = pixels_from_values(values)
        else:
            raise InvalidArgument("input: give either pixels or image.")
        served = served or self.repository.get(model or self.default_model, version)
        layout = served.layout or _no_layout(served)
        if self._limits is not None:
            self._limits.images(caller, len(images))
        batcher, counts = served.batcher, served.batcher.statistics.judgements
        submitted = monotonic() if explain else 0.0
        if len(images) > FEW_ROWS:
            rows = await self._many(images, served, layout, deadline, caller, trace)
            seconds = (submitted - began, monotonic() - submitted) if explain else None
            return Predictions(served.name, served.version, rows, steps, seconds)
        inputs = [images] if layout.image_shape is None else layout.inputs(images)
        own = await batcher.submit(inputs, len(images), deadline, caller, trace, layout.shared)
        seconds = (submitted - began, monotonic() - submitted) if explain else None
        few: Sequence[Prediction]
        if isinstance(own, Share):
            few, judgements = own.of.share(own.start, own.stop)
        else:
            few = layout.predictions(own)
            judgements = [row[4:6] for row in few]
        if found is not None and (found.reason or found.hint):
            few = [_judged(few[0], found)]
            judgements = [few[0][4:6]]
        for judgement in judgements:
            counts[judgement] += 1
        return Predictions(served.name, served.version, few, steps, seconds)

    async def _many(
        self,
        images: Pixels,
        served: ServedModel,
        layout: DigitLayout,
        deadline: float | None,
        caller: str,
        trace: Trace | None,
    ) -> Rows:
        """More than FEW_ROWS images, with all that takes long off the event loop."""
        if len(images) <= INLINE_ROWS:
            inputs = layout.inputs(images)
            outputs = await served.batcher.submit(inputs, len(images), deadline, caller, trace)
            rows = Rows(layout, [outputs])
            served.batcher.statistics.judgements.update(rows.judgements())
            return rows
        # FP32 inputs are four times as large as the pixels: only a part of them exists at a time.
        step = len(images) if layout.image_shape is None else INLINE_ROWS
        runs = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            inputs = await off_loop(layout.inputs, part, size=part.nbytes)
            outputs = await served.batcher.submit(
                inputs, len(part), deadline, caller, trace, is_admitted=start > 0
            )
            runs.append(layout.read(outputs))
            del outputs  # what is not read is freed before the next run
        rows = Rows(layout, runs)
        counts = await off_loop(rows.judgements, size=images.nbytes)
        served.batcher.statistics.judgements.update(counts)
        return rows

    async def read(
        self,
        picture: Picture,
        *,
        model: str = "",
        version: str = "",
        deadline: float | None = None,
        caller: str = "",
        trace: Trace | None = None,
    ) -> ReadAnswer:
        """Read all digits on a picture, with one run of the model, or a few where it leaves doubt.

        `deadline`, `caller` and `trace` are those of `classify`. Raises what `classify` does for a
        picture, and RequestTooLarge for one of more than `max_read_digits` digits.
        """
        began, in_model = monotonic(), 0.0
        most = self._max_read_digits
        found = await self.decoded(picture, partial(candidates_on, most=most))
        served = self.repository.get(model or self.default_model, version)
        layout = served.layout or _no_layout(served)

        async def predictions(pixels: Pixels) -> list[Prediction]:
            nonlocal in_model
            inputs = await off_loop(layout.inputs, pixels, size=pixels.nbytes)
            submitted = monotonic()
            outputs = await served.batcher.submit(
                inputs, len(pixels), deadline, caller, trace, is_admitted=bool(seen)
            )
            in_model += monotonic() - submitted
            return await off_loop(layout.predictions, outputs, size=pixels.nbytes)

        if not len(found.pixels):
            seconds = (monotonic() - began, 0.0)
            return ReadAnswer(served.name, served.version, [], [], NO_DIGITS, seconds)
        # Not those of later runs, which look at the same ink again.
        if self._limits is not None:
            self._limits.images(caller, len(found.pixels))
        seen: dict[int, Prediction] = {}
        size = sum(piece.ink.nbytes for line in found.pieces for piece in line)
        while len(found.pixels):
            seen.update(zip(found.numbers, await predictions(found.pixels), strict=True))
            found = await off_loop(further, found, seen, most, size=size)
        reading = await off_loop(choose, found, seen, size=size)
        seconds = (monotonic() - began - in_model, in_model)
        for digit in reading.digits:
            served.batcher.statistics.judgements[digit.prediction[4:6]] += 1
        digits, lines = reading.digits, reading.lines
        return ReadAnswer(served.name, served.version, digits, lines, "", seconds)

    async def decoded(self, picture: Picture, work: Callable[[Image.Image], T]) -> T:
        """Open a picture and do `work`, which decodes it, in one of the threads for that.

        Raises InvalidArgument for a file that is not a picture, RequestTooLarge for one over the
        limit.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, partial(self._decode, picture, work))

    def _decode(self, picture: Picture, work: Callable[[Image.Image], T]) -> T:
        try:
            file = picture if isinstance(picture, bytes) else picture()
            check_parts(file)
            image = open_picture(file, *self._max_pixels)
            with self._room.of(memory_of(image)):
                try:
                    return work(image)
                finally:
                    del image  # before the room is given back
        except ServiceError as error:
            # Its traceback would keep the decoded picture until the next garbage collection.
            raise error.with_traceback(None) from None


def _no_layout(served: ServedModel) -> NoReturn:
    """Raise InvalidArgument: the model does not classify 28x28 images."""
    raise InvalidArgument(f"Model '{served.name}' {served.layout_problem}")


def _judged(row: Prediction, found: Found) -> Prediction:
    """The prediction, as the pipeline judges it: that sees more of the picture than the model."""
    if found.reason:
        return row._replace(accepted=False, reason=found.reason, hint=found.hint)
    return row._replace(hint=found.hint) if row.accepted is False else row


def _found(image: Image.Image) -> tuple[Found, list[tuple[str, bytes]]]:
    return find_digit(image), []


def _explained(image: Image.Image) -> tuple[Found, list[tuple[str, bytes]]]:
    """The digit, and each step to it as a PNG; the last one is the pixels."""
    found = find_digit(image, explain=True)
    steps = []
    for name, step in found.steps or [("pixels", Image.fromarray(found.pixels[0]))]:
        file = io.BytesIO()
        step.save(file, "PNG")
        steps.append((name, file.getvalue()))
    return found._replace(steps=()), steps
