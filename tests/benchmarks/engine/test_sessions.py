"""The options of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import served_models
from benchmarks.engine.sessions import CONFIGURATIONS, Configuration, make_run, write_files


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("model", served_models.NAMES)
def test_every_configuration_gives_the_answers_of_the_default(
    model: str, configuration: Configuration, tmp_path: Path
):
    files = write_files(model, tmp_path)
    images = served_models.test_images(130)
    expected = make_run(CONFIGURATIONS[0], files)(images)
    outputs = make_run(configuration, files)(images)
    assert len(outputs) == len(expected) >= 2  # logits and probabilities at least
    for output, right in zip(outputs, expected, strict=True):
        assert output.dtype == right.dtype
        np.testing.assert_allclose(output.astype(np.float32), right.astype(np.float32), atol=1e-5)
