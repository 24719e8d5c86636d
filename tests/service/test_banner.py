from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from service.banner import banner
from service.check.models import load_models
from service.repository.models import ServedModel
from service.settings import Settings
from tests.conftest import SHIPPED_MODELS

SETTINGS = Settings(models=SHIPPED_MODELS, workers=3)


@pytest.fixture(scope="module")
def models() -> list[ServedModel]:
    """The newest version that ships."""
    return load_models(SETTINGS).repository.loaded[:1]


def rows(settings: Settings, models: Sequence[ServedModel]) -> dict[str, str]:
    """The banner at 80 columns, label -> text."""
    lines = banner(settings, models, 80)
    assert all(len(line) <= 80 for line in lines)
    return {line[:14].strip(): line[14:] for line in lines if line[:14].strip()}


def test_it_says_where_what_and_how(models: list[ServedModel]) -> None:
    shown = rows(SETTINGS, models)
    assert shown["Playground"] == "http://127.0.0.1:8000/"
    assert shown["gRPC"] == "127.0.0.1:8001"
    assert shown["Metrics"] == "http://127.0.0.1:8000/metrics"
    accuracy = json.loads(models[0].card_file.read_bytes())["accuracy"]
    version = models[0].version
    assert shown["Model"] == f"mnist version {version}, {accuracy:.2%} of its test images right"
    assert shown["Provider"].startswith("C")
    assert shown["Workers"] == "3"
    assert "Health" not in shown


def test_addresses_can_be_opened_as_they_stand(models: list[ServedModel]) -> None:
    everywhere = rows(replace(SETTINGS, host="0.0.0.0", health_port=8002, playground=False), models)
    assert everywhere["HTTP"] == "http://127.0.0.1:8000/"
    assert everywhere["Health"] == "http://127.0.0.1:8002/v2/health/ready"
    assert "every other address" in "\n".join(banner(replace(SETTINGS, host="::"), models, 80))
    assert rows(replace(SETTINGS, host="::1"), models)["Playground"] == "http://[::1]:8000/"


def test_with_tls_it_says_so(models: list[ServedModel]) -> None:
    secure = replace(SETTINGS, tls_certificate="c", tls_key="k", health_port=8002)
    shown = rows(secure, models)
    assert shown["Playground"] == "https://127.0.0.1:8000/"
    assert shown["gRPC"] == "127.0.0.1:8001 with TLS"
    assert shown["Metrics"] == "https://127.0.0.1:8000/metrics"
    assert shown["Health"].startswith("http://")


def test_without_a_model_it_says_where_one_is_expected() -> None:
    assert any("none yet" in line for line in banner(SETTINGS, [], 80))


def test_a_model_without_a_card_has_no_accuracy(tmp_path: Path, models: list[ServedModel]) -> None:
    shutil.copy(models[0].model_file, tmp_path / "net.onnx")
    settings = replace(SETTINGS, models=tmp_path)
    bare = load_models(settings).repository.loaded
    assert "  Model       net version 1" in banner(settings, bare, 80)


def test_many_models_are_cut(models: list[ServedModel]) -> None:
    assert any("and 2 more" in line for line in banner(SETTINGS, models * 6, 80))
