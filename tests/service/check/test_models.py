"""What needs no fault of a model; tests/e2e/test_check.py has the rest."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from service.check.finding import Severity
from service.check.models import load_models, provider, repository
from service.settings import Settings
from tests.conftest import SHIPPED_MODELS
from tests.e2e.onnx_models import publish_lower_case

SETTINGS = Settings(models=SHIPPED_MODELS, provider="cpu")


def test_models_are_those_that_a_worker_loads() -> None:
    models = load_models(SETTINGS)
    assert models.readiness.ready
    assert models.total_bytes == sum(file.stat().st_size for file in models.files) > 100_000
    assert provider(SETTINGS, models).text == "CPU, as the setting provider says."
    (finding,) = repository(SETTINGS, models)
    assert finding.severity is Severity.OK
    assert "the files are those of the card" in finding.text


def test_a_gpu_that_is_not_used_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, provider="auto")
    models = load_models(SETTINGS)
    monkeypatch.setattr("service.check.models.cuda_is_built_in", lambda: False)
    monkeypatch.setattr("service.check.models.cuda.missing_device", lambda: "no driver")
    assert provider(settings, models).severity is Severity.OK
    monkeypatch.setattr("service.check.models.cuda.missing_device", lambda: "")
    finding = provider(settings, models)
    assert finding.severity is Severity.WARNING
    assert "Install the extra 'gpu'" in finding.remedy
    monkeypatch.setattr("service.check.models.cuda_is_built_in", lambda: True)
    models.repository.loaded[0].session.fallback = "a library is missing"
    assert "although onnxruntime-gpu is installed: a library" in provider(settings, models).text


def test_without_models_to_load_the_server_is_ready() -> None:
    settings = replace(SETTINGS, model_control_mode="explicit")
    models = load_models(settings)
    assert models.readiness.ready
    assert list(repository(settings, models)) == []


def test_a_missing_locale_is_named_with_its_remedy(tmp_path: Path) -> None:
    publish_lower_case(tmp_path, locale="xx_XX.UTF-8")
    settings = replace(SETTINGS, models=tmp_path, model="lower")
    (finding,) = [
        each for each in repository(settings, load_models(settings)) if "locale" in each.text
    ]
    assert finding.severity is not Severity.OK
    assert "xx_XX.UTF-8, which this system does not have" in finding.text
    assert finding.remedy.startswith("Install the locale")


def test_a_list_of_models_is_cut(tmp_path: Path) -> None:
    (file,) = (SHIPPED_MODELS / "mnist").glob("1/model.onnx")
    for number in range(10):
        shutil.copy(file, tmp_path / f"net{number}.onnx")
        (tmp_path / f"net{number}.json").write_text('{"batching": true}')
    settings = replace(SETTINGS, models=tmp_path, model="net0")
    findings = list(repository(settings, load_models(settings)))
    assert len(findings) == 9
    assert "no SHA-256 in model.json" in findings[0].text
    assert findings[-1].text == "2 more models load."
