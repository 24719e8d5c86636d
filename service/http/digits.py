"""POST /predict: an image in any common form in, the distribution over digits out."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from service.core.errors import InvalidArgument, UnsupportedMediaType, excerpt
from service.core.tensors import numbers
from service.http.message import (
    JSON,
    OCTETS,
    HttpRequest,
    HttpResponse,
    json_response,
    parse_json,
)
from service.operations.digits import Digits

_PICTURES = ("image/png", "image/jpeg")
_UINT8 = np.dtype(np.uint8)


async def predict(digits: Digits, request: HttpRequest) -> HttpResponse:
    """Classify the body; `?model=` and `?version=` choose the model.

    The body is one PNG or JPEG, raw pixels of 784 bytes per image as application/octet-stream, or
    JSON numbers (28x28, Nx28x28 or 784, bare or under "image"). Raises UnsupportedMediaType for
    another content type, InvalidArgument for a body that does not match its content type.
    """
    query = dict(parse_qsl(request.query)) if request.query else {}
    model, version = query.get("model", ""), query.get("version", "")
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
        values = numbers("image:", _image_of(parse_json(request.body)), _UINT8)
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
    return json_response(
        {
            "model_name": answer.model,
            "model_version": answer.version,
            "predictions": predictions,
        }
    )


def _image_of(parsed: Any) -> Any:
    if isinstance(parsed, dict):
        if "image" not in parsed:
            raise InvalidArgument('image: the JSON object has no "image".')
        parsed = parsed["image"]
    if not isinstance(parsed, list):
        raise InvalidArgument("image: must be a list of numbers, 28x28, Nx28x28 or 784.")
    return parsed
