"""Inference requests and answers as HTTP bodies: JSON, or a JSON header and binary tensors.

Numbers that JSON lacks are written and read as by Triton: NaN (also `null`, which is how it is
written), Infinity and -Infinity.
Source: Open Inference Protocol (KServe V2), "HTTP/REST"; Triton's "Binary Tensor Data Extension",
including its raw binary request. Unknown fields are ignored, as the protocol demands.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from service.core.datatypes import BYTES, DTYPES, Array
from service.core.errors import InvalidArgument, excerpt
from service.core.off_loop import PART
from service.core.request import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    Parameters,
    RequestedOutput,
    region_of,
    top_classes_of,
)
from service.core.tensors import Tensor, octets, to_bytes, to_values
from service.http.message import (
    JSON,
    OCTETS,
    HttpRequest,
    HttpResponse,
    parse_json,
    to_json,
)

HEADER_LENGTH = "inference-header-content-length"


_MAX_TENSORS = 1024


class BinaryOutputs(NamedTuple):
    """Which outputs are sent as bytes: `named` by output name, `default` for all others."""

    default: bool = False
    named: Mapping[str, bool] = {}

    def of(self, output: str) -> bool:
        """Whether the output of this name is sent as bytes."""
        return self.named.get(output, self.default)


ALL_BINARY = BinaryOutputs(True)


def header_length(request: HttpRequest) -> int | None:
    """Bytes of the body that are JSON; None if all of it is. Raises InvalidArgument."""
    text = request.header(HEADER_LENGTH)
    if text is None:
        return None
    # int() also takes signs, spaces and underscores. 18 digits exceed the size of any body.
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidArgument(
            f"Inference-Header-Content-Length: '{excerpt(text)}' is not a length."
        )
    if int(text) > len(request.body):
        raise InvalidArgument(
            f"Inference-Header-Content-Length is {text}, but the body has {len(request.body)} "
            "bytes."
        )
    return int(text)


def decode(
    request: HttpRequest, json_bytes: int | None, model: str, version: str, max_json_bytes: int
) -> tuple[InferRequest, BinaryOutputs]:
    """Decode a body; binary tensors are views of it. `json_bytes` comes from `header_length`.

    The caller has checked the size of the JSON against `max_json_bytes`. Raises InvalidArgument,
    naming the field that is wrong.
    """
    if json_bytes is None:
        size, none = len(request.body), memoryview(b"")
        parsed = parse_json(request.body, max_json_bytes, takes_infinity=True)
        may_hold = _may_hold_booleans(request.body)
        return _decode(parsed, none, size, model, version, request.caller, may_hold)
    tail = memoryview(request.body)[json_bytes:]
    header = request.body[:json_bytes] if json_bytes <= _MAX_CACHED_BYTES else b""
    if (cached := _cache.get(header)) is not None and cached.binary_bytes == len(tail):
        return cached.request(tail, model, version, request.caller), cached.binary
    body = parse_json(request.body, max_json_bytes, json_bytes, takes_infinity=True)
    decoded, binary = _decode(body, tail, json_bytes, model, version, request.caller)
    if header and all(tensor.raw is not None for tensor in decoded.inputs):
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[header] = _CachedHeader(decoded, binary, len(tail))
    return decoded, binary


class _CachedHeader:
    """A header that was decoded before, with the places of its tensors in the binary data."""

    __slots__ = ("_decoded", "_places", "binary", "binary_bytes")

    def __init__(self, decoded: InferRequest, binary: BinaryOutputs, binary_bytes: int) -> None:
        self._places, start = [], 0
        for name, datatype, shape, raw, _, _ in decoded.inputs:
            assert raw is not None
            self._places.append((name, datatype, shape, slice(start, start + len(raw))))
            start += len(raw)
        self._decoded = decoded._replace(inputs=())
        self.binary = binary
        self.binary_bytes = binary_bytes

    def request(self, tail: memoryview, model: str, version: str, caller: str) -> InferRequest:
        """The request of this header with the binary data of `tail`."""
        tensors = [
            InputTensor(name, kind, shape, tail[at]) for name, kind, shape, at in self._places
        ]
        _, _, _, outputs, request_id, parameters, deadline, size, _ = self._decoded
        # By position: keywords take 0.7 us more, on the request path.
        return InferRequest(
            model, version, tensors, outputs, request_id, parameters, deadline, size, caller
        )


# A client that sends one kind of request sends the same header every time. Parsing and checking it
# costs as much as the rest of the decoding, the batching and the encoding of an image together, so
# decoded headers are kept, up to this length (longer ones contain values) and this number.
_MAX_CACHED_BYTES = 1024
_MAX_CACHED = 256
_cache: dict[bytes, _CachedHeader] = {}


def _decode(
    body: Any,
    tail: memoryview,
    size: int,
    model: str,
    version: str,
    caller: str,
    may_hold_booleans: bool = True,
) -> tuple[InferRequest, BinaryOutputs]:
    if not isinstance(body, dict):
        raise InvalidArgument("The body must be a JSON object.")
    request_id, inputs = body.get("id", ""), body.get("inputs")
    outputs = body.get("outputs", [])
    if not isinstance(request_id, str):
        raise InvalidArgument("id: must be a string.")
    if not isinstance(inputs, list):
        raise InvalidArgument("inputs: must be a list of tensors.")
    if not isinstance(outputs, list):
        raise InvalidArgument("outputs: must be a list.")
    if max(len(inputs), len(outputs)) > _MAX_TENSORS:
        raise InvalidArgument(f"inputs, outputs: have more than {_MAX_TENSORS} tensors.")
    parameters = _parameters(body, "parameters")
    tensors = []
    for index, tensor in enumerate(inputs):
        decoded, tail = _decode_input(tensor, f"inputs[{index}]", tail, may_hold_booleans)
        tensors.append(decoded)
    if tail:
        raise InvalidArgument(
            f"The body has {len(tail)} bytes more than its inputs' binary_data_size say."
        )
    requested = [_decode_output(output, f"outputs[{i}]") for i, output in enumerate(outputs)]
    binary = BinaryOutputs(
        _flag("parameters", parameters, "binary_data_output", False),
        {output.name: flag for output, flag in requested if flag is not None},
    )
    decoded_outputs = [output for output, _ in requested]
    return (
        # By position: keywords take 0.7 us more, for every request.
        InferRequest(
            model,
            version,
            tensors,
            decoded_outputs,
            request_id,
            parameters,
            None,
            size,
            caller,
        ),
        binary,
    )


def encode(answer: InferResponse, binary: BinaryOutputs) -> HttpResponse:
    """Encode an answer; the body is plain JSON if no output is binary."""
    header, blobs = _parts_of(answer, binary)
    if not blobs:
        return HttpResponse(200, [("content-type", JSON)], header)
    headers = [("content-type", OCTETS), (HEADER_LENGTH, str(len(header)))]
    return HttpResponse(200, headers, b"".join([header, *blobs]))


def _parts_of(answer: InferResponse, binary: BinaryOutputs) -> tuple[bytes, list[bytes]]:
    """The JSON of an answer, and the contents of its binary outputs."""
    if not answer.id and not answer.warning:
        places = [
            (name, datatype, array.shape)
            for name, datatype, array, region in answer.outputs
            if binary.of(name) and datatype != BYTES and region is None
        ]
        if places and len(places) == len(answer.outputs):
            header = _header_of(answer.model, answer.version, tuple(places))
            return header, [output.array.tobytes() for output in answer.outputs]
    blobs: list[bytes] = []
    outputs = [_encode_output(output, binary.of(output.name), blobs) for output in answer.outputs]
    body: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        body["id"] = answer.id
    if answer.warning:
        body["parameters"] = {"warning": answer.warning}
    body["outputs"] = outputs
    header = to_json(body)
    if b"null" in header:  # written for NaN, but also where Triton writes Infinity
        for encoded in outputs:
            _write_infinities(encoded)
        header = to_json(body)
    return header, blobs


@lru_cache(256)
def _header_of(
    model: str, version: str, places: tuple[tuple[str, str, tuple[int, ...]], ...]
) -> bytes:
    """The JSON before outputs that are all binary: name, datatype and shape of each."""
    outputs = []
    for name, datatype, shape in places:
        parameters = {"binary_data_size": prod(shape) * DTYPES[datatype].itemsize}
        outputs.append(
            {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
        )
    return to_json({"model_name": model, "model_version": version, "outputs": outputs})


def _decode_input(
    tensor: Any, field: str, tail: memoryview, may_hold_booleans: bool
) -> tuple[InputTensor, memoryview]:
    """One input, and the binary data that remain for the inputs after it."""
    if not isinstance(tensor, dict):
        raise InvalidArgument(f"{field}: must be an object.")
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str):
        raise InvalidArgument(f"{field}.name: must be a string.")
    if not isinstance(datatype, str):
        raise InvalidArgument(f"{field}.datatype: must be a string.")
    if not (isinstance(shape, list) and all(type(size) is int for size in shape)):
        raise InvalidArgument(f"{field}.shape: must be a list of whole numbers.")
    parameters = _parameters(tensor, f"{field}.parameters")
    size = parameters.get("binary_data_size")
    region = region_of(f"{field}.parameters", parameters)
    if region is not None or size is not None:
        if "data" in tensor:
            raise InvalidArgument(f"{field}: has data both in JSON and outside it.")
        if region is not None and size is not None:
            raise InvalidArgument(f"{field}: has two places for its data.")
    if region is not None:
        return InputTensor(name, datatype, shape, region=region), tail
    if size is None:
        values = tensor.get("data")
        if not isinstance(values, list):
            raise InvalidArgument(f"{field}.data: must be a list.")
        if datatype == "UINT8" and not may_hold_booleans and (pixels := _pixels(values, shape)):
            return InputTensor(name, datatype, shape, pixels), tail
        return InputTensor(name, datatype, shape, values=values), tail
    if type(size) is not int or not 0 <= size <= len(tail):
        raise InvalidArgument(
            f"{field}.parameters.binary_data_size is {excerpt(size)}, but {len(tail)} bytes of "
            "binary data are left in the body."
        )
    return InputTensor(name, datatype, shape, raw=tail[:size]), tail[size:]


def _pixels(values: list[Any], shape: list[int]) -> bytes | None:
    """Values as bytes, in a third of the time; None or empty if `from_values` must see them."""
    if len(values) > PART:
        return None
    pixels = octets(values, may_hold_booleans=False)
    return pixels if pixels is None or len(pixels) == prod(shape) else None


def _may_hold_booleans(body: bytes) -> bool:
    """Whether `true` or `false` is anywhere in JSON."""
    # Most requests have neither letter, and one byte is found ten times as fast as four.
    return (b"r" in body and b"true" in body) or (b"l" in body and b"false" in body)


def _decode_output(output: Any, field: str) -> tuple[RequestedOutput, bool | None]:
    """A requested output, and its `binary_data` flag or None."""
    if not isinstance(output, dict):
        raise InvalidArgument(f"{field}: must be an object.")
    name = output.get("name")
    if not isinstance(name, str):
        raise InvalidArgument(f"{field}.name: must be a string.")
    if "parameters" not in output:
        return RequestedOutput(name), None
    field = f"{field}.parameters"
    parameters = _parameters(output, field)
    requested = RequestedOutput(
        name, top_classes_of(field, parameters), region_of(field, parameters)
    )
    if "binary_data" not in parameters:
        return requested, None
    return requested, _flag(field, parameters, "binary_data", False)


def _encode_output(output: OutputTensor, binary: bool, blobs: list[bytes]) -> dict[str, Any]:
    name, datatype, array, region = output
    encoded: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
    tensor = Tensor(name, datatype, array)
    if region is not None:
        # Without parameters: Triton's C++ client takes any for those of binary data.
        return encoded
    if binary:
        blob = to_bytes(tensor)
        blobs.append(blob)
        encoded["parameters"] = {"binary_data_size": len(blob)}
    else:
        values = to_values(tensor)
        encoded["data"] = _in_parts(values) if values.size > PART else _listed(values)
    return encoded


def _in_parts(values: Array) -> orjson.Fragment:
    """The JSON of values, made in parts, so that no call holds Python's global lock for long."""
    starts = range(0, values.size, PART)
    parts = [_values_of(values[start : start + PART]) for start in starts]
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


