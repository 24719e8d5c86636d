"""POST /read: a picture of numbers in, their digits and the text out."""

from __future__ import annotations

from functools import partial
from typing import Any

from service.core.errors import InvalidArgument
from service.core.off_loop import off_loop
from service.http.digits import fields_of, form_or_json, query_of, within
from service.http.message import (
    JSON,
    HttpRequest,
    HttpResponse,
    json_response,
    media_type,
    server_timing,
)
from service.http.pictures import FORM, PICTURES
from service.operations.digits import INLINE_ROWS, Digits, Picture, ReadAnswer


async def read(digits: Digits, request: HttpRequest, deadline: float | None = None) -> HttpResponse:
    """Read the digits on a picture; `?model=` and `?version=` choose the model.

    `?timeout=` and `deadline` are those of `predict`.
    The body is a picture in any form that `predict` takes: as it is, in the field `image` of a
    form, or as a data URL in JSON. Raises UnsupportedMediaType for another content type,
    InvalidArgument for a body that does not match its content type. The header Server-Timing is
    that of `predict`.
    """
    query = query_of(request)
    if deadline is None and "timeout" in query:
        return await within(query["timeout"], partial(read, digits, request), request.arrived)
    model, version = query.get("model", ""), query.get("version", "")
    content_type = media_type(request)
    picture: Picture | None = request.body
    if content_type not in PICTURES:
        _, picture = await form_or_json(request, digits.max_json_bytes, (JSON, FORM))
    if picture is None:
        raise InvalidArgument("image: must be a picture as a data URL; numbers are for /predict.")
    answer = await digits.read(
        picture,
        model=model,
        version=version,
        deadline=deadline,
        caller=request.caller,
        trace=request.trace,
    )
    if len(answer.digits) > INLINE_ROWS:
        return await off_loop(_response, answer, size=784 * len(answer.digits))
    return _response(answer)


def _response(answer: ReadAnswer) -> HttpResponse:
    rows = fields_of([digit.prediction for digit in answer.digits])
    body: dict[str, Any] = {
        "model_name": answer.model,
        "model_version": answer.version,
        "text": answer.text,
        "digits": [
            {"box": list(digit.box), "line": digit.line, **row}
            for digit, row in zip(answer.digits, rows, strict=True)
        ],
        "lines": answer.lines,
    }
    if answer.hint:
        body["hint"] = answer.hint
    response = json_response(body)
    response.headers.append(server_timing(answer.seconds))
    return response
