"""POST /predict: an image in any common form in, the distribution over digits out."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from service.core.datatypes import Array
from service.core.digits import Columns, FewRows, Prediction, Rows, words_of
from service.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    UnsupportedMediaType,
    excerpt,
)
from service.core.off_loop import INLINE_BYTES, off_loop
from service.core.tensors import numbers
from service.http import classification
from service.http.message import (
    JSON,
    OCTETS,
    HttpRequest,
    HttpResponse,
    check_json_size,
    media_type,
    parse_json,
    server_timing,
    to_json,
)
from service.http.pictures import FORM, PICTURES, picture_of_form, picture_of_url
from service.operations.classification import usable
from service.operations.digits import INLINE_ROWS, Digits, Picture, Predictions

# Parsing 64 KB of them, the most that a URL may have, takes 10 ms.
_LONGEST_QUERY = 8192
LONGEST_TIMEOUT_S = 86_400
_SECONDS = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# As `query_of` would find it, but ten times as fast.
_TIMEOUT = re.compile(r"(?:^|&)timeout=([0-9.eE+-]+)(?=&|$)")
_OBJECT = b'{"image":'
_OPENING = b',{"digit":'  # of a prediction; no text in one has it
_FLAGS = {"": False, "false": False, "0": False, "true": True, "1": True}
_UINT8 = np.dtype(np.uint8)
_BITS = 1 << np.arange(10)


async def predict(
    digits: Digits, request: HttpRequest, deadline: float | None = None
) -> HttpResponse:
    """Classify the body; `?model=` and `?version=` choose the model, `?explain=true` shows steps.

    `?timeout=` is the seconds within which the answer must be ready, from the arrival of the
    headers; `deadline` is its end.
    The body is one picture, as it is or in the field `image` of a form; raw pixels of 784 bytes per
    image as application/octet-stream; or JSON, bare or under "image": a picture as a data URL, or
    numbers (28x28, Nx28x28 or 784). Models of anything but digits answer as
    `http.classification` says. Raises ModelNotFound, UnsupportedMediaType for another content type,
    InvalidArgument for a body that does not match its content type. With
    `?explain=true`, the header Server-Timing has the milliseconds of the picture and of the model.
    """
    query: dict[str, str] = {}
    explain, top = False, classification.DEFAULT_TOP
    model, version = digits.default_model, ""
    if request.query:
        query = query_of(request)
        if deadline is None and "timeout" in query:
            again = partial(predict, digits, request)
            return await within(query["timeout"], again, request.arrived)
        explain = _flag("explain", query.get("explain", ""))
        top = classification.top_of(query.get("top", str(top)))
        model, version = query.get("model") or model, query.get("version", "")
    try:
        served = digits.repository.get(model, version)
    except ModelNotFound as error:
        if "model" in query:
            raise ModelNotFound(f"{error} {usable(digits.repository)}") from None
        served = None  # without a default model, what is wrong with the body is reported first
    if served is not None and served.layout is None:
        return await classification.predict(digits, served, request, top, explain, deadline)
    content_type = request.header("content-type") or ""  # mostly without parameters
    if content_type != OCTETS and content_type not in PICTURES:
        content_type = media_type(request)
    picture: Picture | None = None
    pixels: bytes | None = None
    values: Array | None = None
    if content_type in PICTURES:
        picture = request.body
    elif content_type == OCTETS:
        pixels = request.body
    else:
        values, picture = await form_or_json(request, digits.max_json_bytes, (JSON, OCTETS, FORM))
    try:
        answer = await digits.classify(
            picture=picture,
            pixels=pixels,
            values=values,
            model=model,
            version=version,
            served=served,
            deadline=deadline,
            caller=request.caller,
            trace=request.trace,
            explain=explain,
        )
    except ModelNotFound as error:
        raise ModelNotFound(f"{error} {usable(digits.repository)}") from None
    rows = answer.rows
    if explain or isinstance(rows, Rows):
        return await _long_response(answer, explain=explain)
    few = _shared_objects(rows) if isinstance(rows, FewRows) else to_json(fields_of(rows))[1:-1]
    begin = _begin_of(answer.model, answer.version)
    return HttpResponse(200, [("content-type", JSON)], begin + few + b"]}")


@lru_cache(64)
def _begin_of(model: str, version: str) -> bytes:
    """The begin of an answer's JSON, up to its predictions."""
    return to_json({"model_name": model, "model_version": version})[:-1] + b',"predictions":['


