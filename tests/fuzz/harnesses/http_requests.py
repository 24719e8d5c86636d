"""Whole HTTP requests to the handlers: routes, headers, queries and bodies of every kind."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from service.core.budget import Budget
from service.http.answering import HttpApp
from service.http.compression import Compression
from service.http.message import HttpRequest
from service.http.openapi.viewer import Viewer
from service.http.playground.pages import Playground
from tests.fuzz.application import MEMORY, MODELS, Application
from tests.fuzz.fields import Fields

CI_RUNS = 5_000
_STATUSES = {200, 400, 403, 404, 408, 409, 413, 415, 501, 503, 504}
_APPLICATION = Application(regions=2)
_APP = HttpApp(
    inference=_APPLICATION.operations.inference,
    digits=_APPLICATION.operations.digits,
    administration=_APPLICATION.operations.administration,
    recorder=_APPLICATION.recorder,
    compression=Compression(1 << 16, 64, Budget(1 << 25)),
    playground=Playground(),
    viewer=Viewer(),
)
# Loading takes a hundred times as long as any other request, and /metrics ten times.
_PATHS = [
    *("/predict", "/v2/models/<model>/infer", "/v2/models/<model>/versions/<version>/infer"),
    *(f"/v2/models/{model}/infer" for model in MODELS),
    *{route.route.path for route in _APP.matches if "load" not in route.route.path} - {"/metrics"},
]
_PATHS = list(dict.fromkeys(_PATHS))
_HEADERS = (
    "accept",
    "content-type",
    "content-encoding",
    "accept-encoding",
    "inference-header-content-length",
    "host",
    "origin",
    "x-request-id",
    "x-forwarded-for",
)
_VALUES = (
    *("application/json", "application/octet-stream", "image/png", "image/jpeg", "text/html", ""),
    *("gzip", "deflate", "identity", "br", "gzip;q=0.5, deflate;q=1", "*;q=0", "0", "10", "-1"),
    *("localhost", "127.0.0.1:8000", "[::1", "http://localhost", "null", "http://[::1", "a" * 200),
)
_PARAMETERS = ("mnist", "1", "", "..", "r", "é", "a\nb", "0", "99999999999999999999")


def _recipe(method: int, path: str, body: bytes, *headers: int) -> bytes:
    return bytes([method, _PATHS.index(path), len(headers) // 2, *headers, 0]) + body


_TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
_REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
SEEDS = [
    _recipe(0, "/predict", bytes(784), 0, 1),
    _recipe(0, "/predict", json.dumps([0] * 784).encode(), 0, 0),
    _recipe(0, "/predict", gzip.compress(bytes(784), mtime=0), 0, 1, 1, 6),
    _recipe(0, "/predict", zlib.compress(b"[" * 99999), 0, 0, 1, 7, 2, 10),
    _recipe(0, "/v2/models/identity_fp32/infer", json.dumps({"inputs": [_TENSOR]}).encode(), 2, 6),
    _recipe(
        0,
        "/v2/models/identity_fp32/infer",
        json.dumps(
            {
                "inputs": [
                    {key: _TENSOR[key] for key in ("name", "datatype", "shape")}
                    | {"parameters": _REGION}
                ]
            }
        ).encode(),
    ),
    _recipe(0, "/v2/models/identity_fp32/infer", bytes(8), 3, 12),
    _recipe(
        0,
        "/v2/models/sum/infer",
        json.dumps(
            {
                "inputs": [
                    {"name": name, "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
                    for name in "ab"
                ],
                "outputs": [{"name": "gap", "parameters": {"classification": 2}}],
            }
        ).encode(),
    ),
    _recipe(0, "/v2/logging", b'{"log_verbose_level": 1, "log_info": true}', 4, 15),
    _recipe(0, "/v2/trace/setting", b'{"trace_level": ["OFF"], "trace_rate": null}'),
    _recipe(0, "/v2/repository/index", b'{"ready": true}'),
    _recipe(
        0,
        "/v2/systemsharedmemory/region/<region>/register",
        json.dumps({"key": MEMORY, "byte_size": 64}).encode(),
    ),
    *(_recipe(1, path, b"") for path in _PATHS),
]
TOKENS = [
    *(b'"inputs"', b'"outputs"', b'"name"', b'"datatype"', b'"shape"', b'"data"', b'"parameters"'),
    *(b'"classification"', b'"binary_data"', b'"timeout"', b'"FP32"', b'"BYTES"', b'"x"', b"null"),
    *(b'"shared_memory_region"', b'"shared_memory_byte_size"', b'"ready"', b'"log_info"', b'"key"'),
    *(b"18446744073709551616", b"1e999", b"\\u0000", b'"trace_level"', b'"byte_size"', b'"offset"'),
]


def check(data: bytes) -> None:
    fields = Fields(data)
    method = fields.of(("POST", "GET", "PUT", "HEAD", "post"))
    path = fields.of(_PATHS)
    headers = {}
    for _ in range(fields.byte() % 5):
        name, choice = fields.of(_HEADERS), fields.byte()
        headers[name] = (
            _VALUES[choice] if choice < len(_VALUES) else fields.take(choice % 16).decode("latin-1")
        )
    options = fields.byte()
    for parameter in ("model", "version", "region"):
        if f"<{parameter}>" in path:
            value = fields.of(_PARAMETERS) if options & 1 else _PARAMETERS[0]
            path = path.replace(f"<{parameter}>", value)
    query = fields.take(options % 32).decode("latin-1") if options & 2 else ""
    request = HttpRequest(method, path, headers.get, fields.rest(), query)
    response = _APPLICATION.run(_APP.answer(request))
    _APPLICATION.check_intact()
    if response is None:
        assert (
            method != "POST"
            or "\n" in path
            or "//" in path
            or path.endswith("/")
            or not _is_route(path)
        )
        return
    assert response.status in _STATUSES, response
    sent = dict(response.headers)
    assert all("\r" not in v and "\n" not in v for v in sent.values())
    assert 1 <= len(sent["x-request-id"]) <= 128
    body = response.body
    if encoding := sent.get("content-encoding"):
        body = zlib.decompress(body, {"gzip": 31, "deflate": 15}[encoding])
    if response.status != 200 and "error" in (answer := json.loads(body)):
        assert answer["error"].strip()
        assert len(answer["error"]) <= 1000
    elif sent["content-type"] == "application/json":
        _check_numbers(json.loads(body, parse_constant=_refuse))


def _is_route(path: str) -> bool:
    return any(match.route.path == path for match in _APP.matches if match.route.method == "POST")


def _check_numbers(answer: Any) -> None:
    """Distributions sum to 1."""
    if isinstance(answer, dict):
        for prediction in answer.get("predictions", []):
            assert abs(sum(prediction["probabilities"]) - 1) < 1e-5
            assert 0 <= prediction["digit"] <= 9


def _refuse(name: str) -> float:
    """Infinities are written as Triton's, NaN is null."""
    assert name != "NaN"
    return float(name)
