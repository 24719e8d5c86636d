"""POST /read: a picture of numbers in, their digits and the text out."""

from __future__ import annotations

from functools import partial
from typing import Any

from service.core.errors import InvalidArgument, UnsupportedMediaType, excerpt
from service.core.off_loop import INLINE_BYTES, off_loop
from service.http.digits import fields_of, input_of_json, model_of
from service.http.message import JSON, HttpRequest, HttpResponse, check_json_size, json_response
from service.http.pictures import FORM, PICTURES, picture_of_form
from service.operations.digits import INLINE_ROWS, Digits, Picture, ReadAnswer


async def read(digits: Digits, request: HttpRequest) -> HttpResponse:
    """Read the digits on a picture; `?model=` and `?version=` choose the model.

    The body is a picture in any form that `predict` takes: as it is, in the field `image` of a
    form, or as a data URL in JSON. Raises UnsupportedMediaType for another content type,
    InvalidArgument for a body that does not match its content type.
    """
    model, version = model_of(request)
    header = request.header("content-type") or ""
    content_type = header.partition(";")[0].strip().lower()
    picture: Picture | None
    if content_type in PICTURES:
        picture = request.body
    elif content_type == FORM:
        picture = partial(picture_of_form, request.body, header)
    elif content_type == JSON:
        size, limit = len(request.body), digits.max_json_bytes
        check_json_size(size, limit)
        if size > INLINE_BYTES:
            _, picture = await off_loop(input_of_json, request.body, limit, size=size)
        else:
            _, picture = input_of_json(request.body, limit)
        if picture is None:
            raise InvalidArgument(
                "image: must be a picture as a data URL; numbers are for /predict."
            )
    else:
        raise UnsupportedMediaType(
            f"Content-Type is '{excerpt(content_type)}'; send {JSON}, {FORM}, "
            f"{' or '.join(PICTURES)}."
        )
    answer = await digits.read(picture, model=model, version=version, caller=request.caller)
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
    return json_response(body)
