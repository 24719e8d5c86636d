"""Wire formats: how each encodes a request and how its answer is read.

Load generators send one encoded body again and again, so nothing here is timed.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.served_models import Pixels, Probabilities

HEADER_LENGTH = "inference-header-content-length"
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"


class Body(NamedTuple):
    """What a load generator sends: the content and its headers."""

    content: bytes
    headers: tuple[tuple[str, str], ...]


class Wire(NamedTuple):
    """One format. `decode` takes the content of an answer and its headers by lower-case name."""

    name: str
    title: str
    encode: Callable[[Pixels], Body]
    decode: Callable[[bytes, Mapping[str, str]], Probabilities]


def _raw(images: Pixels) -> Body:
    return Body(images.tobytes(), (("content-type", "application/octet-stream"),))


def _png(images: Pixels) -> Body:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, "PNG")
    return Body(file.getvalue(), (("content-type", "image/png"),))


def _base64(images: Pixels) -> Body:
    return _json_body({"image": base64.b64encode(images.tobytes()).decode()})


def _base64_png(images: Pixels) -> Body:
    return _json_body({"image": base64.b64encode(_png(images).content).decode()})


def _lists(images: Pixels) -> Body:
    return _json_body({"images": images.tolist()})


def _json_body(value: Any) -> Body:
    content = json.dumps(value, separators=(",", ":")).encode()
    return Body(content, (("content-type", "application/json"),))


def _json(images: Pixels) -> Body:
    tensor = _input(images) | {"data": images.ravel().tolist()}
    return _json_body({"inputs": [tensor]})


def _binary(images: Pixels) -> Body:
    tensor = _input(images) | {"parameters": {"binary_data_size": images.nbytes}}
    fields = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    header = json.dumps(fields, separators=(",", ":")).encode()
    return Body(
        header + images.tobytes(),
        (("content-type", "application/octet-stream"), (HEADER_LENGTH, str(len(header)))),
    )


def _grpc(images: Pixels) -> Body:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    message = request.SerializeToString()
    return Body(
        b"\0" + struct.pack(">I", len(message)) + message,
        (("content-type", "application/grpc"), ("te", "trailers")),
    )


def _input(images: Pixels) -> dict[str, Any]:
    return {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}


def read_plain(content: bytes, headers: Mapping[str, str]) -> Probabilities:
    """Probabilities [N,10] from the JSON answer to raw pixels or a PNG.

    A contender may answer with rows, with rows under "probabilities", or with one object per image
    under "predictions".
    """
    answer = json.loads(content)
    if isinstance(answer, dict) and "predictions" in answer:
        answer = [row["probabilities"] for row in answer["predictions"]]
    elif isinstance(answer, dict):
        answer = answer["probabilities"]
    return np.asarray(answer, np.float32).reshape(-1, 10)


def read_inference(content: bytes, headers: Mapping[str, str]) -> Probabilities:
    """Probabilities [N,10] from an Open Inference Protocol answer, JSON or binary tensors."""
    length = int(headers.get(HEADER_LENGTH, len(content)))
    start = length
    for output in json.loads(content[:length])["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        if output["name"] == "probabilities":
            if size is None:
                return np.asarray(output["data"], np.float32).reshape(output["shape"])
            raw = content[start : start + size]
            return np.frombuffer(raw, "<f4").reshape(output["shape"])
        start += size or 0
    raise ValueError("The answer has no output named 'probabilities'.")


def read_grpc(content: bytes, headers: Mapping[str, str]) -> Probabilities:
    """Probabilities [N,10] from a ModelInferResponse without its gRPC frame, raw or typed."""
    from tritonclient.grpc import service_pb2

    answer = service_pb2.ModelInferResponse.FromString(content)
    for index, output in enumerate(answer.outputs):
        if output.name == "probabilities":
            if answer.raw_output_contents:
                values = np.frombuffer(answer.raw_output_contents[index], "<f4")
            else:
                values = np.asarray(output.contents.fp32_contents, np.float32)
            return values.reshape(tuple(output.shape))
    raise ValueError("The answer has no output named 'probabilities'.")


WIRES: Mapping[str, Wire] = {
    wire.name: wire
    for wire in (
        Wire(name="raw", title="raw pixels", encode=_raw, decode=read_plain),
        Wire(
            name="json", title="Open Inference Protocol, JSON", encode=_json, decode=read_inference
        ),
        Wire(
            name="binary",
            title="Open Inference Protocol, binary tensors",
            encode=_binary,
            decode=read_inference,
        ),
        Wire(name="png", title="PNG", encode=_png, decode=read_plain),
        # Substitutes for rivals that accept neither raw pixels nor a PNG.
        Wire(name="base64", title="raw pixels, base64 in JSON", encode=_base64, decode=read_plain),
        Wire(name="base64-png", title="PNG, base64 in JSON", encode=_base64_png, decode=read_plain),
        Wire(name="lists", title="lists in JSON", encode=_lists, decode=read_plain),
        Wire(name="grpc", title="gRPC ModelInfer", encode=_grpc, decode=read_grpc),
    )
}
