"""The options of python -m benchmarks.engine."""

from __future__ import annotations

import pytest

from benchmarks.engine.__main__ import main


def test_an_unknown_model_is_refused_with_the_names_of_the_models(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--models", "fast,none"]) == 2
    assert capsys.readouterr().err == "engine: Unknown model 'none'; use fast or mlp.\n"
