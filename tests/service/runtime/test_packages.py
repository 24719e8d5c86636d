from __future__ import annotations

from pathlib import Path

import pytest

from service.runtime.packages import conflicting_packages


def test_two_installed_onnxruntime_packages_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conflicting_packages() == ""
    folder = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "onnxruntime-gpu 1.31.1" in conflicting_packages()
    assert "uninstall both" in conflicting_packages()
