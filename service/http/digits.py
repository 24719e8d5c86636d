"""POST /predict: an image in whatever form a person has it, the distribution over digits out."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from service.core.errors import InvalidArgument, UnsupportedMediaType
from service.core.tensors import numbers
from service.http.message import (
    JSON,
    OCTETS,
    HttpRequest,
    HttpResponse,
    json_response,
    parse_json,
)
from service.operations.digits import Classification, pixels_from_values, predictions
from service.operations.inference import Operations

_IMAGES = ("image/png", "image/jpeg")
_UINT8 = np.dtype(np.uint8)


async def predict(operations: Operations, request: HttpRequest) -> HttpResponse:
    """Classify the body; `?model=` and `?version=` choose what answers.

    The body is JSON numbers (28x28, Nx28x28 or 784, bare or under "image"), raw pixels of 784
    bytes an image as application/octet-stream, or one PNG or JPEG. Raises UnsupportedMediaType
    for another content type, InvalidArgument for a body that does not fit its own.
    """
    query = dict(parse_qsl(request.query)) if request.query else {}
    model, version = query.get("model", ""), query.get("version", "")
    content_type = media_type(request)
    if content_type == OCTETS:
        answer = await operations.classify_pixels(request.body, model, version)
    elif content_type in _IMAGES:
        answer = await operations.classify_image(request.body, model, version)
    elif content_type == JSON:
        values = numbers("image:", _image_of(parse_json(request.body)), _UINT8)
        answer = await operations.classify(pixels_from_values(values), model, version)
    else:
        raise UnsupportedMediaType(
            f"Content-Type is '{content_type}'; send {JSON}, {OCTETS}, {' or '.join(_IMAGES)}."
        )
    return json_response(as_json(answer))


def as_json(answer: Classification) -> dict[str, Any]:
    """The answer as the JSON object that /predict gives."""
    return {
        "model_name": answer.model,
        "model_version": answer.version,
        "predictions": [
            {"digit": digit, "probabilities": row, "entropy_bits": entropy}
            for digit, row, entropy in predictions(answer)
        ],
    }


def media_type(request: HttpRequest) -> str:
    """The content type without its parameters, in lower case; empty if there is none."""
    return (request.header("content-type") or "").partition(";")[0].strip().lower()


def _image_of(parsed: Any) -> Any:
    if isinstance(parsed, dict):
        if "image" not in parsed:
            raise InvalidArgument('image: the JSON object has no "image".')
        parsed = parsed["image"]
    if not isinstance(parsed, list):
        raise InvalidArgument("image: must be a list of numbers, 28x28, Nx28x28 or 784.")
    return parsed
