"""An inference request and its response as plain values, the same for every transport.

A transport decodes its bytes into an `InferRequest`, without copying tensors, and encodes an
`InferResponse`. Parameters arrive here as dictionaries of plain values, so their meaning is defined
here, once.

Source: Open Inference Protocol (KServe V2), "Inference Request Object"; the parameters are those
of Triton's extensions "schedule policy", "sequence", "classification" and "shared memory".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.core.datatypes import BYTES, Array, Buffer
from service.core.errors import InvalidArgument

Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]
NO_PARAMETERS: Parameters = {}


# Parameters that are accepted, and why they change nothing.
_STATELESS = "no model here keeps state between requests"
_WITHOUT_EFFECT = {
    "priority": "all requests are equal",
    "sequence_id": _STATELESS,
    "sequence_start": _STATELESS,
    "sequence_end": _STATELESS,
}
_SCHEDULING = frozenset({"timeout", *_WITHOUT_EFFECT})


class RegionSlice(NamedTuple):
    """A slice of a registered shared memory region; offset and size in bytes."""

    name: str
    offset: int
    byte_size: int


class InputTensor(NamedTuple):
    """An input as it arrived: `raw` little-endian bytes, `values` nested or flat, or a region."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: Buffer | None = None
    values: Any = None
    region: RegionSlice | None = None


class RequestedOutput(NamedTuple):
    """An output to return: whole, or its `top_classes` largest values with their labels.

    With a region, its contents are written there instead of into the response.
    """

    name: str
    top_classes: int = 0
    region: RegionSlice | None = None


class InferRequest(NamedTuple):
    """A request of the Open Inference Protocol.

    If `outputs` is empty, all outputs are returned. `deadline` is in the event loop's time.
    `size` is the number of bytes from which the `values` of its inputs were parsed. `caller` is
    who sent it (core.callers).
    """

    model: str
    version: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    id: str = ""
    parameters: Parameters = NO_PARAMETERS
    deadline: float | None = None
    size: int = 0
    caller: str = ""


class OutputTensor(NamedTuple):
    """An output of the response. If it has a `region`, its contents are there and are not sent."""

    name: str
    datatype: str
    array: Array
    region: RegionSlice | None = None

    def slow_bytes(self, is_binary: bool) -> int:
        """Bytes to encode value by value; few if it `is_binary`: its memory is copied as it is."""
        size = int(self.array.nbytes)
        return size // 16 if is_binary and self.datatype != BYTES else size


class InferResponse(NamedTuple):
    """The response to an InferRequest; `warning` is for its parameters, if not empty."""

    model: str
    version: str
    id: str
    outputs: list[OutputTensor]
    warning: str = ""


def region_of(field: str, parameters: Parameters) -> RegionSlice | None:
    """The shared memory that the parameters of a tensor name, or None.

    Raises InvalidArgument, naming `field`, if a parameter is missing or has the wrong type.
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
    """The number of classes to return of an output; 0 for the output itself.

    Raises InvalidArgument, naming `field`.
    """
    return _whole(field, parameters, "classification")


def scheduling_of(parameters: Parameters) -> tuple[float | None, str]:
    """The request's timeout in seconds or None, and a warning of parameters without effect.

    Those are `priority`, as all requests are equal, and `sequence_*`, as models keep no state.
    Raises InvalidArgument for a scheduling or sequence parameter of the wrong type.
    """
    if parameters.keys().isdisjoint(_SCHEDULING):
        return None, ""
    _whole("parameters", parameters, "priority")
    if isinstance(parameters.get("sequence_id", 0), float | bool):
        raise InvalidArgument("parameters: sequence_id must be a whole number or a string.")
    for name in ("sequence_start", "sequence_end"):
        if not isinstance(parameters.get(name, False), bool):
            raise InvalidArgument(f"parameters: {name} must be true or false.")
    microseconds = _whole("parameters", parameters, "timeout")
    # 0, "" and false are what clients send for parameters that are not set.
    ignored = [name for name in _WITHOUT_EFFECT if parameters.get(name)]
    warning = (
        f"{', '.join(ignored)}: without effect; {_WITHOUT_EFFECT[ignored[0]]}." if ignored else ""
    )
    return microseconds / 1e6 if microseconds else None, warning


def _whole(field: str, parameters: Parameters, name: str) -> int:
    """A parameter that is a whole number from 0 up; 0 if it is missing."""
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidArgument(f"{field}: {name} must be a whole number from 0 up.")
    return value
