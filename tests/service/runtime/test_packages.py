from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from service.runtime.packages import conflicting_packages


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make exactly these packages seem installed; `_` in a name stands for `-`."""

    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime_gpu"])
def test_either_package_alone_is_right(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    install(monkeypatch, **{package: "1.23.0"})
    assert conflicting_packages() == ""


def test_without_any_package_the_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, numpy="2.0")
    assert conflicting_packages().startswith("ONNX Runtime is not installed; install the extra")


def test_both_packages_are_named_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, onnxruntime="1.23.0", onnxruntime_gpu="1.22.1")
    sentence = conflicting_packages()
    assert "onnxruntime 1.23.0 and onnxruntime-gpu 1.22.1" in sentence
    assert "uninstall both" in sentence


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
