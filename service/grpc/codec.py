"""Inference requests and answers as messages, their tensors raw or typed.

Source: Open Inference Protocol (KServe V2), "gRPC" and "Raw Tensor Contents".
"""

from __future__ import annotations

from typing import Any

from service.core.datatypes import BYTES
from service.core.errors import InvalidArgument
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
from service.core.tensors import Tensor, to_bytes
from service.stubs.inference import inference_pb2 as pb

# Datatype -> the field of InferTensorContents that carries it. FP16 and BF16 travel raw only.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def is_typed(request: pb.ModelInferRequest) -> bool:
    """Whether the request has its tensors as typed contents, and so wants its answer."""
    return any(tensor.HasField("contents") for tensor in request.inputs)


def decode(request: pb.ModelInferRequest, deadline: float | None) -> InferRequest:
    """A message as a request; raw contents are passed on as they are.

    Raises InvalidArgument if there are raw contents and typed ones, or not one raw for each input
    that is not in shared memory, or a parameter that means something else than it says.
    """
    raws = list(request.raw_input_contents)
    if raws and is_typed(request):
        raise InvalidArgument("Some inputs have contents although raw_input_contents is used.")
    inputs = []
    left = iter(raws)
    for tensor in request.inputs:
        region = None
        if tensor.parameters:
            field = f"Input '{tensor.name}'"
            region = region_of(field, parameters_of(tensor.parameters))
        if region is not None:
            raw = values = None
            if tensor.HasField("contents"):
                raise InvalidArgument(f"Input '{tensor.name}' has two places for its data.")
        elif raws:
            raw, values = next(left, None), None
            if raw is None:
                raise _miscounted(request)
        else:
            raw, values = None, _typed(tensor)
        inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, raw, values, region))
    if next(left, None) is not None:
        raise _miscounted(request)
    return InferRequest(
        request.model_name,
        request.model_version,
        inputs,
        [_wanted(output) for output in request.outputs],
        request.id,
        parameters_of(request.parameters) if request.parameters else NO_PARAMETERS,
        deadline,
        size=0 if raws else request.ByteSize(),
    )


def encode(answer: InferResponse, typed: bool) -> pb.ModelInferResponse:
    """An answer as a message. It is raw even if it was to be typed where a datatype travels raw.

    Raw contents have an entry for each output, empty for one in shared memory: tritonclient finds
    them by the place of their output.
    """
    typed = typed and all(output.datatype in _CONTENTS for output in answer.outputs)
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=answer.id,
        outputs=[_output(output, typed) for output in answer.outputs],
        raw_output_contents=() if typed else [_raw(output) for output in answer.outputs],
    )


def parameters_of(fields: Any) -> Parameters:
    """A map of InferParameter, or of another message with parameter_choice, as plain values.

    A parameter that holds nothing is as good as none.
    """
    choices = {name: field.WhichOneof("parameter_choice") for name, field in fields.items()}
    return {name: getattr(fields[name], choice) for name, choice in choices.items() if choice}


def _wanted(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> RequestedOutput:
    if not output.parameters:
        return RequestedOutput(output.name)
    field, parameters = f"Output '{output.name}'", parameters_of(output.parameters)
    return RequestedOutput(
        output.name, top_classes_of(field, parameters), region_of(field, parameters)
    )


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> list[object]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidArgument(
            f"Input '{tensor.name}': datatype '{tensor.datatype}' has no typed contents; "
            "send raw_input_contents."
        )
    if any(descriptor.name != field for descriptor, _ in tensor.contents.ListFields()):
        raise InvalidArgument(
            f"Input '{tensor.name}' is {tensor.datatype}, so its values belong into {field} alone."
        )
    return list(getattr(tensor.contents, field))


def _output(output: OutputTensor, typed: bool) -> pb.ModelInferResponse.InferOutputTensor:
    name, datatype, array, region = output
    made = pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=array.shape)
    if region is not None:
        made.parameters["shared_memory_region"].string_param = region.name
        made.parameters["shared_memory_offset"].int64_param = region.offset
        made.parameters["shared_memory_byte_size"].int64_param = region.byte_size
    elif typed:
        values = array.ravel().tolist()
        if datatype == BYTES:
            values = [value.encode() for value in values]
        getattr(made.contents, _CONTENTS[datatype]).extend(values)
    return made


def _raw(output: OutputTensor) -> bytes:
    if output.region is not None:
        return b""
    return to_bytes(Tensor(output.name, output.datatype, output.array))


def _miscounted(request: pb.ModelInferRequest) -> InvalidArgument:
    return InvalidArgument(
        f"raw_input_contents: has {len(request.raw_input_contents)} entries, but must have one "
        f"for each of the {len(request.inputs)} inputs that is not in shared memory."
    )
