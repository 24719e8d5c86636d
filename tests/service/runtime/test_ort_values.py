from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from service.core.datatypes import DTYPES
from service.core.errors import ModelLoadError
from service.core.tensors import TensorSpec
from service.runtime.ort_values import _DATATYPES, run_ort_values, spec_of
from tests.e2e.onnx_models import publish_identity


def test_the_specs_of_a_session_have_the_protocols_datatypes_and_open_sizes() -> None:
    node = SimpleNamespace(name="x", type="tensor(float)", shape=["batch", 3, None])
    assert spec_of(node) == TensorSpec("x", "FP32", (-1, 3, -1))
    assert set(_DATATYPES.values()) == set(DTYPES)


@pytest.mark.parametrize(
    "kind", ["tensor(complex64)", "seq(tensor(float))", "tensor(float8e4m3fn)"]
)
def test_a_type_that_the_protocol_lacks_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ModelLoadError, match="'x'") as raised:
        spec_of(SimpleNamespace(name="x", type=kind, shape=[1]))
    assert kind in raised.value.message


@pytest.mark.parametrize("datatype", ["BF16", "FP32", "UINT8"])
def test_tensors_pass_through_onnx_runtime_bit_for_bit(tmp_path: Path, datatype: str) -> None:
    publish_identity(tmp_path, datatype)
    model = tmp_path / f"identity_{datatype.lower()}" / "1" / "model.onnx"
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    specs = {node.name: spec_of(node) for node in session.get_inputs()}
    bits = np.random.default_rng(0).integers(0, 256, 5 * 2 * DTYPES[datatype].itemsize, np.uint8)
    # Exponents that are not all ones: the payload of a NaN need not survive.
    array = (bits & 0x3F).view(DTYPES[datatype]).reshape(5, 2)
    names = [node.name for node in session.get_outputs()]
    feed = dict.fromkeys(specs, array)
    (output,) = run_ort_values(session, specs, names, feed, None)
    assert output.dtype == DTYPES[datatype]
    assert output.shape == (5, 2)
    assert output.tobytes() == array.tobytes()
