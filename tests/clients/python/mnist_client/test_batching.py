"""Grouping images into requests."""

from __future__ import annotations

import pytest
from mnist_client.batching import Grouper, check_concurrency, payload_or_error
from mnist_client.errors import InvalidImage
from mnist_client.images import PIXELS, Payload

PICTURE = Payload(b"picture", "image/png")


def pixels(index: int) -> Payload:
    return Payload(bytes([index]), PIXELS)


def test_neighbouring_pixels_share_a_request_and_the_order_is_kept() -> None:
    grouper = Grouper(2)
    error = InvalidImage("no image")
    payloads = [pixels(0), pixels(1), pixels(2), PICTURE, pixels(3), error, pixels(4)]
    groups = [group for payload in payloads for group in grouper.add(payload)]
    assert [*groups, *grouper.rest()] == [
        (pixels(0), pixels(1)),
        (pixels(2),),
        (PICTURE,),
        (pixels(3),),
        error,
        (pixels(4),),
    ]
    assert grouper.rest() == []


def test_an_image_that_cannot_be_sent_has_its_error_in_its_place() -> None:
    assert isinstance(payload_or_error(b"seven"), InvalidImage)
    assert payload_or_error(bytes(784)) == Payload(bytes(784), PIXELS)


def test_sizes_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="batch_size: is 0"):
        Grouper(0)
    with pytest.raises(ValueError, match="concurrency: is 0"):
        check_concurrency(0)
