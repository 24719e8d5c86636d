from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.core.errors import InvalidArgument
from tests.service.composition import Operations
from tests.service.linear_model import WEIGHTS, publish_linear, run_with_operations

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 28, 28), np.uint8)


def test_logits_of_a_foreign_model_become_probabilities(tmp_path: Path) -> None:
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})

    async def scenario(operations: Operations) -> None:
        answer = await operations.digits.classify(values=PIXELS)
        logits = (PIXELS.reshape(3, 784) / np.float32(255)) @ WEIGHTS
        expected = np.exp(logits - logits.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        for prediction, row in zip(answer.rows, expected, strict=True):
            assert np.abs(prediction.probabilities - row).max() < 1e-5
            assert prediction.digit == row.argmax()
            assert 0 <= prediction.entropy_bits <= np.log2(10)

    run_with_operations(tmp_path, scenario)


def test_model_whose_output_kind_is_unknown_does_not_classify(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="output_kinds"):
            await operations.digits.classify(values=PIXELS)

    run_with_operations(tmp_path, scenario)