def _shared_objects(rows: FewRows) -> bytes:
    """The JSON of predictions without brackets. The run has it once, and each request its part."""
    shared = rows.shared
    if shared.json is None:
        assert shared.columns is not None
        shared.json = objects_of(shared.columns)[len(_OPENING) - 1 :].split(_OPENING)
    return _OPENING[1:] + _OPENING.join(shared.json[rows.start : rows.stop])


async def _long_response(answer: Predictions, *, explain: bool) -> HttpResponse:
    """The answer for many images, or with steps."""
    rows = answer.rows
    begin = _begin_of(answer.model, answer.version)
    end: dict[str, Any] = {}
    if explain:
        end["steps"] = [
            {"name": name, "png": "data:image/png;base64," + b64encode(png).decode()}
            for name, png in answer.steps
        ]
    if len(rows) > INLINE_ROWS:
        response = await off_loop(_response_of, begin, rows, end, size=784 * len(rows))
    else:
        response = _response_of(begin, rows, end)
    if answer.seconds:
        response.headers.append(server_timing(answer.seconds))
    return response


def _response_of(
    begin: bytes, rows: Sequence[Prediction] | Rows, end: dict[str, Any]
) -> HttpResponse:
    """The body: the predictions, as JSON in parts if they are many, then the fields of `end`."""
    if isinstance(rows, Rows):
        objects = b",".join(map(objects_of, rows.parts()))
    else:
        objects = to_json(fields_of(rows))[1:-1]
    pieces = [begin, objects]
    pieces += [b"],", to_json(end)[1:]] if end else [b"]}"]
    return HttpResponse(200, [("content-type", JSON)], b"".join(pieces))


def query_of(request: HttpRequest) -> dict[str, str]:
    """The parameters of the query. Raises InvalidArgument for one that takes long to parse."""
    if not request.query:
        return {}
    if len(request.query) > _LONGEST_QUERY:
        raise InvalidArgument(f"The query has more than {_LONGEST_QUERY} characters.")
    return dict(parse_qsl(request.query))


async def within(
    timeout: str, answer: Callable[[float], Awaitable[HttpResponse]], arrived: float = 0.0
) -> HttpResponse:
    """The answer by a deadline in the event loop's time: `timeout` seconds from `arrived`, or now.

    Raises InvalidArgument for a timeout that is not a number of seconds, or too long, and
    DeadlineExceeded if the answer is not ready by then: work that still waits is not done.
    """
    seconds = _seconds(timeout)
    if not seconds:
        raise InvalidArgument(
            f"timeout: is '{excerpt(timeout)}'; it is a number of seconds above 0, and at most "
            f"{LONGEST_TIMEOUT_S}."
        )
    end = (arrived or asyncio.get_running_loop().time()) + seconds
    try:
        async with asyncio.timeout_at(end):
            return await answer(end)
    except TimeoutError:
        raise DeadlineExceeded.of("timeout") from None


def timeout_of(query: str) -> float:
    """The seconds of `?timeout=`, for as long as its body is awaited; 0 if there is none to use."""
    match = _TIMEOUT.search(query)
    return _seconds(match[1]) if match else 0.0


def _seconds(timeout: str) -> float:
    """A timeout in seconds; 0 if it is none, or too long."""
    seconds = float(timeout) if _SECONDS.fullmatch(timeout) else 0.0
    return seconds if seconds <= LONGEST_TIMEOUT_S else 0.0


