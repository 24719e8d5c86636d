"""An inference request and its answer as plain values: what every transport decodes to.

A transport turns its bytes into an `InferRequest` without copying tensors, and an `InferResponse`
back into bytes. Parameters are dictionaries of plain values by then, so that their meaning is
here, once.

Source: Open Inference Protocol (KServe V2), "Inference Request Object"; the parameters are those
of Triton's extensions "schedule policy", "sequence", "classification" and "shared memory".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.core.datatypes import Array, Buffer
from service.core.errors import InvalidArgument

Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]
NO_PARAMETERS: Parameters = {}


class RegionSlice(NamedTuple):
    """A part of a registered shared memory region; offset and size in bytes."""

    name: str
    offset: int
    byte_size: int


class InputTensor(NamedTuple):
    """A tensor as it came: `raw` little-endian bytes, `values` nested or flat, or in a region."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: Buffer | None = None
    values: Any = None
    region: RegionSlice | None = None


class RequestedOutput(NamedTuple):
    """An output that is wanted: whole, or its `top_classes` largest values with their labels.

    With a region its contents are written there instead of into the answer.
    """

    name: str
    top_classes: int = 0
    region: RegionSlice | None = None


class InferRequest(NamedTuple):
    """A request of the Open Inference Protocol.

    `outputs` empty means all of them; `deadline` is in the event loop's time; `size` is in bytes
    what its `values` came in.
    """

    model: str
    version: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    id: str = ""
    parameters: Parameters = NO_PARAMETERS
    deadline: float | None = None
    size: int = 0


class OutputTensor(NamedTuple):
    """A tensor of the answer; `region` says where its contents are if they are not to be sent."""

    name: str
    datatype: str
    array: Array
    region: RegionSlice | None = None


class InferResponse(NamedTuple):
    """The answer to an InferRequest."""

    model: str
    version: str
    id: str
    outputs: list[OutputTensor]


def region_of(field: str, parameters: Parameters) -> RegionSlice | None:
    """The shared memory that the parameters of a tensor name, if they do.

    Raises InvalidArgument, naming `field`, where they do so in part or in the wrong types.
    """
    name = parameters.get("shared_memory_region")
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{field}: shared_memory_region must be a name.")
    size = _whole(field, parameters, "shared_memory_byte_size")
    if not size:
        raise InvalidArgument(f"{field}: shared_memory_byte_size is missing or 0.")
    return RegionSlice(name, _whole(field, parameters, "shared_memory_offset"), size)


def top_classes_of(field: str, parameters: Parameters) -> int:
    """How many classes are wanted of an output; 0 for the output itself. Raises InvalidArgument."""
    return _whole(field, parameters, "classification")


def timeout_of(parameters: Parameters) -> float | None:
    """Seconds that the parameters give the request, None if they set no limit.

    Raises InvalidArgument for a scheduling or sequence parameter of the wrong type. `priority` and
    `sequence_*` have no effect: no model here keeps state, and all requests are equal.
    """
    _whole("parameters", parameters, "priority")
    if isinstance(parameters.get("sequence_id", 0), float | bool):
        raise InvalidArgument("parameters: sequence_id must be a whole number or a string.")
    for name in ("sequence_start", "sequence_end"):
        if not isinstance(parameters.get(name, False), bool):
            raise InvalidArgument(f"parameters: {name} must be true or false.")
    microseconds = _whole("parameters", parameters, "timeout")
    return microseconds / 1e6 if microseconds else None


def _whole(field: str, parameters: Parameters, name: str) -> int:
    """A parameter that is a whole number from 0 up; 0 where it is not given."""
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidArgument(f"{field}: {name} must be a whole number from 0 up.")
    return value
