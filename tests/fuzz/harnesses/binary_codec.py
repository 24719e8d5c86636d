"""Inference requests with a JSON header and binary tensors, and raw requests without a header.

The first byte is the length of the header divided by 4; for 0 the body is raw, for 255 the header
is a recipe's.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

from service.core.datatypes import BYTES, DTYPES, one_element
from service.core.errors import InvalidArgument
from service.core.request import InferRequest, InferResponse, OutputTensor
from service.core.tensors import TensorSpec, from_bytes, shape_of_raw
from service.http.codec import ALL_BINARY, HEADER_LENGTH, decode, encode, header_length
from service.http.message import HttpRequest
from tests.fuzz.fields import Fields

_DATATYPES = list(DTYPES)


def _seed(datatype: str, shape: list[int], raw: bytes, **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": datatype, "shape": shape}
    tensor["parameters"] = {"binary_data_size": len(raw)} | more
    header = json.dumps({"inputs": [tensor]}).encode()
    header = header.ljust(-(-len(header) // 4) * 4)
    return bytes([len(header) // 4]) + header + raw


SEEDS = [
    *(_seed(name, [1, 2], bytes(2 * DTYPES[name].itemsize)) for name in _DATATYPES[:-1]),
    _seed("BYTES", [2], one_element(b"ab") + one_element(b"")),
    _seed("UINT8", [3], b"abc", binary_data=True),
    b"\0" + bytes(16),
    b"\xff" + bytes(range(1, 120)),
    b"\xff" + bytes(range(250, 100, -1)),
]
TOKENS = [
    *(f'"{name}"'.encode() for name in _DATATYPES),
    *(b'"binary_data_size":', b'"shape":[', b'"data":[', b'"parameters":{', b'"inputs":['),
    *(b"\x7f\x80", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xff\xff\xff\xff", b"4294967295"),
]


def check(data: bytes) -> None:
    choice = data[0] if data else 0
    if choice == 0:
        _check_raw(Fields(data[1:]))
        return
    if choice == 255:
        header, tail = _header(Fields(data[1:]))
    else:
        header, tail = data[1 : 1 + 4 * choice], data[1 + 4 * choice :]
    request = _request(header, tail)
    try:
        size = header_length(request)
        decoded, binary = decode(request, size, "model", "", 2 << 20)
    except InvalidArgument as error:
        assert len(error.message) <= 1000
        return
    assert size == len(header)
    plain = json.loads(header)
    start = 0
    for tensor, source in zip(decoded.inputs, plain["inputs"], strict=True):
        length = (source.get("parameters") or {}).get("binary_data_size")
        if tensor.raw is None:
            assert length is None
            continue
        assert bytes(tensor.raw) == tail[start : start + length]
        start += length
        if tensor.datatype in DTYPES:
            spec = TensorSpec("x", tensor.datatype, tuple(-1 for _ in tensor.shape))
            _check_tensor(spec, tensor.shape, tensor.raw)
    assert start == len(tail)
    # The header is in the cache now: other data, the same places.
    other = bytes(byte ^ 0xFF for byte in tail)
    again, binary_again = decode(_request(header, other), size, "model", "", 2 << 20)
    assert binary_again == binary
    assert [_places(t) for t in again.inputs] == [_places(t) for t in decoded.inputs]
    assert b"".join(bytes(t.raw) for t in again.inputs if t.raw is not None) == other
    assert _without_inputs(again) == _without_inputs(decoded)


def _check_tensor(spec: TensorSpec, shape: Any, raw: Any) -> None:
    """What is accepted has the declared shape, and the bytes as they came."""
    try:
        array = from_bytes(spec, spec.datatype, shape, raw)
    except InvalidArgument as error:
        assert "x" in error.message
        return
    assert array.shape == tuple(shape)
    assert array.size == prod(shape)
    if spec.datatype == BYTES:
        texts = array.ravel().tolist()
        encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
        assert b"".join(map(one_element, encoded)) == bytes(raw)
        if array.dtype.kind == "S":  # no output is like this
            return
    else:
        assert array.tobytes() == bytes(raw)
    response = encode(
        InferResponse("m", "1", "", [OutputTensor("y", spec.datatype, array)]), ALL_BINARY
    )
    length = int(dict(response.headers)[HEADER_LENGTH])
    assert response.body[length:] == bytes(raw)
    (output,) = json.loads(response.body[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(raw)


def _check_raw(fields: Fields) -> None:
    """A body that is the content of the only input: its shape follows from its size."""
    spec = TensorSpec(
        "x",
        fields.of(_DATATYPES),
        tuple(fields.of((-1, 1, 2, 28)) for _ in range(fields.byte() % 4)),
    )
    raw = fields.rest()
    try:
        shape = shape_of_raw(spec, len(raw))
    except InvalidArgument:
        assert spec.shape[1:].count(-1) > 1
        return
    _check_tensor(spec, shape, one_element(raw) if spec.datatype == BYTES else raw)


def _header(fields: Fields) -> tuple[bytes, bytes]:
    """The header and the binary data that a recipe stands for."""
    tensors, tail = [], b""
    for _ in range(1 + fields.byte() % 3):
        datatype = fields.of(_DATATYPES)
        shape = [
            fields.number() if fields.byte() > 240 else fields.byte() % 4
            for _ in range(fields.byte() % 4)
        ]
        size = prod(shape) * DTYPES[datatype].itemsize
        raw = fields.take(size if 0 <= size < 200 else 8)
        if datatype == BYTES and fields.byte() % 4:
            count = prod(shape) if 0 <= prod(shape) < 20 else 1
            raw = b"".join(one_element(fields.take(fields.byte() % 4)) for _ in range(count))
        told = fields.number() if fields.byte() > 240 else len(raw)
        tensors.append(
            {"name": "x", "datatype": datatype, "shape": shape}
            | {"parameters": {"binary_data_size": told}}
        )
        tail += raw
    return json.dumps({"inputs": tensors}).encode(), tail + fields.rest()[:3]


def _request(header: bytes, tail: bytes) -> HttpRequest:
    headers = {HEADER_LENGTH: str(len(header))}
    return HttpRequest("POST", "", headers.get, header + tail)


def _places(tensor: Any) -> Any:
    raw = tensor.raw
    return tensor.name, tensor.datatype, tuple(tensor.shape), None if raw is None else len(raw)


def _without_inputs(request: InferRequest) -> InferRequest:
    return request._replace(inputs=())
