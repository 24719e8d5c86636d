from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgument
from service.http.pictures import PICTURES, picture_of_form, picture_of_url

FILE = bytes(range(256)) * 300
BOUNDARY = "----a-boundary"
HEADER = f'multipart/form-data; boundary="{BOUNDARY}"'
NAMED = b'Content-Disposition: form-data; name="image"; filename="x.png"\r\n'
BEGIN, END = b"--" + BOUNDARY.encode() + b"\r\n", b"\r\n--" + BOUNDARY.encode() + b"--\r\n"
MORE = b"\r\n" + BEGIN


def part(headers: bytes = NAMED, content: bytes = FILE) -> bytes:
    return headers + b"\r\n" + content


@pytest.mark.parametrize(
    "body",
    [
        BEGIN + part() + END,
        b"\r\n" + BEGIN + part() + END[:-2],
        b"a preamble\r\n" + BEGIN + part() + END + b"an epilogue",
        BEGIN + part(NAMED + b"Content-Type: image/png\r\nX-Other: 1\r\n") + END,
        BEGIN + part(b"content-disposition: form-data; filename=x; name=image\r\n") + END,
    ],
)
def test_the_file_of_a_form_is_its_picture(body: bytes) -> None:
    assert picture_of_form(body, HEADER) == FILE
    assert picture_of_form(body, HEADER.replace('"', "")) == FILE


@given(st.binary(max_size=20_000).filter(lambda content: BOUNDARY.encode() not in content))
def test_any_file_comes_out_of_a_form_as_it_went_in(content: bytes) -> None:
    assert picture_of_form(BEGIN + part(content=content) + END, HEADER) == content


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no part begins"),
        (BEGIN, "no part begins"),
        (b"nothing of a form", "no part begins"),
        (BEGIN.replace(b"boundary", b"other") + part() + END, "boundary"),
        (BEGIN + part(NAMED + b"X: " + b"x" * 9000 + b"\r\n") + END, "8192"),
        (BEGIN + part(NAMED + b"x:\r\n" * 3000) + END, "8192"),
        (BEGIN + part(), "closing boundary"),
        (BEGIN + part() + END[:-5], "closing boundary"),
        (BEGIN + part() + MORE + part() + END, "more than one part"),
        (BEGIN + part() + MORE + NAMED * 50_000 + END, "more than one part"),
        (END[2:], "no file"),
        (BEGIN + part(b'Content-Disposition: form-data; name="image"\r\n') + END, "no file"),
        (BEGIN + part(NAMED.replace(b"image", b"photo")) + END, "field 'photo'.*'image'"),
        (BEGIN + part(NAMED.replace(b"image", b"x" * 5000)) + END, r"x\.\.\."),
        (BEGIN + part(b"Content-Disposition: form-data; filename=x\r\n") + END, "field"),
        (BEGIN + part(b"Content-Type: image/png\r\n") + END, "malformed"),
        (BEGIN + part(b"\xff\xfe: 1\r\n" + NAMED) + END, "malformed"),
    ],
)
def test_another_form_is_rejected(body: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        picture_of_form(body, HEADER)


@pytest.mark.parametrize(
    "header",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 71,
        "multipart/form-data; charset=utf-8",
    ],
)
def test_a_form_needs_a_boundary_of_the_length_of_one(header: str) -> None:
    with pytest.raises(InvalidArgument, match="boundary"):
        picture_of_form(BEGIN + part() + END, header)


@given(st.binary(max_size=300), st.text(max_size=80))
def test_arbitrary_forms_are_rejected(body: bytes, boundary: str) -> None:
    with pytest.raises(InvalidArgument, match="form"):
        picture_of_form(body, "multipart/form-data; boundary=" + boundary)


@pytest.mark.parametrize("kind", PICTURES)
def test_a_data_url_holds_a_picture(kind: str) -> None:
    assert picture_of_url(f"data:{kind};base64,{base64.b64encode(FILE).decode()}") == FILE


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "data URL"),
        ("iVBORw0KGgo=", "data:image/png;base64"),
        ("data:image/png;base64", "data URL"),
        ("data:image/png,%89PNG", "data URL"),
        ("http://127.0.0.1/x.png?a,b", "data URL"),
        ("data:text/plain;base64,AAAA", "'text/plain'; send image/png"),
        ("data:;base64,AAAA", "send image/png"),
        ("data:image/png;base64,AAA", "damaged"),
        ("data:image/png;base64,AA AA", "damaged"),
        ("data:image/png;base64,AA=A", "damaged"),
        ("data:image/png;base64,ÄÄÄÄ", "damaged"),
    ],
)
def test_another_text_is_rejected(url: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=f"image: .*{words}"):
        picture_of_url(url)


def test_an_error_quotes_only_the_beginning_of_a_text() -> None:
    with pytest.raises(InvalidArgument) as raised:
        picture_of_url("x" * 1_000_000)
    assert len(raised.value.message) < 500
