"""Publishing into a model repository."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.errors import ExportError
from training.publish.repository import publish


def test_concurrent_publications_get_complete_versions_in_order(tmp_path: Path) -> None:
    (tmp_path / "mnist" / "7").mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: publish(tmp_path, "mnist", b"m", {"i": i}), range(8)))
    assert sorted(int(path.name) for path in paths) == list(range(8, 16))
    for path in paths:
        assert {file.name for file in path.iterdir()} == {"model.onnx", "model.json"}
    assert not list((tmp_path / "mnist").glob(".tmp-*"))


def test_failed_publication_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.publish.repository.write_atomically", no_space)
    with pytest.raises(ExportError, match="No space left"):
        publish(tmp_path, "mnist", b"m", {})
    assert list((tmp_path / "mnist").iterdir()) == []