def _flag(name: str, text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise InvalidArgument(f"{name}: is '{excerpt(text)}'; it is true or false.")
    return _FLAGS[text.lower()]


def model_of(request: HttpRequest) -> tuple[str, str]:
    """The model and the version that the query names, empty for the default; it never raises."""
    query = dict(parse_qsl(request.query[:_LONGEST_QUERY]))
    return query.get("model", ""), query.get("version", "")


def fields_of(rows: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions for JSON: their fields, with reason and hint only for those not accepted."""
    fields = []
    # By name rather than by _asdict(), which takes half a microsecond more per row.
    for digit, probabilities, entropy_bits, prediction_set, accepted, reason, hint in rows:
        row: dict[str, Any] = {
            "digit": digit,
            "probabilities": probabilities,
            "entropy_bits": entropy_bits,
            "prediction_set": prediction_set,
            "accepted": accepted,
        }
        if accepted is False:
            row["reason"], row["hint"] = reason, hint
        fields.append(row)
    return fields


def objects_of(columns: Columns) -> bytes:
    """The JSON of `fields_of`, but without its brackets, for predictions in columns.

    A column becomes JSON by one call and is cut at its commas: more than two times as fast as a
    dict per row.
    """
    pieces = [_OPENING, b"", b',"probabilities":[', b"", b'],"entropy_bits":', b"", _end_of()]
    pieces *= len(columns.digits)
    pieces[1::7] = to_json(columns.digits)[1:-1].split(b",")
    pieces[3::7] = to_json(np.ascontiguousarray(columns.probabilities))[2:-2].split(b"],[")
    pieces[5::7] = to_json(columns.entropy_bits)[1:-1].split(b",")
    if columns.judgement is not None:
        accepted, reasons, sets = columns.judgement
        pieces[6::7] = map(
            _end_of, (sets.astype(bool) @ _BITS).tolist(), accepted.tolist(), reasons.tolist()
        )
    pieces[0] = pieces[0][1:]
    return b"".join(pieces)


@lru_cache(4096)
def _end_of(members: int | None = None, accepted: bool | None = None, code: int = 0) -> bytes:
    """The end of the JSON of a prediction: the fields that have the same values in many of them.

    Bit n of `members` says whether the digit n is in the set; `code` is the value of `reason`.
    """
    end: dict[str, Any] = {
        "prediction_set": None if members is None else [n for n in range(10) if members >> n & 1],
        "accepted": accepted,
    }
    if accepted is False:
        end["reason"], end["hint"] = words_of(code)
    return b"," + to_json(end)[1:]


async def form_or_json(
    request: HttpRequest, max_json_bytes: int, accepted: Sequence[str]
) -> tuple[Array | None, Picture | None]:
    """What a form or a JSON body holds: numbers, or a picture.

    Raises UnsupportedMediaType for another content type, which names those of `accepted`, and
    pictures.
    """
    body, header = request.body, request.header("content-type") or ""
    content_type = media_type(request)
    if content_type == FORM:
        return None, partial(picture_of_form, body, header)
    if content_type != JSON:
        raise UnsupportedMediaType(
            f"Content-Type is '{excerpt(content_type)}'; send {', '.join(accepted)}, "
            f"{' or '.join(PICTURES)}."
        )
    size = len(body)
    check_json_size(size, max_json_bytes)
    if size > INLINE_BYTES:
        return await off_loop(input_of_json, body, max_json_bytes, size=size)
    return input_of_json(body, max_json_bytes)


def input_of_json(body: bytes, max_json_bytes: int) -> tuple[Array | None, Picture | None]:
    """What a JSON body holds: numbers, in the shape of its lists, or a picture as a data URL."""
    parsed = parse_json(body, max_json_bytes)
    if isinstance(parsed, dict):
        if "image" not in parsed:
            raise InvalidArgument('image: the JSON object has no "image".')
        parsed = parsed["image"]
    if isinstance(parsed, str):
        return None, partial(picture_of_url, parsed)
    if not isinstance(parsed, list):
        raise InvalidArgument(
            "image: must be a list of numbers, 28x28, Nx28x28 or 784, or a picture as a data URL."
        )
    # true and false contain an "e".
    start = len(_OBJECT) if body.startswith(_OBJECT) else 0
    return numbers("image:", parsed, _UINT8, may_hold_booleans=body.find(b"e", start) >= 0), None
