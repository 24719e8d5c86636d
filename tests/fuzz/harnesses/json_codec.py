"""Inference requests as JSON: decoded, converted to arrays, encoded again.

Input that begins with a zero byte is a recipe for a request whose fields are mostly of the right
kind. Everything else is the body itself.
"""

from __future__ import annotations

import json
from math import isnan, prod
from typing import Any

import numpy as np

from service.core.datatypes import BF16, BYTES, DTYPES, from_bfloat16
from service.core.errors import InvalidArgument
from service.core.request import InferResponse, OutputTensor, scheduling_of
from service.core.tensors import TensorSpec, from_values
from service.http.codec import BinaryOutputs, decode, encode
from service.http.message import HttpRequest
from tests.fuzz.fields import Fields

_TENSOR = '{"name": "x", "datatype": "%s", "shape": [1, 2], "data": %s}'
_DATATYPES = list(DTYPES)
SEEDS = [
    *(f'{{"inputs": [{_TENSOR % (name, [1, 0])}]}}'.encode() for name in _DATATYPES),
    f'{{"inputs": [{_TENSOR % ("BYTES", json.dumps(["a", "é"]))}], "id": "i"}}'.encode(),
    f'{{"inputs": [{_TENSOR % ("BOOL", "[[true, false]]")}], "id": "é"}}'.encode(),
    f'{{"inputs": [{_TENSOR % ("FP32", "[1e38, -1.5]")}], "outputs": [{{"name": "y", '
    '"parameters": {"classification": 2, "binary_data": true}}]}'.encode(),
    b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "parameters": '
    b'{"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": 0}}]}',
    b"\0" + bytes(range(200)),
    b"\0" + bytes(range(255, 60, -1)),
    b"\0\0\4\2" + bytes(64),
]
SEEDS.append(
    f'{{"inputs": [{_TENSOR % ("INT64", "[9007199254740993, 1.0]")}]}}'.encode()  # rounded once
)
SEEDS += [
    f'{{"inputs": [{_TENSOR % ("UINT8", data)}]}}'.encode() for data in ("[7, true]", "[false, 7]")
]
TOKENS = [
    *(f'"{word}"'.encode() for word in (*_DATATYPES, "inputs", "outputs", "name", "datatype")),
    *(
        f'"{word}"'.encode()
        for word in ("shape", "data", "parameters", "id", "timeout", "priority")
    ),
    *(f'"{word}"'.encode() for word in ("sequence_id", "sequence_start", "classification")),
    *(f'"{word}"'.encode() for word in ("binary_data", "binary_data_size", "binary_data_output")),
    *(b"18446744073709551616", b"-9223372036854775809", b"9007199254740993", b"65504.1", b"1e400"),
    *(b"true", b"null", b"[", b"]", b"{", b"}", b",", b":", b'"\\ud800"', b"NaN"),
]


def check(data: bytes) -> None:
    body = _request(Fields(data[1:])) if data[:1] == b"\0" else data
    try:
        request, binary = decode(
            HttpRequest("POST", "", lambda name: None, body), None, "model", "", 2 << 20
        )
        timeout, _ = scheduling_of(request.parameters)
    except InvalidArgument as error:
        assert error.message.endswith(".") or "JSON" in error.message, error
        assert len(error.message) <= 1000
        return
    plain = json.loads(body)
    assert request.id == plain.get("id", "")
    assert len(request.inputs) == len(plain["inputs"])
    assert len(request.outputs) == len(plain.get("outputs", []))
    assert timeout is None or timeout > 0
    for tensor, source in zip(request.inputs, plain["inputs"], strict=True):
        assert (tensor.name, tensor.datatype) == (source["name"], source["datatype"])
        assert list(tensor.shape) == source["shape"]
        if tensor.region is not None:
            assert tensor.region.byte_size > 0
            assert tensor.region.offset >= 0
            continue
        if tensor.raw is not None:
            # This body has no binary part: they are pixels, which are decoded at once.
            assert tensor.datatype == "UINT8"
            assert {type(leaf) for leaf in source["data"]} == {int}
            assert list(tensor.raw) == source["data"]
            assert len(tensor.raw) == prod(tensor.shape)
            continue
        for datatype in {tensor.datatype, "FP32", "INT64"} & DTYPES.keys():
            _check_values(
                TensorSpec("x", datatype, tuple(-1 for _ in tensor.shape)),
                tensor.shape,
                tensor.values,
                source["data"],
                binary,
            )


