"""Finds the model that comes with the package, for a server without a model repository."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped_models() -> Path | None:
    """The repository with the shipped model, or None if this installation lacks it.

    A wheel holds it below service/, where setup.py copies it. A source tree and an editable
    installation hold it in models/, beside service/.
    """
    for repository in (_PACKAGE / "shipped_models", _PACKAGE.parent / "models"):
        if any(repository.glob("mnist/*/model.onnx")):
            return repository
    return None
