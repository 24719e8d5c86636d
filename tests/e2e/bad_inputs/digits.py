"""POST /predict and digits.v1: content types, numbers, raw pixels, and damaged pictures.

Sources: docs/api.md; PNG (third edition); JPEG (ITU-T T.81).
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from service.stubs.digits.v1 import digits_pb2
from tests.e2e.bad_inputs.case import Grpc, Http, framed, post

PREDICT = "/predict"
METHOD = "/digits.v1.DigitClassifier/Predict"
OCTETS = "application/octet-stream"
PIXELS = bytes(784)


def numbers(name: str, content: Any, words: str, status: int = 400) -> Http:
    return Http(name, post(PREDICT, content), status, words)


def typed(name: str, kind: str) -> Http:
    """A body of a content type that the endpoint does not read."""
    return Http(f"content type {name}", post(PREDICT, PIXELS, kind), 415, "Content-Type")


CONTENT_TYPES = [
    typed("empty", ""),
    typed("text/plain", "text/plain"),
    typed("of a form", "application/x-www-form-urlencoded"),
    typed("of another multipart", "multipart/mixed; boundary=a"),
    typed("image/tiff", "image/tiff"),
    typed("image/svg+xml", "image/svg+xml"),
    typed("image/*", "image/*"),
    typed("*/*", "*/*"),
    typed("application/jsonp", "application/jsonp"),
    typed("application/json with a comma", "application/json, image/png"),
    typed("protobuf", "application/x-protobuf"),
    typed("with a space inside", "image / png"),
    typed("of 4,000 letters", "t" * 4000),
    Http(
        "content type missing",
        post(PREDICT, PIXELS).replace(b"Content-Type: application/json\r\n", b""),
        415,
        "Content-Type",
    ),
]


def pixels(name: str, content: bytes) -> list[Http | Grpc]:
    """Raw pixels over both transports."""
    message = digits_pb2.PredictRequest(pixels=content)
    return [
        Http(name, post(PREDICT, content, OCTETS), 400, "pixels"),
        Grpc(name, METHOD, [framed(message)], "INVALID_ARGUMENT", "pixels"),
    ]


RAW = [
    *pixels("pixels empty", b""),
    *pixels("pixels: one byte", b"\0"),
    *pixels("pixels: one too few", PIXELS[1:]),
    *pixels("pixels: one too many", PIXELS + b"\0"),
    *pixels("pixels as FP32", bytes(784 * 4 + 2)),
]

ROW = [0] * 28
NUMBERS = [
    numbers("image missing", {}, '"image"'),
    numbers("image under another name", {"images": [0] * 784}, '"image"'),
    numbers("image null", {"image": None}, "image"),
    numbers("image number", {"image": 7}, "image"),
    numbers("image text", {"image": "iVBORw0KGgo="}, "image"),
    numbers("image object", {"image": {"data": [0] * 784}}, "image"),
    numbers("image bare text", b'"image"', "image"),
    numbers("image bare number", b"7", "image"),
    numbers("image bare null", b"null", "image"),
    numbers("image empty", [], "empty"),
    numbers("image of empty rows", [[], []], "empty"),
    numbers("image of 783 numbers", [0] * 783, "783"),
    numbers("image of 27 rows", [ROW] * 27, "[27, 28]"),
    numbers("image of 27 columns", [[0] * 27] * 28, "[28, 27]"),
    numbers("image of four dimensions", [[[ROW] * 28]], "[1, 1, 28, 28]"),
    numbers("image transposed", [[[0] * 2] * 28] * 28, "[28, 28, 2]"),
    numbers("image of ragged rows", [ROW] * 27 + [[0]], "lengths"),
    numbers("image of a row beside a number", [ROW, 0], "image"),
    numbers("image of texts", ["0"] * 784, "numbers"),
    numbers("image of null", [None] * 784, "numbers"),
    numbers("image of booleans", [True] * 784, "numbers"),
    numbers("image of objects", [{}] * 784, "numbers"),
    numbers("image of 256", [256] * 784, "255"),
    numbers("image of -1", [-1] * 784, "-1"),
    numbers("image of 0.5", [0.5] * 784, "fraction"),
    numbers("image of 1e300", [1e300] * 784, "large"),
    numbers("image of 2^64", [2**64] * 784, "large"),
    numbers("image nested 65 deep", b"[" * 65 + b"0" + b"]" * 65, "deep"),
    numbers("image of 500,000 objects", b"[" + b"{}," * 500_000 + b"{}]", "max_json_bytes"),
    numbers("image of 200,000 texts", b"[" + b'"",' * 200_000 + b'""]', "max_json_bytes"),
    numbers("image of 3 MB as JSON", b"[" + b"0," * 1_500_000 + b"0]", "max_json_bytes", 413),
    numbers("predict JSON empty", b"", "empty"),
    numbers("predict JSON cut short", b'{"image": [', "JSON"),
    numbers("predict JSON with NaN", b"[NaN]", "JSON"),
    numbers("predict JSON that is not UTF-8", b"\xff\xfe", "JSON"),
    numbers("predict JSON is a picture", b"\x89PNG\r\n\x1a\n", "JSON"),
    Http("predict by text with a picture's type", post(PREDICT, b"seven", "image/png"), 400, "PNG"),
]


def selected(name: str, query: str, status: int, words: str, **fields: str) -> list[Http | Grpc]:
    """A good image for a model that does not exist or is no classifier of digits."""
    cases: list[Http | Grpc] = [
        Http(name, post(f"{PREDICT}?{query}", PIXELS, OCTETS), status, words)
    ]
    if fields:
        code = "NOT_FOUND" if status == 404 else "INVALID_ARGUMENT"
        message = digits_pb2.PredictRequest(pixels=PIXELS, **fields)
        cases.append(Grpc(name, METHOD, [framed(message)], code, words))
    return cases


SELECTION = [
    *selected("predict: model unknown", "model=none", 404, "'none'", model_name="none"),
    *selected(
        "predict: model of a path", "model=../mnist", 404, "'../mnist'", model_name="../mnist"
    ),
    *selected("predict: model not of digits", "model=sum", 400, "'sum'", model_name="sum"),
    *selected("predict: version unknown", "version=77", 404, "77", model_version="77"),
    *selected("predict: version text", "version=new", 400, "'new'", model_version="new"),
    *selected("predict: version negative", "version=-1", 400, "'-1'", model_version="-1"),
    *selected("predict: model of a control character", "model=a%0Ab", 404, "not found"),
    *selected("predict: model that is not UTF-8", "model=%ff", 404, "not found"),
    Grpc("predict: no input", METHOD, [framed(b"")], "INVALID_ARGUMENT", "input"),
]


# Pictures.


def encoded(mode: str, size: tuple[int, int], kind: str, grey: int = 255, **more: Any) -> bytes:
    file = io.BytesIO()
    image = Image.new("L", size, grey)
    image.paste(0, (size[0] // 3, size[1] // 3, size[0] // 2 + 1, size[1] // 2 + 1))
    image.convert(mode).save(file, kind, **more)
    return file.getvalue()


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


SIGNATURE = b"\x89PNG\r\n\x1a\n"
LINES = zlib.compress(b"".join(b"\0" + bytes(range(40)) for _ in range(40)))


def header(
    width: int = 40, height: int = 40, depth: int = 8, colour: int = 0, rest: bytes = bytes(3)
) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBB", width, height, depth, colour) + rest)


IDAT, IEND = chunk(b"IDAT", LINES), chunk(b"IEND", b"")
PNG = SIGNATURE + header() + IDAT + IEND
JPEG = encoded("L", (40, 40), "JPEG")


def jpeg_without(marker: int) -> bytes:
    """The JPEG without the segments of one marker."""
    output, at = JPEG[:2], 2
    while at < len(JPEG):
        size = struct.unpack_from(">H", JPEG, at + 2)[0] + 2
        if JPEG[at + 1] == 0xDA:
            return output + JPEG[at:]
        if JPEG[at + 1] != marker:
            output += JPEG[at : at + size]
        at += size
    raise AssertionError("A JPEG has a scan.")


def jpeg_sized(width: int, height: int) -> bytes:
    """The JPEG with another size in its header (SOF0)."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def picture(
    name: str, content: bytes, words: str = "image", status: int = 400, kind: str = "image/png"
) -> list[Http | Grpc]:
    """A picture over both transports."""
    message = digits_pb2.PredictRequest(image=content)
    return [
        Http(f"picture: {name}", post(PREDICT, content, kind), status, words),
        Grpc(f"picture: {name}", METHOD, [framed(message)], "INVALID_ARGUMENT", words),
    ]


