"""Where the shipped model lies, and when the settings choose it. The wheel: e2e/test_install.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.repository.shipped import shipped_models
from service.settings import load
from tests.conftest import SHIPPED_MODELS


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_source_tree_ships_the_model_that_git_has() -> None:
    assert shipped_models() == SHIPPED_MODELS


def test_it_is_the_default_where_no_repository_is() -> None:
    assert load([], {}).models == SHIPPED_MODELS


def test_a_folder_models_wins_even_if_it_is_empty(empty_folder: Path) -> None:
    (empty_folder / "models").mkdir()
    assert load([], {}).models == Path("models")


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [(["--models", "models"], {}), ([], {"MNIST_MODELS": "models"})],
    ids=["flag", "environment"],
)
def test_a_repository_that_is_named_is_never_replaced(
    arguments: list[str], environ: dict[str, str]
) -> None:
    assert load(arguments, environ).models == Path("models")


def test_an_installation_without_a_model_keeps_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.repository.shipped._PACKAGE", Path("nowhere", "service"))
    assert shipped_models() is None
    assert load([], {}).models == Path("models")
