"""POST /predict: an image in any common form in, the distribution over digits out."""

from __future__ import annotations

from urllib.parse import parse_qsl

import numpy as np

from service.core.datatypes import Array
from service.core.errors import InvalidArgument, UnsupportedMediaType, excerpt
from service.core.off_loop import INLINE_BYTES, off_loop
from service.core.tensors import numbers
from service.http.message import (
    JSON,
    OCTETS,
    HttpRequest,
    HttpResponse,
    check_json_size,
    json_response,
    parse_json,
)
from service.operations.digits import INLINE_ROWS, Digits

_PICTURES = ("image/png", "image/jpeg")
# Parsing 64 KB of them, the most that a URL may have, takes 10 ms.
_LONGEST_QUERY = 8192
_OBJECT = b'{"image":'
_UINT8 = np.dtype(np.uint8)


async def predict(digits: Digits, request: HttpRequest) -> HttpResponse:
    """Classify the body; `?model=` and `?version=` choose the model.

    The body is one PNG or JPEG, raw pixels of 784 bytes per image as application/octet-stream, or
    JSON numbers (28x28, Nx28x28 or 784, bare or under "image"). Raises UnsupportedMediaType for
    another content type, InvalidArgument for a body that does not match its content type.
    """
    if len(request.query) > _LONGEST_QUERY:
        raise InvalidArgument(f"The query has more than {_LONGEST_QUERY} characters.")
    model, version = model_of(request) if request.query else ("", "")
    content_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if content_type in _PICTURES:
        answer = await digits.classify(
            picture=request.body, model=model, version=version, caller=request.caller
        )
    elif content_type == OCTETS:
        answer = await digits.classify(
            pixels=request.body, model=model, version=version, caller=request.caller
        )
    elif content_type == JSON:
        size, limit = len(request.body), digits.max_json_bytes
        check_json_size(size, limit)
        if size > INLINE_BYTES:
            values = await off_loop(_pixels, request.body, limit, size=size)
        else:
            values = _pixels(request.body, limit)
        answer = await digits.classify(
            values=values, model=model, version=version, caller=request.caller
        )
    else:
        raise UnsupportedMediaType(
            f"Content-Type is '{excerpt(content_type)}'; send {JSON}, {OCTETS}, "
            f"{' or '.join(_PICTURES)}."
        )
    predictions = [
        {"digit": digit, "probabilities": probabilities, "entropy_bits": entropy}
        for digit, probabilities, entropy in answer.rows
    ]
    body = {
        "model_name": answer.model,
        "model_version": answer.version,
        "predictions": predictions,
    }
    if len(predictions) > INLINE_ROWS:
        return await off_loop(json_response, body, size=784 * len(predictions))
    return json_response(body)


def model_of(request: HttpRequest) -> tuple[str, str]:
    """The model and the version that the query names; empty for the default."""
    query = dict(parse_qsl(request.query[:_LONGEST_QUERY]))
    return query.get("model", ""), query.get("version", "")


def _pixels(body: bytes, max_json_bytes: int) -> Array:
    """The numbers of a JSON body, in the shape of its lists."""
    parsed = parse_json(body, max_json_bytes)
    if isinstance(parsed, dict):
        if "image" not in parsed:
            raise InvalidArgument('image: the JSON object has no "image".')
        parsed = parsed["image"]
    if not isinstance(parsed, list):
        raise InvalidArgument("image: must be a list of numbers, 28x28, Nx28x28 or 784.")
    # true and false contain an "e".
    start = len(_OBJECT) if body.startswith(_OBJECT) else 0
    return numbers("image:", parsed, _UINT8, may_hold_booleans=body.find(b"e", start) >= 0)
