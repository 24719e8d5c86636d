from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image, ImageDraw

from service.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    UnsupportedMediaType,
)
from service.core.off_loop import INLINE_BYTES
from service.http.message import JSON, OCTETS, HttpRequest
from service.http.reading import read
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations

CARD = {"output_kinds": {"scores": "logits"}}


def png(side: int = 300) -> bytes:
    """Three bars on two lines."""
    picture = Image.new("L", (side, side), 240)
    for left, top in ((50, 40), (120, 42), (60, 160)):
        ImageDraw.Draw(picture).rectangle((left, top, left + 8, top + 60), fill=20)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


PNG = png()
URL = "data:image/png;base64," + b64encode(PNG).decode()
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + PNG
    + b"\r\n--x--\r\n"
)


def request_of(body: bytes, content_type: str | None, query: str = "") -> HttpRequest:
    headers = {} if content_type is None else {"content-type": content_type}
    return HttpRequest("POST", "/read", headers.get, body, query)


async def answer_to(operations: Operations, *request: Any) -> Any:
    response = await read(operations.digits, request_of(*request))
    assert response.status == 200
    assert dict(response.headers)["server-timing"].startswith("picture;dur=")
    return orjson.loads(response.body)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (PNG, "image/png"),
        (FORM, "multipart/form-data; boundary=x"),
        (orjson.dumps({"image": URL}), JSON),
        (orjson.dumps(URL), JSON),
        (orjson.dumps({"image": URL}) + b" " * INLINE_BYTES, JSON),
    ],
)
def test_a_picture_in_every_form_is_read(tmp_path: Path, body: bytes, content_type: str) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        answer = await answer_to(operations, body, content_type, "model=linear&version=1")
        keys = ["model_name", "model_version", "text", "digits", "lines"]
        assert list(answer) == keys
        assert (answer["model_name"], answer["model_version"]) == ("linear", "1")
        assert [digit["box"] for digit in answer["digits"]] == [
            [50, 40, 59, 101],
            [120, 42, 129, 103],
            [60, 160, 69, 221],
        ]
        assert [digit["line"] for digit in answer["digits"]] == [0, 0, 1]
        digits = "".join(str(digit["digit"]) for digit in answer["digits"])
        assert answer["lines"] == [digits[:2], digits[2:]]
        assert answer["text"] == "\n".join(answer["lines"])
        for digit in answer["digits"]:
            assert digit["accepted"] is None
            assert len(digit["probabilities"]) == 10
            assert "reason" not in digit

    run_with_operations(tmp_path, scenario)


def test_a_blank_page_is_answered_with_a_hint(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    file = io.BytesIO()
    Image.new("RGB", (200, 100), "white").save(file, "PNG")

    async def scenario(operations: Operations) -> None:
        answer = await answer_to(operations, file.getvalue(), "image/png")
        assert (answer["text"], answer["digits"], answer["lines"]) == ("", [], [])
        assert "pen" in answer["hint"]

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "content_type", "query", "error", "message"),
    [
        (PNG, None, "", UnsupportedMediaType, "Content-Type is ''"),
        (bytes(784), OCTETS, "", UnsupportedMediaType, "image/png"),
        (b"", "image/png", "", InvalidArgument, "empty"),
        (b"x", "image/png", "", InvalidArgument, "image"),
        (PNG[:200], "image/png", "", InvalidArgument, "damaged"),
        (b"[[1, 2], [3, 4]]", JSON, "", InvalidArgument, "data URL.*/predict"),
        (b'{"image": "seven"}', JSON, "", InvalidArgument, "data URL"),
        (b"{", JSON, "", InvalidArgument, "not valid JSON"),
        (FORM[:-20], "multipart/form-data; boundary=x", "", InvalidArgument, "form"),
        (PNG, "image/png", "model=none", ModelNotFound, "none"),
    ],
)
def test_a_wrong_request_is_rejected(
    tmp_path: Path,
    body: bytes,
    content_type: str | None,
    query: str,
    error: type[Exception],
    message: str,
) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(error, match=message):
            await answer_to(operations, body, content_type, query)

    run_with_operations(tmp_path, scenario)


def test_a_query_that_takes_long_to_parse_is_refused(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="8192 characters"):
            await read(operations.digits, request_of(PNG, "image/png", "a=b&" * 16_000))

    run_with_operations(tmp_path, scenario)


def test_timeout(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        await answer_to(operations, PNG, "image/png", "timeout=1000")
        for query, error in (("timeout=1e-9", DeadlineExceeded), ("timeout=soon", InvalidArgument)):
            with pytest.raises(error, match=r"[tT]imeout"):
                await read(operations.digits, request_of(PNG, "image/png", query))

    run_with_operations(tmp_path, scenario)