def _write_infinities(encoded: dict[str, Any]) -> None:
    """Put the JSON of an output with infinite values in the place of its values."""
    values = encoded.get("data")
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        encoded["data"] = _in_parts(values)


def _values_of(values: Array) -> bytes:
    """The JSON of values, without the brackets.

    Infinities are as Triton writes them: `null`, as orjson writes them, would be read as NaN.
    """
    text = to_json(_listed(values))[1:-1]
    if values.dtype.kind == "f" and b"null" in text:
        texts = text.split(b",")
        for index in np.flatnonzero(np.isinf(values)).tolist():
            texts[index] = b"Infinity" if values[index] > 0 else b"-Infinity"
        return b",".join(texts)
    return text


def _listed(values: Array) -> Any:
    """Values as orjson takes them."""
    return values.tolist() if values.dtype == object else values


def _parameters(holder: dict[str, Any], field: str) -> Parameters:
    parameters: Any = holder.get("parameters")
    if not parameters:
        return NO_PARAMETERS
    if not isinstance(parameters, dict) or not all(
        isinstance(value, bool | int | float | str) for value in parameters.values()
    ):
        raise InvalidArgument(f"{field}: must be an object of strings, numbers, true and false.")
    return dict(parameters)


def _flag(field: str, parameters: Parameters, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{field}.{name}: must be true or false.")
    return value
