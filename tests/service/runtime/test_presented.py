from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from service.core.datatypes import MISSING, Array
from service.core.tensors import TensorSpec
from service.runtime.presented import Tensor, present, reshaped


class FakeSession:
    """Gives a scalar per row for `x` [N,2,3], and `x` itself."""

    inputs = (TensorSpec("x", "FP32", (-1, 2, 3)),)
    defaults = (TensorSpec("bias", "FP32", (2, 3)),)
    outputs = (TensorSpec("sum", "FP32", (-1,)), TensorSpec("same", "FP32", (-1, 2, 3)))

    def __init__(self) -> None:
        self.run = self._run

    def _run(self, inputs: Sequence[Array], options: object = None) -> list[Array]:
        x, *bias = inputs
        assert x.shape[1:] == (2, 3)
        if bias and bias[0] is not MISSING:
            x = x + bias[0].reshape(2, 3)
        return [x.sum(axis=(1, 2)), x]


def test_open_sizes_keep_their_order() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    assert reshaped(array, (-1, 3, -1), (-1, 3, -1)) is array
    assert reshaped(array, (-1, 3, -1), (3, -1, 1, -1)).shape == (3, 2, 1, 4)
    assert reshaped(np.ones((1,)), (1,), ()).shape == ()


def test_a_session_takes_and_gives_other_shapes_and_some_outputs() -> None:
    session: Any = FakeSession()
    x = Tensor(0, TensorSpec("x", "FP32", (-1, 6)), (-1, 2, 3))
    same = Tensor(1, TensorSpec("same", "FP32", (-1, 3, 2)), (-1, 2, 3))
    total = Tensor(0, TensorSpec("sum", "FP32", (-1, 1)), (-1,))
    bias = Tensor(1, TensorSpec("bias", "FP32", (6,)), (2, 3))
    present(session, [x, bias], [same, total])
    assert [spec.shape for spec in session.inputs] == [(-1, 6)]
    assert [spec.shape for spec in session.defaults] == [(6,)]
    assert [spec.name for spec in session.outputs] == ["same", "sum"]
    values = np.arange(12.0).reshape(2, 6)
    outputs = session.run([values], None)
    np.testing.assert_array_equal(outputs[0], values.reshape(2, 3, 2))
    np.testing.assert_array_equal(outputs[1], [[15.0], [51.0]])
    np.testing.assert_array_equal(session.run([values, MISSING])[1], [[15.0], [51.0]])
    np.testing.assert_array_equal(session.run([values, np.ones(6)])[1], [[21.0], [57.0]])


def test_a_session_that_is_presented_as_it_is_runs_as_before() -> None:
    session: Any = FakeSession()
    run = session.run
    narrowed = TensorSpec("x", "FP32", (5, 2, 3))
    present(
        session,
        [Tensor(0, narrowed, narrowed.shape)],
        [Tensor(i, spec, spec.shape) for i, spec in enumerate(session.outputs)],
    )
    assert session.run is run
    assert session.inputs == (narrowed,)
