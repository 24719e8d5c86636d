from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.core.errors import (
    InvalidArgument,
    ModelNotFound,
    RequestTooLarge,
    ServiceError,
    UnsupportedMediaType,
)
from service.http.digits import predict
from service.http.message import JSON, OCTETS, HttpRequest
from tests.service.classifiers import COLOURS, publish_colours, publish_lengths, publish_mixing
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations

KINDS = {"output_kinds": {"y": "logits"}}
PIXELS = np.full((4, 4, 3), (0, 0, 255), np.uint8)
_FILE = io.BytesIO()
Image.fromarray(PIXELS).save(_FILE, "PNG")
PNG = _FILE.getvalue()
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\n" + PNG + b"\r\n--b--\r\n"
)


async def answer_to(operations: Operations, body: Any, content_type: str, query: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": content_type}
    request = HttpRequest("POST", "/predict", headers.get, content, query)
    return json.loads((await predict(operations.digits, request)).body)


def test_every_form_of_a_picture(tmp_path: Path) -> None:
    publish_colours(tmp_path, **KINDS, labels=COLOURS, picture={})

    async def scenario(operations: Operations) -> None:
        for body, content_type in (
            (PNG, "image/png"),
            (FORM, "multipart/form-data; boundary=b"),
            (PIXELS.tobytes(), OCTETS),
            ({"image": URL}, JSON),
            ({"image": PIXELS.tolist()}, JSON),
            (PIXELS.ravel().tolist(), JSON),
        ):
            answer = await answer_to(operations, body, content_type, "model=colours&version=1")
            assert (answer["model_name"], answer["model_version"]) == ("colours", "1")
            (row,) = answer["predictions"]
            assert list(row) == ["label", "class", "probabilities", "entropy_bits"]
            assert (row["label"], row["class"]) == ("blue", 2)
            assert list(row["probabilities"]) == ["blue", "red", "green"]
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
            assert row["entropy_bits"] == pytest.approx(0.9602, abs=1e-4)

    run_with_operations(tmp_path, scenario)


def test_fields_many_rows_and_top(tmp_path: Path) -> None:
    publish_lengths(tmp_path, **KINDS, labels=["long", "wide"])

    async def scenario(operations: Operations) -> None:
        query = "model=lengths&top=1"
        answer = await answer_to(operations, {"a": 1, "b": 0}, JSON, query)
        assert list(answer["predictions"][0]["probabilities"]) == ["long"]
        rows = [{"a": 1, "b": 0}, {"a": 0, "b": 1}] * 2000
        answer = await answer_to(operations, rows, JSON, query)
        labels = [row["label"] for row in answer["predictions"]]
        assert labels == ["long", "wide"] * 2000

    run_with_operations(tmp_path, scenario)


def test_what_the_model_sees_is_shown_on_request(tmp_path: Path) -> None:
    publish_colours(tmp_path, **KINDS, picture={})

    async def scenario(operations: Operations) -> None:
        query = "model=colours&explain=true"
        (step,) = (await answer_to(operations, PNG, "image/png", query))["steps"]
        assert step["png"].startswith("data:image/png;base64,")
        assert (await answer_to(operations, PIXELS.tobytes(), OCTETS, query))["steps"] == []

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("query", "body", "content_type", "error", "message"),
    [
        ("model=mixing", [1, 2], JSON, InvalidArgument, "lacks output_kinds.*of: y. /predict can"),
        ("model=other", b"[", JSON, ModelNotFound, "/predict can use: colours, lengths"),
        ("model=other", PNG, "image/png", ModelNotFound, "/predict can use: colours, lengths"),
        ("", PNG, "image/png", ModelNotFound, "/predict can use: colours, lengths, linear.$"),
        ("model=colours", b"a", "text/plain", UnsupportedMediaType, "Content-Type is 'text/plain'"),
        ("model=colours&top=0", PNG, "image/png", InvalidArgument, "top: is '0'"),
        ("model=colours&top=1001", PNG, "image/png", InvalidArgument, "from 1 to 1000"),
        ("model=colours&top=%C2%B2", PNG, "image/png", InvalidArgument, "top"),
        ("model=colours&version=7", PNG, "image/png", ModelNotFound, "version 7"),
        ("model=colours", {"picture": URL}, JSON, InvalidArgument, "image: send a list of pixels"),
        ("model=colours", {"image": "a.png"}, JSON, InvalidArgument, "must be a data URL"),
        ("model=colours", PNG[:45], "image/png", InvalidArgument, "damaged"),
        ("model=colours", b"[", JSON, InvalidArgument, "not valid JSON"),
        ("model=colours", b"1" * (2 << 20) + b"1", JSON, RequestTooLarge, "max_json_bytes"),
        ("model=lengths", {"a": 1}, JSON, InvalidArgument, "the field b is missing"),
        ("model=lengths", b"[" * 1000 + b"]" * 1000, JSON, InvalidArgument, "send a JSON object"),
        (
            "model=lengths",
            b'{"a":' * 900 + b"1" + b"}" * 900,
            JSON,
            InvalidArgument,
            "b is missing",
        ),
        ("model=colours", b"[" * 1000 + b"]" * 1000, JSON, InvalidArgument, "empty|nested"),
        ("model=lengths", PNG, "image/png", InvalidArgument, "lacks picture"),
    ],
)
def test_errors_name_what_is_wrong(
    tmp_path: Path,
    query: str,
    body: Any,
    content_type: str,
    error: type[ServiceError],
    message: str,
) -> None:
    publish_colours(tmp_path, **KINDS, labels=COLOURS, picture={})
    publish_lengths(tmp_path, **KINDS)
    publish_mixing(tmp_path)
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})

    async def scenario(operations: Operations) -> None:
        operations.digits.default_model = "mnist"
        with pytest.raises(error, match=message):
            await answer_to(operations, body, content_type, query)

    run_with_operations(tmp_path, scenario)
