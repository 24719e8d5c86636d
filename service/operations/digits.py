"""Classifying digits, for every transport: a picture, raw pixels or numbers in, predictions out."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from service.core.datatypes import Array
from service.core.digits import Prediction, pixels_from_bytes, pixels_from_values
from service.core.errors import InvalidArgument
from service.core.images import open_image, to_pixels
from service.repository.models import Repository

# Up to this size decoding a picture is cheaper than a thread hand-off.
_INLINE_PICTURE_PIXELS = 128 * 128


class Predictions(NamedTuple):
    """The answer of one version of a model: one prediction per image."""

    model: str
    version: str
    rows: list[Prediction]


class Digits:
    """Classifies 28x28 images with the models of one repository. Lives on one event loop."""

    def __init__(
        self, repository: Repository, default_model: str, max_image_pixels: int = 16_000_000
    ) -> None:
        self._repository = repository
        self._default_model = default_model
        self._max_image_pixels = max_image_pixels

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
            image = open_image(picture, self._max_image_pixels)
            if image.width * image.height <= _INLINE_PICTURE_PIXELS:
                images = to_pixels(image)
            else:
                loop = asyncio.get_running_loop()
                images = await loop.run_in_executor(None, to_pixels, image)
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
        inputs = layout.inputs(images)
        outputs = await served.batcher.submit(inputs, len(images), deadline, caller)
        return Predictions(served.name, served.version, layout.predictions(outputs))
