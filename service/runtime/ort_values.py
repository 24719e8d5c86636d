"""ONNX Runtime's tensors as numpy arrays, bfloat16 included, which numpy lacks."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from service.core.datatypes import BF16, BYTES, DTYPES, Array
from service.core.errors import ModelLoadError
from service.core.tensors import TensorSpec

# ONNX Runtime's name of a tensor's type -> the protocol's datatype.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": BF16,
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
    **{
        f"tensor({sign}int{size})": f"{sign.upper()}INT{size}"
        for sign in ("u", "")
        for size in (8, 16, 32, 64)
    },
}
# The protocol's datatype -> its number in onnx.TensorProto.DataType.
ONNX_TYPES = {
    "FP32": 1,
    "UINT8": 2,
    "INT8": 3,
    "UINT16": 4,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    BYTES: 8,
    "BOOL": 9,
    "FP16": 10,
    "FP64": 11,
    "UINT32": 12,
    "UINT64": 13,
    BF16: 16,
}
_OPTIONAL = re.compile(r"optional\((.*)\)")


class RunsOrtValues(Protocol):
    """What runs on ONNX Runtime's own tensors: an InferenceSession, or one on a device."""

    def run_with_ort_values(
        self,
        output_names: Sequence[str],
        feed: Mapping[str, ort.OrtValue],
        run_options: ort.RunOptions | None = None,
        /,
    ) -> list[ort.OrtValue]: ...


def spec_of(node: Any, unranked: Container[str] = ()) -> TensorSpec:
    """An input or output of a session, which shows one of the `unranked` as a scalar.

    Raises ModelLoadError for a type that cannot be served.
    """
    inner = _OPTIONAL.fullmatch(node.type)
    datatype = _DATATYPES.get(inner[1] if inner else node.type)
    if datatype is None:
        raise ModelLoadError(f"tensor '{node.name}' is a {node.type}, which is not supported")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    if not shape and node.name in unranked:
        return TensorSpec(node.name, datatype, (-1,), has_rank=False, is_optional=bool(inner))
    return TensorSpec(node.name, datatype, shape, is_optional=bool(inner))


def outputs_of(
    session: ort.InferenceSession, unranked: Container[str] = ()
) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """The outputs of a session that can be served, and what the others are.

    Raises ModelLoadError if none can.
    """
    served, others = [], []
    for node in session.get_outputs():
        try:
            served.append(spec_of(node, unranked))
        except ModelLoadError:
            others.append(f"output '{node.name}' ({node.type} is not supported)")
            if len(others) == len(session.get_outputs()):
                raise
    return tuple(served), others


def run_ort_values(
    session: RunsOrtValues,
    specs: Mapping[str, TensorSpec],
    output_names: Sequence[str],
    feed: Mapping[str, Array],
    options: ort.RunOptions | None,
) -> list[Array]:
    """Run a model that has bfloat16 tensors: ONNX Runtime's `run` takes numpy arrays only."""
    values = {name: _as_ort_value(specs[name], array) for name, array in feed.items()}
    return [
        _as_array(value) for value in session.run_with_ort_values(output_names, values, options)
    ]


def _as_ort_value(spec: TensorSpec, array: Array) -> ort.OrtValue:
    if spec.datatype == BF16:
        bits = np.ascontiguousarray(array)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_TYPES[BF16])
    return ort.OrtValue.ortvalue_from_numpy(array)


def _as_array(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    size = value.tensor_size_in_bytes()
    bits = np.frombuffer(ctypes.string_at(value.data_ptr(), size), DTYPES[BF16])
    return bits.reshape(value.shape())
