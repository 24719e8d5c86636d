"""The Open Inference Protocol over HTTP with JSON bodies.

Source: Open Inference Protocol (KServe V2), "HTTP/REST". Unknown fields are ignored, as it says.
"""

from __future__ import annotations

from typing import Any

from service import SERVER_NAME, __version__
from service.core.errors import InvalidArgument
from service.core.tensors import TensorSpec, datatype_of
from service.http.digits import parse_json
from service.http.message import HttpRequest, HttpResponse, json_response
from service.operations import InferRequest, InputTensor, Operations


async def infer(
    operations: Operations, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """POST v2/models/{model}[/versions/{version}]/infer."""
    answer = await operations.infer(decode(parse_json(request.body), model, version))
    body: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        body["id"] = answer.id
    body["outputs"] = [
        {
            "name": name,
            "datatype": datatype_of(array.dtype),
            "shape": array.shape,
            "data": array.ravel(),
        }
        for name, array in answer.outputs
    ]
    return json_response(body)


async def server_metadata(operations: Operations, request: HttpRequest) -> HttpResponse:
    """GET v2."""
    return json_response({"name": SERVER_NAME, "version": __version__, "extensions": []})


async def model_metadata(
    operations: Operations, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """GET v2/models/{model}[/versions/{version}], and the execution provider in use."""
    found = operations.model_metadata(model, version)
    return json_response(
        {
            "name": found.name,
            "versions": found.versions,
            "platform": found.platform,
            "inputs": [_spec(spec) for spec in found.inputs],
            "outputs": [_spec(spec) for spec in found.outputs],
            "parameters": {
                "execution_provider": found.provider,
                "execution_provider_fallback": found.fallback,
            },
        }
    )


async def model_ready(
    operations: Operations, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """GET v2/models/{model}[/versions/{version}]/ready."""
    found = operations.repository.get(model, version)
    return json_response({"name": found.name, "ready": True})


async def live(operations: Operations, request: HttpRequest) -> HttpResponse:
    """GET v2/health/live: the process answers."""
    return json_response({"live": True})


async def ready(operations: Operations, request: HttpRequest) -> HttpResponse:
    """GET v2/health/ready: 200 when requests are welcome, else 503; the body says why."""
    state = operations.readiness()
    body = {"ready": state.ready, "reason": state.reason, "failures": state.failures}
    return json_response(body, 200 if state.ready else 503)


def decode(body: Any, model: str, version: str) -> InferRequest:
    """A parsed JSON body as a request. Raises InvalidArgument naming the field that is wrong."""
    _want(isinstance(body, dict), "The body must be a JSON object.")
    request_id, inputs = body.get("id", ""), body.get("inputs")
    outputs = body.get("outputs", [])
    _want(isinstance(request_id, str), "id: must be a string.")
    _want(isinstance(inputs, list) and bool(inputs), "inputs: must be a list of tensors.")
    _want(isinstance(outputs, list), "outputs: must be a list.")
    return InferRequest(
        model,
        version,
        [_decode_input(tensor, f"inputs[{i}]") for i, tensor in enumerate(inputs)],
        [_decode_output(output, f"outputs[{i}]") for i, output in enumerate(outputs)],
        request_id,
    )


def _decode_input(tensor: Any, field: str) -> InputTensor:
    _want(isinstance(tensor, dict), f"{field}: must be an object.")
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    _want(isinstance(name, str), f"{field}.name: must be a string.")
    _want(isinstance(datatype, str), f"{field}.datatype: must be a string.")
    _want(
        isinstance(shape, list) and all(type(size) is int for size in shape),
        f"{field}.shape: must be a list of whole numbers.",
    )
    _want(isinstance(tensor.get("data"), list), f"{field}.data: must be a list.")
    return InputTensor(name, datatype, shape, values=tensor["data"])


def _decode_output(output: Any, field: str) -> str:
    _want(isinstance(output, dict), f"{field}: must be an object.")
    name = output.get("name")
    _want(isinstance(name, str), f"{field}.name: must be a string.")
    return str(name)


def _want(condition: bool, otherwise: str) -> None:
    if not condition:
        raise InvalidArgument(otherwise)


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
