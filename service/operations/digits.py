"""Classifying digits, for every transport: a picture, raw pixels or numbers in, predictions out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from service.core.datatypes import Array
from service.core.digits import Pixels, Prediction, pixels_from_bytes, pixels_from_values
from service.core.errors import InvalidArgument, ServiceError
from service.core.off_loop import MAX_JSON_BYTES, off_loop
from service.core.pictures.digit import find_digit
from service.core.pictures.files import open_picture
from service.core.pictures.parts import check_parts
from service.repository.models import Repository

# Up to these sizes decoding a picture is cheaper than a thread hand-off. Reading its header takes
# time for its bytes: 4 KB of empty chunks take 0.8 ms.
_INLINE_PICTURE_PIXELS = 128 * 128
_INLINE_PICTURE_BYTES = 4096
# Up to this many images, their pixels and predictions take less than a millisecond.
INLINE_ROWS = 512


class Predictions(NamedTuple):
    """The answer of one version of a model: one prediction per image."""

    model: str
    version: str
    rows: list[Prediction]


class Digits:
    """Classifies 28x28 images with the models of one repository. Lives on one event loop.

    Up to `max_decodings` large pictures are decoded at a time, each in a thread; others wait.
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
    ) -> None:
        self.max_json_bytes = max_json_bytes
        self._repository = repository
        self._default_model = default_model
        self._max_pixels = max_image_pixels, max_decoded_pixels
        self._decoders = ThreadPoolExecutor(max_decodings, "decode")

    async def classify(
        self,
        *,
        picture: bytes | None = None,
        pixels: bytes | None = None,
        values: Array | None = None,
        model: str = "",
        version: str = "",
        deadline: float | None = None,
        caller: str = "",
    ) -> Predictions:
        """Classify one of: a PNG or JPEG file, raw pixels (784 bytes per image), an uint8 array.

        Arrays are [28,28], [784], [N,28,28] or [N,784]. Pixels and arrays hold bright ink (255) on
        a dark background (0); pictures may have either. `deadline` is in the event loop's time,
        `caller` is who asks (core.callers).
        Raises InvalidArgument for malformed input and for a model that does not classify 28x28
        images, RequestTooLarge for a picture over the limit, ModelNotFound, and what
        `Batcher.submit` raises.
        """
        if picture is not None:
            images = None
            if len(picture) <= _INLINE_PICTURE_BYTES and not (
                b"TXt" in picture or b"iCCP" in picture  # deflated, up to 1 MB: pictures/parts.py
            ):
                image = open_picture(picture, *self._max_pixels)
                if image.width * image.height <= _INLINE_PICTURE_PIXELS:
                    images = find_digit(image).pixels
            if images is None:
                loop = asyncio.get_running_loop()
                images = await loop.run_in_executor(self._decoders, self._decode, picture)
        elif pixels is not None:
            images = pixels_from_bytes(pixels)
        elif values is not None:
            images = pixels_from_values(values)
        else:
            raise InvalidArgument("input: give either pixels or image.")
        served = self._repository.get(model or self._default_model, version)
        layout = served.layout
        if layout is None:
            raise InvalidArgument(f"Model '{served.name}' {served.layout_problem}")
        if len(images) <= INLINE_ROWS:
            outputs = await served.batcher.submit(
                layout.inputs(images), len(images), deadline, caller
            )
            return Predictions(served.name, served.version, layout.predictions(outputs))
        # FP32 inputs are four times as large as the pixels: only a part of them exists at a time.
        step = len(images) if layout.image_shape is None else INLINE_ROWS
        rows: list[Prediction] = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            inputs = await off_loop(layout.inputs, part, size=part.nbytes)
            outputs = await served.batcher.submit(inputs, len(part), deadline, caller)
            rows += await off_loop(layout.predictions, outputs, size=part.nbytes)
        return Predictions(served.name, served.version, rows)

    def _decode(self, picture: bytes) -> Pixels:
        try:
            check_parts(picture)
            return find_digit(open_picture(picture, *self._max_pixels)).pixels
        except ServiceError as error:
            # Its traceback would keep the decoded picture until the next garbage collection.
            raise error.with_traceback(None) from None
