"""Numbers on pictures, over HTTP and gRPC, by the shipped model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import Mnist, Server


@pytest.fixture(scope="module")
def stub(grpc_server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(grpc_server.grpc) as channel:
        yield digits_pb2_grpc.DigitClassifierStub(channel)


@pytest.fixture(scope="module")
def two_lines(mnist: Mnist) -> bytes:
    """The first seven test images, 7210 414, on two lines of dark ink on a bright page."""
    page = np.zeros((300, 520), np.uint8)
    for index, image in enumerate(mnist.images[:7]):
        top, left = (30, 30 + 120 * index) if index < 4 else (170, 30 + 120 * (index - 4))
        large = Image.fromarray(image).resize((100, 100), Image.Resampling.BICUBIC)
        page[top : top + 100, left : left + 100] = np.asarray(large)
    file = io.BytesIO()
    Image.fromarray(235 - (page * np.float32(0.8)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_two_lines_are_read_over_http(server: Server, two_lines: bytes) -> None:
    status, answer = server.post("/read", two_lines, "image/png")
    assert (status, answer["text"], answer["lines"]) == (200, "7210\n414", ["7210", "414"])
    for index, digit in enumerate(answer["digits"]):
        left, top, right, bottom = digit["box"]
        column, row = (index, 0) if index < 4 else (index - 4, 1)
        assert 30 + 120 * column <= left < right <= 130 + 120 * column
        assert 30 + 140 * row <= top < bottom <= 130 + 140 * row


def test_two_lines_are_read_over_grpc(stub: Any, two_lines: bytes) -> None:
    answer = stub.Read(digits_pb2.ReadRequest(image=two_lines))
    assert (answer.text, list(answer.lines)) == ("7210\n414", ["7210", "414"])
    assert [row.prediction.digit for row in answer.digits] == [7, 2, 1, 0, 4, 1, 4]


def test_boxes_are_those_of_the_picture_as_people_see_it(server: Server, two_lines: bytes) -> None:
    upright = Image.open(io.BytesIO(two_lines))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right by 90 degrees
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=95, exif=exif)
    _, expected = server.post("/read", two_lines, "image/png")
    _, answer = server.post("/read", file.getvalue(), "image/jpeg")
    assert answer["text"] == expected["text"]
    boxes = [np.array([row["box"] for row in each["digits"]]) for each in (answer, expected)]
    assert np.abs(boxes[0] - boxes[1]).max() <= 3


@pytest.mark.parametrize("cut", [0, 1, 60, 400])
def test_a_damaged_picture_is_an_error_over_both_transports(
    server: Server, stub: Any, two_lines: bytes, cut: int
) -> None:
    status, answer = server.post("/read", two_lines[:cut], "image/png")
    assert status == 400
    assert answer["error"].startswith("image:")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Read(digits_pb2.ReadRequest(image=two_lines[:cut]))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == answer["error"]


def test_noise_is_answered_within_the_limits(server: Server) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    status, answer = server.post("/read", file.getvalue(), "image/png")
    assert status == 200 or (status == 413 and "max_read_digits" in answer["error"])