def noise(mode: str, size: tuple[int, int], kind: str) -> bytes:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8), "RGB").convert(mode).save(
        file, kind
    )
    return file.getvalue()


NOT_PICTURES = [
    *picture("empty", b"", "empty"),
    *picture("one byte", b"\x89", "PNG, JPEG, WebP"),
    *picture("text", b"not a picture at all", "PNG, JPEG, WebP"),
    *picture("zeros", bytes(1000), "PNG, JPEG, WebP"),
    *picture("TIFF", encoded("L", (40, 40), "TIFF"), "PNG, JPEG, WebP"),
    *picture("PPM", encoded("L", (40, 40), "PPM"), "PNG, JPEG, WebP"),
    *picture("ICO", encoded("L", (32, 32), "ICO"), "PNG, JPEG, WebP"),
    *picture("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "PNG, JPEG, WebP"),
    *picture("PDF", b"%PDF-1.7\n", "PNG, JPEG, WebP"),
    *picture("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PNG, JPEG, WebP"),
    *picture("base64", b"iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBI", "PNG, JPEG, WebP"),
    *picture("PNG after a newline", b"\n" + PNG, "PNG, JPEG, WebP"),
    *picture("MNG", b"\x8aMNG\r\n\x1a\n" + PNG[8:], "PNG, JPEG, WebP"),
    *picture("AVIF", b"\0\0\0 ftypavif" + bytes(200), "PNG, JPEG, WebP"),
    *picture("TIFF of noise", noise("RGB", (30, 30), "TIFF"), "PNG, JPEG, WebP"),
]
PNGS = [
    *picture("PNG of its signature alone", SIGNATURE),
    *picture("PNG cut in its header", PNG[:20]),
    *picture("PNG cut after its header", PNG[: len(SIGNATURE + header())]),
    *picture("PNG cut in its data", (SIGNATURE + header() + IDAT)[:-60]),
    *picture("PNG without data", SIGNATURE + header() + IEND),
    *picture("PNG with an empty data chunk", SIGNATURE + header() + chunk(b"IDAT", b"") + IEND),
    *picture("PNG without a header", SIGNATURE + IDAT + IEND),
    *picture("PNG with data before its header", SIGNATURE + IDAT + header() + IEND),
    *picture("PNG with a short header", SIGNATURE + chunk(b"IHDR", bytes(8)) + IDAT + IEND),
    *picture(
        "PNG with a wrong checksum of its header",
        SIGNATURE + header()[:-4] + bytes(4) + IDAT + IEND,
    ),
    *picture("PNG of width 0", SIGNATURE + header(width=0) + IDAT + IEND),
    *picture("PNG of height 0", SIGNATURE + header(height=0) + IDAT + IEND),
    *picture("PNG of depth 3", SIGNATURE + header(depth=3) + IDAT + IEND),
    *picture("PNG of depth 0", SIGNATURE + header(depth=0) + IDAT + IEND),
    *picture("PNG of depth 32", SIGNATURE + header(depth=32) + IDAT + IEND),
    *picture("PNG of colour type 1", SIGNATURE + header(colour=1) + IDAT + IEND),
    *picture("PNG of colour type 7", SIGNATURE + header(colour=7) + IDAT + IEND),
    *picture(
        "PNG of colour type 3 and depth 16", SIGNATURE + header(depth=16, colour=3) + IDAT + IEND
    ),
    *picture("PNG with a palette missing", SIGNATURE + header(colour=3) + IDAT + IEND),
    *picture("PNG of filter method 1", SIGNATURE + header(rest=b"\0\1\0") + IDAT + IEND),
    *picture(
        "PNG with damaged data",
        SIGNATURE + header() + chunk(b"IDAT", b"\x78\x9c" + b"\xff" * 50) + IEND,
    ),
    *picture(
        "PNG with uncompressed data", SIGNATURE + header() + chunk(b"IDAT", bytes(1640)) + IEND
    ),
    *picture("PNG with half of its data", SIGNATURE + header() + chunk(b"IDAT", LINES[:20]) + IEND),
    *picture(
        "PNG with an unknown filter",
        SIGNATURE + header() + chunk(b"IDAT", zlib.compress(b"\x09" + bytes(40) * 41)) + IEND,
    ),
    *picture(
        "PNG with a chunk name of controls",
        SIGNATURE + header() + chunk(b"\0\1\2\3", b"") + IDAT + IEND,
    ),
    *picture(
        "PNG of too many pixels",
        SIGNATURE + header(2100, 2000) + IDAT + IEND,
        "max_decoded_pixels",
        413,
    ),
    *picture(
        "PNG of 2^31-1 columns", SIGNATURE + header(2**31 - 1, 1) + IDAT + IEND, "more than", 413
    ),
    *picture(
        "PNG of 2^62 pixels",
        SIGNATURE + header(2**31 - 1, 2**31 - 1) + IDAT + IEND,
        "more than",
        413,
    ),
]
JPEGS = [
    *picture("JPEG of its first marker alone", JPEG[:2]),
    *picture("JPEG cut in its header", JPEG[:100]),
    *picture("JPEG cut before its scan", JPEG[: JPEG.index(b"\xff\xda")]),
    *picture("JPEG cut in its scan", JPEG[: JPEG.index(b"\xff\xda") + 14]),
    *picture("JPEG without quantisation tables", jpeg_without(0xDB)),
    *picture("JPEG without a frame", jpeg_without(0xC0)),
    *picture("JPEG of width 0", jpeg_sized(0, 40)),
    *picture("JPEG of height 0", jpeg_sized(40, 0)),
    *picture("JPEG of too many pixels", jpeg_sized(5000, 4000), "max_image_pixels", 413),
    *picture(
        "progressive JPEG of too many pixels",
        encoded("L", (2100, 2000), "JPEG", progressive=True),
        "max_decoded_pixels",
        413,
    ),
    *picture("JPEG of 65,535 squared", jpeg_sized(65_500, 65_500), "more than", 413),
    *picture("JPEG of its end alone", b"\xff\xd8\xff\xd9"),
    *picture("JPEG of only comments", b"\xff\xd8" + b"\xff\xfe\0\4ab" * 100 + b"\xff\xd9"),
    *picture("JPEG with zeros for tables", JPEG[:20] + bytes(len(JPEG) - 20)),
]


def cut_short(kind: str, words: str = "image") -> list[Http | Grpc]:
    """The beginnings of a file of noise, and one with its middle overwritten."""
    whole = noise("RGB", (40, 40), kind)
    return [
        *picture(f"{kind} of its signature alone", whole[:6], words),
        *picture(f"{kind} cut in its header", whole[:12], words),
        *picture(f"{kind} cut in its data", whole[: len(whole) // 2], words),
    ]


def bmp_sized(width: int, height: int, compression: int = 0) -> bytes:
    """A BMP with another size in its header (BITMAPINFOHEADER)."""
    whole = noise("RGB", (8, 8), "BMP")
    fields = struct.pack("<iihhI", width, height, 1, 24, compression)
    return whole[:18] + fields + whole[18 + len(fields) :]


def gif_sized(width: int, height: int) -> bytes:
    whole = noise("L", (8, 8), "GIF")
    return whole[:6] + struct.pack("<HH", width, height) + whole[10:]


def gif_with_frame(width: int, height: int) -> bytes:
    """A GIF of 8x8 with another size in its image descriptor (GIF89a, 20)."""
    whole = noise("L", (8, 8), "GIF")
    at = whole.index(b",\0\0\0\0\x08\0\x08\0")
    return whole[: at + 5] + struct.pack("<HH", width, height) + whole[at + 9 :]


def webp_sized(width: int, height: int) -> bytes:
    """A lossy WebP with another size in its frame header (RFC 6386, 9.1)."""
    whole = noise("RGB", (8, 8), "WEBP")
    return whole[:26] + struct.pack("<HH", width, height) + whole[30:]


OTHERS = [
    *cut_short("GIF"),
    *cut_short("BMP"),
    *cut_short("WEBP"),
    *picture("BMP of 5000x5000", bmp_sized(5000, 5000), "pixels", 413),
    *picture("BMP of width 0", bmp_sized(0, 8)),
    *picture("BMP of -2^31 lines", bmp_sized(8, -(2**31)), "image", 413),
    *picture("BMP that is run-length encoded", bmp_sized(8, 8, 1), "run-length"),
    *picture("GIF of 65,535 squared", gif_sized(65535, 65535), "pixels", 413),
    *picture("GIF with a frame of 65,535 squared", gif_with_frame(65535, 65535), "pixels", 413),
    *picture("WebP of 16,383 squared", webp_sized(16383, 16383), "pixels", 413),
    *picture("WebP of its first chunk alone", b"RIFF\x0c\0\0\0WEBPVP8 \0\0\0\0"),
]

# Forms and data URLs: over HTTP only.
SEVEN = encoded("L", (40, 40), "PNG")
_NAMED = b'Content-Disposition: form-data; name="image"; filename="7.png"\r\n'
_BEGIN, _END = b"--line\r\n", b"\r\n--line--\r\n"
_WHOLE = _BEGIN + _NAMED + b"\r\n" + SEVEN + _END


def form(
    name: str, content: bytes, words: str, kind: str = "multipart/form-data; boundary=line"
) -> Http:
    return Http(f"form {name}", post(PREDICT, content, kind), 400, words)


FORMS = [
    form("empty", b"", "form"),
    form("without a boundary", _WHOLE, "boundary", "multipart/form-data"),
    form("with an empty boundary", _WHOLE, "boundary", 'multipart/form-data; boundary=""'),
    form("with a boundary of 71", _WHOLE, "boundary", "multipart/form-data; boundary=" + "b" * 71),
    form("with another boundary", _WHOLE, "boundary", "multipart/form-data; boundary=other"),
    form("of text", b"seven", "form"),
    form("of a bare picture", SEVEN, "form"),
    form("of JSON", b'{"image": []}', "form"),
    form("of its end alone", _END[2:], "no file"),
    form("cut in its headers", _WHOLE[:40], "form"),
    form("cut in its picture", _WHOLE[:-30], "closing boundary"),
    form("cut in its end", _WHOLE[:-5], "closing boundary"),
    form("of a damaged picture", _BEGIN + _NAMED + b"\r\n" + SEVEN[:60] + _END, "image"),
    form("of an empty picture", _BEGIN + _NAMED + b"\r\n" + _END, "empty"),
    form("of a text file", _BEGIN + _NAMED + b"\r\nseven" + _END, "PNG, JPEG"),
    form("of a value", _WHOLE.replace(b'; filename="7.png"', b""), "no file"),
    form("of another field", _WHOLE.replace(b"image", b"photo"), "'photo'"),
    form("of a field without a name", _WHOLE.replace(b'name="image"; ', b""), "field"),
    form("of a long name", _WHOLE.replace(b"image", b"x" * 5000), "..."),
    form("of two pictures", _WHOLE[: -len(_END)] + b"\r\n" + _WHOLE, "one part"),
    form("of 50,000 parts", (_BEGIN + _NAMED + b"\r\n\r\n") * 50_000 + _END, "one part"),
    form("of long headers", _BEGIN + _NAMED + b"X: " + b"x" * 9000 + b"\r\n\r\n", "8192"),
    form("of 100,000 headers", _BEGIN + b"x:\r\n" * 100_000 + _NAMED + b"\r\n", "8192"),
    form("of a long preamble", bytes(10_000) + b"\r\n" + _WHOLE, "8192"),
    form("without a disposition", _BEGIN + b"X: 1\r\n\r\n" + SEVEN + _END, "malformed"),
    form("of headers that are not UTF-8", _WHOLE.replace(b"7.png", b"\xff"), "malformed"),
    Http(
        "form of a large picture",
        post(
            PREDICT,
            _WHOLE.replace(SEVEN, encoded("L", (2100, 2000), "PNG")),
            "multipart/form-data; boundary=line",
        ),
        413,
        "max_decoded_pixels",
    ),
]


def url(name: str, text: str, words: str = "data URL", status: int = 400) -> Http:
    return Http(f"data URL {name}", post(PREDICT, {"image": text}), status, words)


_BASE64 = base64.b64encode(SEVEN).decode()
URLS = [
    url("empty", ""),
    url("without its scheme", _BASE64),
    url("of a web page", "https://example.org/7.png"),
    url("of a path", "file:///etc/passwd"),
    url("without base64", "data:image/png,%89PNG"),
    url("without a type", f"data:;base64,{_BASE64}", "image/png"),
    url("of text", "data:text/plain;base64,c2V2ZW4=", "'text/plain'"),
    url("of SVG", "data:image/svg+xml;base64,PHN2Zy8+", "'image/svg+xml'"),
    url("without content", "data:image/png;base64,", "empty"),
    url("cut short", f"data:image/png;base64,{_BASE64[:-1]}", "base64"),
    url("with spaces", f"data:image/png;base64,{_BASE64[:40]} {_BASE64[40:]}", "base64"),
    url("in the URL alphabet", "data:image/png;base64,-_-_", "base64"),
    url("of letters outside ASCII", "data:image/png;base64,ÄÖÜß", "base64"),
    url("of a damaged picture", f"data:image/png;base64,{_BASE64[:80]}", "image"),
    url("of 3 MB", "data:image/png;base64," + "A" * 3_000_000, "max_json_bytes", 413),
    Http(
        "data URLs in a list",
        post(PREDICT, {"image": [f"data:image/png;base64,{_BASE64}"]}),
        400,
        "image",
    ),
    Http("explain is a word", post(f"{PREDICT}?explain=maybe", SEVEN, "image/png"), 400, "explain"),
]


class Blank(NamedTuple):
    """A picture without ink: it is answered, and not accepted."""

    name: str
    content: bytes


def blank(name: str, size: tuple[int, int], grey: int, spot: int | None = None) -> Blank:
    image = Image.new("L", size, grey)
    if spot is not None:
        image.paste(spot, (90, 90, 100, 100))
    file = io.BytesIO()
    image.save(file, "PNG")
    return Blank(name, file.getvalue())


BLANK = [
    blank("white", (200, 200), 255),
    blank("black", (200, 200), 0),
    blank("grey", (200, 200), 128),
    blank("of 28x28, white", (28, 28), 255),
    blank("of one pixel", (1, 1), 255),
    blank("of one line", (500, 1), 255),
    blank("faint on white", (200, 200), 255, 240),
    blank("faint on black", (200, 200), 0, 5),
    # A gradient, in files whose damage the decoder forgives.
    Blank("with a wrong checksum", SIGNATURE + header() + chunk(b"IDAT", LINES, 0) + IEND),
    Blank("of compression method 1", SIGNATURE + header(rest=b"\1\0\0") + IDAT + IEND),
    Blank("in a chunk of 4 GB", SIGNATURE + header() + b"\xff\xff\xff\xffIDAT" + LINES),
]

CASES: list[Http | Grpc] = [
    *(*CONTENT_TYPES, *RAW, *NUMBERS, *SELECTION, *NOT_PICTURES, *PNGS, *JPEGS),
    *(*OTHERS, *FORMS, *URLS),
]
