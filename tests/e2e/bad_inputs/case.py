"""What a case of the table is, and builders of requests."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2 as pb

_NONE: Mapping[str, Any] = MappingProxyType({})

# Kinds of errors: HTTP status and gRPC code, as docs/api.md pairs them.
Kind = tuple[int, str]
INVALID: Kind = (400, "INVALID_ARGUMENT")
TOO_LARGE: Kind = (413, "INVALID_ARGUMENT")
NOT_FOUND: Kind = (404, "NOT_FOUND")
LATE: Kind = (504, "DEADLINE_EXCEEDED")
EXISTS: Kind = (409, "ALREADY_EXISTS")
FORBIDDEN: Kind = (403, "PERMISSION_DENIED")
UNIMPLEMENTED: Kind = (501, "UNIMPLEMENTED")
FAILED: Kind = (400, "FAILED_PRECONDITION")


class Http(NamedTuple):
    """Bytes on an HTTP/1.1 connection, and what they are answered with.

    `words` are in the sentence of the answer. `closes` says that the connection ends after the
    answer, and `is_request` is False for bytes that are not an HTTP request.
    """

    name: str
    content: bytes
    status: int
    words: str
    closes: bool = False
    is_request: bool = True


class Grpc(NamedTuple):
    """A call: its path, its DATA frames, changes to its headers, its status and what that names.

    A header that is None is left out. `fronts` is "both", or "own" where only the server's own
    front says what is written here: grpcio answers otherwise, or not at all.
    """

    name: str
    path: str
    data: Sequence[bytes]
    code: str
    words: str
    headers: Mapping[str, str | None] = _NONE
    fronts: str = "both"


class Frames(NamedTuple):
    """Frames of a client after its preface and SETTINGS, and how the server reacts.

    The reaction is "goaway CODE", which ends the connection, "reset CODE", which ends stream 1, or
    "http STATUS", an answer to stream 1 that is not gRPC's.
    """

    name: str
    content: bytes
    reaction: str


def request(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str | None] = _NONE
) -> bytes:
    """An HTTP/1.1 request; a header that is None is left out."""
    fields: dict[str, str | None] = {"Host": "localhost", "Content-Length": str(len(body))}
    fields |= headers
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    start = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
    return start.encode("utf-8", "surrogateescape") + body


def post(path: str, body: bytes | Any, kind: str = "application/json", **headers: str) -> bytes:
    """A POST request of bytes, or of a value as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("POST", path, content, {"Content-Type": kind} | named)


def framed(content: bytes | Any, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message, of bytes or of a protobuf message, with its prefix."""
    content = content if isinstance(content, bytes) else content.SerializeToString()
    return struct.pack(">BI", flag, len(content) if length is None else length) + content


INFERENCE = "/inference.GRPCInferenceService"


def call(name: str, method: str, message: Any, code: str, words: str, fronts: str = "both") -> Grpc:
    """A call of the inference service with one message."""
    return Grpc(name, f"{INFERENCE}/{method}", [framed(message)], code, words, fronts=fronts)


class Tensor(NamedTuple):
    """An input of a request in any form; `raw` is its content in binary, `data` in JSON.

    With None for either, a request in that form is not made.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: Any = None
    raw: bytes | None = None
    typed: Mapping[str, Sequence[Any]] | None = None
    parameters: Mapping[str, Any] = _NONE


def infer(
    name: str,
    kind: Kind,
    words: str,
    *tensors: Tensor,
    model: str = "mnist",
    version: str = "",
    outputs: Sequence[Mapping[str, Any]] = (),
    parameters: Mapping[str, Any] = _NONE,
    request_id: str = "",
) -> list[Http | Grpc]:
    """The same inference request over HTTP as JSON and as binary, over gRPC as raw and typed."""
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    status, code = kind
    more = {"outputs": outputs, "parameters": parameters, "id": request_id}
    more = {key: value for key, value in more.items() if value}
    cases: list[Http | Grpc] = []
    if all(tensor.data is not None or tensor.parameters for tensor in tensors):
        inputs = [_json(tensor) for tensor in tensors]
        cases.append(Http(name, post(path, {"inputs": inputs, **more}), status, words))
    if tensors and all(tensor.raw is not None for tensor in tensors):
        header = json.dumps({"inputs": [_binary(tensor) for tensor in tensors], **more}).encode()
        body = header + b"".join(tensor.raw or b"" for tensor in tensors)
        length = str(len(header))
        content = post(
            path, body, "application/octet-stream", Inference_Header_Content_Length=length
        )
        cases.append(Http(name, content, status, words))
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    _fill(message.parameters, parameters)
    for output in outputs:
        requested = message.outputs.add(name=output["name"])
        _fill(requested.parameters, output.get("parameters", {}))
    if any(not -(2**63) <= size < 2**63 for tensor in tensors for size in tensor.shape):
        return cases
    for tensor in tensors:
        entry = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _fill(entry.parameters, tensor.parameters)
    typed = pb.ModelInferRequest()
    typed.CopyFrom(message)
    in_memory = [t for t in tensors if "shared_memory_region" in t.parameters]
    if in_memory or all(tensor.raw is not None for tensor in tensors):
        message.raw_input_contents.extend([t.raw for t in tensors if t.raw is not None])
        cases.append(call(name, "ModelInfer", message, code, words))
    if tensors and all(tensor.typed is not None for tensor in tensors):
        for entry, tensor in zip(typed.inputs, tensors, strict=True):
            entry.contents.SetInParent()
            for field, values in (tensor.typed or {}).items():
                getattr(entry.contents, field).extend(values)
        cases.append(call(name, "ModelInfer", typed, code, words))
    assert cases, name
    return cases


def _json(tensor: Tensor) -> dict[str, Any]:
    fields = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.data is not None:
        fields["data"] = tensor.data
    return fields | ({"parameters": dict(tensor.parameters)} if tensor.parameters else {})


def _binary(tensor: Tensor) -> dict[str, Any]:
    size = {"binary_data_size": len(tensor.raw or b"")}
    return _json(tensor._replace(data=None)) | {"parameters": {**tensor.parameters, **size}}


def _fill(parameters: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        else:
            parameters[name].string_param = value
