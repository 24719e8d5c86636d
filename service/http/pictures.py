"""Pictures inside other bodies: forms (multipart/form-data) and data URLs in JSON.

Werkzeug parses the headers of a form's part. It sets no bound to them and holds Python's global
lock for as long as it searches, so it is given no more than the beginning of a body.
"""

from __future__ import annotations

import binascii

from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Field, File, MultipartDecoder, NeedData, State

from service.core.errors import InvalidArgument, excerpt

PICTURES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif")
FORM = "multipart/form-data"
_FIELD = "image"
# The headers of a part, with what precedes it. Browsers send some 200 bytes.
_LONGEST_HEADERS = 8192
_LONGEST_BOUNDARY = 70  # RFC 2046, 5.1.1
_ONE_FILE = f"send one file, in the field '{_FIELD}'"


def picture_of_form(body: bytes, content_type: str) -> bytes:
    """The file in the field `image` of a form; `content_type` is the header with the boundary.

    Raises InvalidArgument for a malformed form, and for one of anything but this one file.
    """
    boundary = parse_options_header(content_type)[1].get("boundary", "").encode("latin1", "replace")
    if not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        raise InvalidArgument(
            f"form: Content-Type must have a boundary of 1 to {_LONGEST_BOUNDARY} characters."
        )
    decoder = MultipartDecoder(boundary)
    decoder.receive_data(body[:_LONGEST_HEADERS])
    try:
        while decoder.state in (State.PREAMBLE, State.PART):
            event = decoder.next_event()
            if isinstance(event, NeedData):
                raise InvalidArgument(
                    f"form: no part begins within {_LONGEST_HEADERS} bytes; check that the "
                    "boundary is the one in Content-Type."
                )
        if isinstance(event, Field | File) and event.name != _FIELD:
            raise InvalidArgument(f"form: it has the field '{excerpt(event.name)}'; {_ONE_FILE}.")
        if not isinstance(event, File) or not decoder.buffer.startswith(b"\r\n"):
            raise InvalidArgument(
                f"form: it has no file; {_ONE_FILE} (curl -F {_FIELD}=@picture.png)."
            )
    except ValueError:
        raise InvalidArgument("form: the headers of its part are malformed.") from None
    # What is left begins with the line break that ends the headers.
    start = min(len(body), _LONGEST_HEADERS) - len(decoder.buffer) + 2
    delimiter = b"\r\n--" + boundary
    end = body.find(delimiter, start)
    after = end + len(delimiter)
    if end < 0:
        raise InvalidArgument("form: it ends before its closing boundary.")
    if body[after : after + 2] != b"--":
        raise InvalidArgument(f"form: it has more than one part; {_ONE_FILE}.")
    return body[start:end]


def picture_of_url(url: str) -> bytes:
    """The picture in a data URL (RFC 2397), `data:image/png;base64,...`. Raises InvalidArgument."""
    head, comma, content = url.partition(",")
    kind, _, encoding = head.removeprefix("data:").partition(";")
    if not comma or not head.startswith("data:") or encoding != "base64":
        raise InvalidArgument(
            "image: a text must be a data URL, data:image/png;base64,... with the content of a "
            f"picture; this is '{excerpt(head)}'."
        )
    if kind.lower() not in PICTURES:
        raise InvalidArgument(
            f"image: the data URL holds '{excerpt(kind)}'; send {' or '.join(PICTURES)}."
        )
    try:
        return binascii.a2b_base64(content, strict_mode=True)
    except ValueError:  # binascii.Error is one
        raise InvalidArgument("image: the base64 in the data URL is damaged.") from None
