from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.core.batching import Batcher, BatchLimits
from service.core.errors import ModelNotFound
from service.repository.models import Repository
from service.runtime.session import SessionOptions
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ({"sha256": "0"}, "SHA-256"),
        ({"sha256": 1}, "string"),
        ({"output_kinds": {"scores": "guess"}}, "output_kinds"),
        pytest.param('{"output_kinds": {"scores": ["logits"]}}', "model.json", id="list as kind"),
        pytest.param("[" * 200_000, "model.json", id="deep nesting"),
        pytest.param('{"sha256": ' + "1" * 5000 + "}", "model.json", id="endless number"),
    ],
)
def test_version_with_a_wrong_card_is_not_loaded(tmp_path: Path, card: Any, reason: str) -> None:
    publish_linear(tmp_path, card=card)

    async def scenario(operations: Operations) -> None:
        assert reason in operations.inference.repository.failures["linear/1"]
        assert not operations.inference.readiness().ready
        with pytest.raises(ModelNotFound, match="linear"):
            operations.inference.repository.get("linear")

    run_with_operations(tmp_path, scenario)


def test_loaded_models_outlive_a_repository_that_vanishes(tmp_path: Path) -> None:
    models, moved = tmp_path / "models", tmp_path / "moved"
    publish_linear(models)

    async def scenario(operations: Operations) -> None:
        models.rename(moved)
        await operations.inference.repository.refresh()
        assert operations.inference.readiness().ready
        assert str(models) in operations.inference.readiness().failures
        moved.rename(models)
        (models / "linear").rename(tmp_path / "linear")
        await operations.inference.repository.refresh()
        assert not operations.inference.readiness().ready
        assert operations.inference.readiness().failures == {}

    run_with_operations(models, scenario)


def test_deleting_a_broken_version_clears_its_failure_and_reports_the_change(
    tmp_path: Path,
) -> None:
    failures_at_each_change: list[int] = []
    broken = tmp_path / "mnist" / "2"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no model")

    async def scenario(executor: ThreadPoolExecutor) -> None:
        repository = Repository(
            tmp_path,
            SessionOptions("cpu"),
            lambda name, version, session: Batcher(session, BatchLimits(), executor),
            executor,
            2,
            lambda: failures_at_each_change.append(len(repository.failures)),
        )
        await repository.refresh()
        assert failures_at_each_change[-1] == 1
        shutil.rmtree(broken)
        await repository.refresh()
        assert failures_at_each_change[-1] == 0

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))
