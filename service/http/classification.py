"""POST /predict for models of anything but digits, as their cards describe them."""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from typing import Any

from service.core.errors import InvalidArgument, UnsupportedMediaType, excerpt
from service.core.off_loop import off_loop
from service.http.message import (
    JSON,
    OCTETS,
    HttpRequest,
    HttpResponse,
    json_response,
    media_type,
    parse_value,
    server_timing,
)
from service.http.pictures import FORM, PICTURES, picture_of_form, picture_of_url
from service.operations.classification import Classifications, classify, usable
from service.operations.digits import Digits, Picture
from service.repository.models import ServedModel

DEFAULT_TOP = 10
_MOST_TOP = 1000
_INLINE_ANSWERS = 1024  # probabilities and predictions, which are encoded within a millisecond


async def predict(
    digits: Digits,
    served: ServedModel,
    request: HttpRequest,
    top: int,
    explain: bool,
    deadline: float | None = None,
) -> HttpResponse:
    """Classify the body with a model that has a card for it; `top` bounds the probabilities.

    The body is a picture or raw pixels in the forms of `http.digits.predict`, or JSON: for a model
    of pictures its pixels, otherwise the model's inputs as fields. Raises InvalidArgument for a
    model whose card lacks something, and what `operations.classification.classify` raises.
    """
    classifier = served.classifier
    if classifier is None:
        raise InvalidArgument(
            f"Model '{served.name}' {served.layout_problem} {usable(digits.repository)}"
        )
    body, header = request.body, request.header("content-type") or ""
    content_type = media_type(request)
    picture: Picture | None = None
    pixels: bytes | None = None
    values: Any = None
    if content_type in PICTURES:
        picture = body
    elif content_type == FORM:
        picture = partial(picture_of_form, body, header)
    elif content_type == OCTETS:
        pixels = body
    elif content_type == JSON:
        values = await parse_value(body, digits.max_json_bytes)
        if classifier.picture is not None:
            if isinstance(values, dict):
                values = values.get("image")
            if isinstance(values, str):
                picture = partial(picture_of_url, values)
    else:
        raise UnsupportedMediaType(
            f"Content-Type is '{excerpt(content_type)}'; send {JSON}, {OCTETS}, {FORM}, "
            f"{' or '.join(PICTURES)}."
        )
    answer = await classify(
        digits,
        served,
        classifier,
        picture=picture,
        pixels=pixels,
        values=values,
        top=top,
        deadline=deadline,
        caller=request.caller,
        trace=request.trace,
        explain=explain,
    )
    size = len(answer.rows) * len(answer.rows[0].probabilities)
    if size > _INLINE_ANSWERS:
        return await off_loop(_response, served, answer, explain, size=32 * size)
    return _response(served, answer, explain)


def top_of(text: str) -> int:
    """How many probabilities `?top=` asks for. Raises InvalidArgument."""
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 0 < int(text) <= _MOST_TOP):
        raise InvalidArgument(f"top: is '{excerpt(text)}'; it is a number from 1 to {_MOST_TOP}.")
    return int(text)


def _response(served: ServedModel, answer: Classifications, explain: bool) -> HttpResponse:
    body: dict[str, Any] = {
        "model_name": served.name,
        "model_version": served.version,
        "predictions": [
            {
                "label": row.label,
                "class": row.class_index,
                "probabilities": row.probabilities,
                "entropy_bits": row.entropy_bits,
            }
            for row in answer.rows
        ],
    }
    if explain:
        png = "data:image/png;base64," + b64encode(answer.seen).decode()
        body["steps"] = [{"name": "pixels", "png": png}] if answer.seen else []
    response = json_response(body)
    if explain:
        response.headers.append(server_timing(answer.seconds))
    return response
