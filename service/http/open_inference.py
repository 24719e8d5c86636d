"""The Open Inference Protocol over HTTP: health, metadata and inference.

Source: Open Inference Protocol (KServe V2), "HTTP/REST".
"""

from __future__ import annotations

from typing import Any

from service import __version__
from service.core.off_loop import INLINE_BYTES, off_loop
from service.core.tensors import TensorSpec
from service.http.codec import ALL_BINARY, decode, encode, header_length
from service.http.message import HttpRequest, HttpResponse, check_json_size, json_response
from service.operations.inference import Inference


async def infer(
    inference: Inference, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """POST v2/models/{model}[/versions/{version}]/infer."""
    json_bytes = header_length(request)
    if json_bytes == 0:
        raw = inference.raw_request(model, version, request.body, request.caller)
        return encode(await inference.infer(raw, request.trace), ALL_BINARY)
    size = len(request.body) if json_bytes is None else json_bytes
    limit = inference.max_json_bytes
    check_json_size(size, limit)
    if size > INLINE_BYTES:
        decoding = off_loop(decode, request, json_bytes, model, version, limit, size=size)
        decoded, binary = await decoding
    else:
        decoded, binary = decode(request, json_bytes, model, version, limit)
    answer = await inference.infer(decoded, request.trace)
    if sum([output.array.nbytes for output in answer.outputs]) > INLINE_BYTES:
        size = sum([output.slow_bytes(binary.of(output.name)) for output in answer.outputs])
        if size > INLINE_BYTES:
            return await off_loop(encode, answer, binary, size=size)
    return encode(answer, binary)


async def server_metadata(inference: Inference, request: HttpRequest) -> HttpResponse:
    """GET v2."""
    return json_response(
        {
            "name": inference.server_name,
            "version": __version__,
            "extensions": inference.extensions(),
        }
    )


async def model_metadata(
    inference: Inference, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """GET v2/models/{model}[/versions/{version}].

    `parameters` say which execution provider runs the model, and whether requests are batched.
    """
    metadata = inference.model_metadata(model, version)
    return json_response(
        {
            "name": metadata.name,
            "versions": metadata.versions,
            "platform": metadata.platform,
            "inputs": [_spec(spec) for spec in metadata.inputs],
            "outputs": [_spec(spec) for spec in metadata.outputs],
            "parameters": metadata.properties,
        }
    )


async def model_ready(
    inference: Inference, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """GET v2/models/{model}[/versions/{version}]/ready."""
    served = inference.repository.get(model, version)
    return json_response({"name": served.name, "ready": True})


async def live(inference: Inference, request: HttpRequest) -> HttpResponse:
    """GET v2/health/live: the process answers."""
    return json_response({"live": True})


async def ready(inference: Inference, request: HttpRequest) -> HttpResponse:
    """GET v2/health/ready: 200 if the server takes requests, else 503; the body says why.

    It names no models to callers that may not read. The log and the repository index name them.
    """
    state = inference.readiness()
    body = {"ready": state.ready, "reason": state.reason, "failures": state.failures}
    if inference.hides_models:
        reason = "" if state.ready else "The server is stopping, or a model is not loaded."
        body |= {"reason": reason, "failures": {}}
    return json_response(body, 200 if state.ready else 503)


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
