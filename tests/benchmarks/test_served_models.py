"""The models that every contender serves."""

from __future__ import annotations

from benchmarks.paths import ROOT
from benchmarks.served_models import repository


def test_shipped_model_is_served_with_its_card():
    version = repository("fast") / "mnist" / "1"
    for name in ("model.onnx", "model.json"):
        shipped = ROOT / "models" / "mnist" / "2" / name
        assert (version / name).read_bytes() == shipped.read_bytes()
