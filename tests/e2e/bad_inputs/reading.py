"""POST /read and digits.v1 Read: the pictures that /predict refuses, and what is not a picture.

Sources: docs/api.md; `digits` for the files.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from service.stubs.digits.v1 import digits_pb2
from tests.e2e.bad_inputs import digits
from tests.e2e.bad_inputs.case import Grpc, Http, framed, post

READ = "/read"
METHOD = "/digits.v1.DigitClassifier/Read"


def of_read(case: Http | Grpc) -> Http | Grpc:
    """The case with the other endpoint; the fields of both messages have the same numbers."""
    name = f"read: {case.name}"
    if isinstance(case, Grpc):
        (frame,) = case.data
        message = digits_pb2.PredictRequest.FromString(frame[5:])
        return case._replace(
            name=name, path=METHOD, data=[framed(digits_pb2.ReadRequest(image=message.image))]
        )
    content = case.content.replace(b"POST /predict", b"POST /read", 1)
    return case._replace(name=name, content=content)


def page_of_marks() -> bytes:
    """800 strokes, more than max_read_digits."""
    page = np.full((900, 900), 255, np.uint8)
    for top in range(20, 880, 43):
        for left in range(20, 880, 22):
            page[top : top + 24, left : left + 5] = 0
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG")
    return file.getvalue()


def both(name: str, content: bytes, status: int, words: str, query: str = "") -> list[Http | Grpc]:
    return [
        Http(name, post(READ + query, content, "image/png"), status, words),
        Grpc(
            name,
            METHOD,
            [framed(digits_pb2.ReadRequest(image=content))],
            "INVALID_ARGUMENT",
            words,
        ),
    ]


CASES: list[Http | Grpc] = [
    *(of_read(case) for case in digits.NOT_PICTURES[:8] + digits.PNGS + digits.JPEGS),
    *(of_read(case) for case in (*digits.OTHERS, *digits.FORMS, *digits.URLS[:-1])),
    *both("read: a page of too many marks", page_of_marks(), 413, "max_read_digits"),
    Http("read: raw pixels", post(READ, digits.PIXELS, digits.OCTETS), 415, "Content-Type"),
    Http("read: text", post(READ, b"1492", "text/plain"), 415, "Content-Type"),
    Http("read: numbers", post(READ, [0] * 784), 400, "/predict"),
    Http(
        "read: a long query",
        post(f"{READ}?{'a=b&' * 2500}", digits.SEVEN, "image/png"),
        400,
        "8192",
    ),
    Http("read: model unknown", post(f"{READ}?model=no", digits.SEVEN, "image/png"), 404, "'no'"),
    Http("read: version text", post(f"{READ}?version=x", digits.SEVEN, "image/png"), 400, "'x'"),
    Http("read: model of sums", post(f"{READ}?model=sum", digits.SEVEN, "image/png"), 400, "'sum'"),
    Grpc(
        "read: model of sums",
        METHOD,
        [framed(digits_pb2.ReadRequest(image=digits.SEVEN, model_name="sum"))],
        "INVALID_ARGUMENT",
        "'sum'",
    ),
]
