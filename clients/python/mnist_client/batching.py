"""Grouping a sequence of images into requests: pure."""

from __future__ import annotations

from typing import Literal, TypeAlias

from mnist_client.errors import InvalidImage
from mnist_client.images import Image, Payload, payload_of

# What happens to an image that cannot be predicted: the error is raised, or takes its place.
Errors: TypeAlias = Literal["raise", "return"]
# Payloads of one request, or the error in place of an image that cannot be sent.
Group: TypeAlias = tuple[Payload, ...] | InvalidImage


class Grouper:
    """Joins the pixels of up to `size` neighbouring images; a picture has a request of its own."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"batch_size: is {size}; it must be at least 1.")
        self._size = size
        self._pixels: list[Payload] = []

    def add(self, payload: Payload | InvalidImage) -> list[Group]:
        """The groups that are complete with this payload, in order."""
        if isinstance(payload, InvalidImage):
            return [*self.rest(), payload]
        if not payload.is_pixels:
            return [*self.rest(), (payload,)]
        self._pixels.append(payload)
        return self.rest() if len(self._pixels) == self._size else []

    def rest(self) -> list[Group]:
        """The last group, once there are no more images."""
        group, self._pixels = tuple(self._pixels), []
        return [group] if group else []


def payload_or_error(image: Image, *, as_picture: bool = False) -> Payload | InvalidImage:
    """What to send of an image, or why it cannot be sent."""
    try:
        return payload_of(image, as_picture=as_picture)
    except InvalidImage as error:
        return error


def check_concurrency(concurrency: int) -> None:
    """Raise ValueError if it is not at least 1."""
    if concurrency < 1:
        raise ValueError(f"concurrency: is {concurrency}; it must be at least 1.")