def _check_values(
    spec: TensorSpec, shape: Any, values: Any, source: list[Any], binary: BinaryOutputs
) -> None:
    """What is accepted has the declared shape, and the values that Python reads."""
    try:
        array = from_values(spec, spec.datatype, shape, values)
    except InvalidArgument as error:
        assert "x" in error.message
        return
    assert array.shape == tuple(shape)
    assert array.size == prod(shape)
    leaves = list(_leaves(source))
    flat = array.ravel()
    if spec.datatype == BYTES:
        assert flat.tolist() == leaves
    elif spec.datatype in (BF16, "FP16", "FP32", "FP64"):
        floats = (from_bfloat16(flat) if spec.datatype == BF16 else flat).astype(np.float64)
        exact = np.array([np.nan if leaf is None else float(leaf) for leaf in leaves])
        assert np.array_equal(np.isnan(floats), np.isnan(exact))
        floats, exact = np.nan_to_num(floats, nan=0), np.nan_to_num(exact, nan=0)
        step = {BF16: 2**-8, "FP16": 2**-11, "FP32": 2**-24, "FP64": 0.0}[spec.datatype]
        least = {BF16: 1e-40, "FP16": 6e-8, "FP32": 2e-45, "FP64": 0.0}[spec.datatype]
        assert (np.abs(floats - exact) <= np.abs(exact) * step + least).all(), (floats, exact)
    else:
        assert array.dtype == DTYPES[spec.datatype]
        assert flat.tolist() == leaves
    # Encoded as JSON, it is the same again.
    answer = InferResponse("m", "1", "", [OutputTensor("y", spec.datatype, array)])
    response = encode(answer, binary)
    assert response.status == 200
    if not binary.default and not binary.named.get("y"):
        (output,) = json.loads(response.body)["outputs"]
        assert output["shape"] == list(shape)
        again = from_values(spec, spec.datatype, shape, output["data"])
        assert np.array_equal(again, array, equal_nan=array.dtype.kind == "f")


def _leaves(value: Any) -> Any:
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        assert not (isinstance(value, float) and isnan(value))
        yield value


def _request(fields: Fields) -> bytes:
    """The body that a recipe stands for."""
    body: dict[str, Any] = {}
    options = fields.byte()
    tensors = []
    for _ in range(1 + options % 3):
        shape = [
            fields.number() if fields.byte() > 200 else fields.byte() % 4
            for _ in range(fields.byte() % 4)
        ]
        tensor: dict[str, Any] = {
            "name": fields.of(("x", "y", "", "é")),
            "datatype": fields.of(_DATATYPES),
            "shape": shape,
        }
        kind = fields.of((*(_whole, _fraction, _mixed), *(_whole,) * 4, _text))
        count = prod(shape) if 0 <= prod(shape) <= 64 else 3
        leaves = [kind(fields) for _ in range(count if fields.byte() < 240 else count + 1)]
        tensor["data"] = leaves if fields.byte() % 2 else _nested(leaves, shape)
        tensors.append(tensor)
    body["inputs"] = tensors
    if options & 16:
        body["id"] = fields.of(("a", "", 1, None))
    if options & 32:
        names = (
            "timeout",
            "priority",
            "sequence_id",
            "sequence_end",
            "binary_data_output",
            "other",
        )
        body["parameters"] = {fields.of(names): _mixed(fields) for _ in range(2)}
    if options & 64:
        names = ("classification", "binary_data", "shared_memory_region", "shared_memory_byte_size")
        body["outputs"] = [
            {"name": "y", "parameters": {fields.of(names): _mixed(fields) for _ in range(2)}}
        ]
    return json.dumps(body, ensure_ascii=bool(options & 128)).encode("utf-8", "surrogatepass")


def _nested(leaves: list[Any], shape: list[int]) -> list[Any]:
    for size in reversed(shape[1:]):
        if size < 1 or len(leaves) % size:
            break
        leaves = [leaves[start : start + size] for start in range(0, len(leaves), size)]
    return leaves


def _whole(fields: Fields) -> Any:
    return fields.number()


def _fraction(fields: Fields) -> Any:
    return fields.number() * fields.of((0.5, 1.0, 1e-3, 1e30, 1e300, 1e-44, 1 / 3))


def _text(fields: Fields) -> Any:
    return fields.take(fields.byte() % 5).decode("latin-1")


def _mixed(fields: Fields) -> Any:
    return fields.of((_whole, _fraction, _text, lambda _: fields.of((True, False, None, [], {}))))(
        fields
    )
