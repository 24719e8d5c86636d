"""What Schemathesis sends where the schema says less than the server checks.

The document says what a request is made of. Whether its tensors fit a model depends on the model,
whether a body is compressed as Content-Encoding says on its bytes. Schemathesis expects requests
that fit the document to be accepted, so this replaces the contents of such requests. Those that
violate the document are sent as they are.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import zlib
from base64 import b64encode
from typing import Any

import requests
import schemathesis
from hypothesis import strategies as st
from PIL import Image

_FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/gif": "GIF",
}
_HEADER_LENGTH = "inference-header-content-length"


def _picture(kind: str, seed: int) -> bytes:
    """A picture of this content type with some ink on paper."""
    chosen = random.Random(seed)
    size = chosen.randint(1, 60), chosen.randint(1, 60)
    image = Image.new(chosen.choice(["L", "RGB"]), size, "white")
    image.paste("black", (0, 0, size[0] // 3, size[1] // 2))
    content = io.BytesIO()
    image.save(content, _FORMATS[kind])
    return content.getvalue()


for _kind in _FORMATS:
    _strategy = st.integers(0, 1000).map(lambda seed, kind=_kind: _picture(kind, seed))
    schemathesis.openapi.media_type(_kind, _strategy)
schemathesis.openapi.media_type(
    "application/octet-stream", st.integers(1, 3).flatmap(lambda n: st.just(bytes(784 * n)))
)


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Make the contents of a request that fits the document fit the models of the server too."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    operation = context.operation.definition.raw.get("operationId", "")
    chosen = random.Random(repr(case.body))
    if case.media_type == "application/json":
        if operation == "predict":
            case.body = chosen.choice(_IMAGES)
        elif operation == "read":
            case.body = chosen.choice([_URL, {"image": _URL}])
        elif operation.startswith("infer"):
            case.headers.pop(_HEADER_LENGTH, None)
            case.body = {**case.body, "inputs": [_tensor(chosen)], "outputs": _outputs(chosen)}
            case.body.pop("parameters", None)
        elif operation == "system_shared_memory_register":
            size = chosen.randint(1, 1000)
            case.body = {"key": os.environ["MNIST_TEST_KEY"], "offset": 0, "byte_size": size}
    elif operation.startswith("infer") and case.media_type == "application/octet-stream":
        case.headers[_HEADER_LENGTH] = "0"
    coding = case.headers.get("content-encoding")
    if coding in _CODINGS:
        prepared = requests.Request(**case.as_transport_kwargs(kwargs.get("base_url"))).prepare()
        kwargs["data"] = _CODINGS[coding](prepared.body or b"")
        if "Content-Type" in prepared.headers:
            case.headers["Content-Type"] = prepared.headers["Content-Type"]


_CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
_ROWS = [[0] * 28 for _ in range(28)]
_URL = "data:image/png;base64," + b64encode(_picture("image/png", 1)).decode()
_IMAGES = [_ROWS, [_ROWS] * 2, [255] * 784, {"image": _ROWS}, {"image": _URL}]


def _tensor(chosen: random.Random) -> dict[str, Any]:
    rows = chosen.randint(1, 3)
    data = [chosen.choice([0, 255]) for _ in range(784 * rows)]
    return {"name": "image", "datatype": "UINT8", "shape": [rows, 28, 28], "data": data}


def _outputs(chosen: random.Random) -> list[dict[str, Any]]:
    parameters = chosen.choice([{"binary_data": True}, {"classification": 3}, {}])
    return [{"name": "probabilities", "parameters": parameters}] * chosen.randint(0, 1)
