from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from service.repository.triton_config import TritonConfigs
from service.repository.versions import file_sha256, parse_version, scan


def publish(root: Path, name: str, version: str, content: bytes = b"model") -> Path:
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    return folder / "model.onnx"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("42", 42), ("9" * 18, int("9" * 18))])
def test_a_whole_number_is_a_version(text: str, number: int) -> None:
    assert parse_version(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "0", "01", "-1", "+1", "1.0", "1e3", " 1", "1\n", "1_0", "0x1", "\uff11", "٣", "9" * 19],
)
def test_other_names_are_not_versions(text: str) -> None:
    assert parse_version(text) is None


def test_versions_are_listed_newest_first_by_number(tmp_path: Path) -> None:
    for version in ("9", "10", "2"):
        publish(tmp_path, "mnist", version)
    publish(tmp_path, "other", "1")
    models = scan(tmp_path, TritonConfigs())
    assert list(models) == ["mnist", "other"]
    assert [version.number for version in models["mnist"]] == [10, 9, 2]
    assert models["other"][0].folder == tmp_path / "other" / "1"


def test_whatever_is_not_a_version_with_a_model_is_ignored(tmp_path: Path) -> None:
    for name, version in (("mnist", ".tmp-3"), ("mnist", "01"), (".hidden", "1"), ("none", "x")):
        publish(tmp_path, name, version)
    (tmp_path / "mnist" / "2").mkdir()
    (tmp_path / "mnist" / "3").mkdir()
    (tmp_path / "mnist" / "3" / "model.onnx").symlink_to("nowhere")
    (tmp_path / "mnist" / "4").write_text("a file")
    (tmp_path / "README").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    assert scan(tmp_path, TritonConfigs()) == {}


def test_a_linked_version_is_served_as_any_other(tmp_path: Path) -> None:
    publish(tmp_path / "elsewhere", "mnist", "7")
    models = tmp_path / "models" / "mnist"
    models.mkdir(parents=True)
    (models / "1").symlink_to(tmp_path / "elsewhere" / "mnist" / "7")
    assert [version.number for version in scan(tmp_path / "models", TritonConfigs())["mnist"]] == [
        1
    ]


def test_the_signature_changes_with_the_file(tmp_path: Path) -> None:
    model = publish(tmp_path, "mnist", "1")
    (before,) = scan(tmp_path, TritonConfigs())["mnist"]
    assert scan(tmp_path, TritonConfigs())["mnist"] == [before]
    replacement = tmp_path / "new"
    replacement.write_bytes(b"MODEL")  # as long as the old one
    replacement.rename(model)
    (after,) = scan(tmp_path, TritonConfigs())["mnist"]
    assert after.signature != before.signature
    assert after._replace(signature=before.signature) == before


def test_a_missing_repository_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        scan(tmp_path / "none", TritonConfigs())


def test_the_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    file = tmp_path / "file"
    file.write_bytes(content)
    assert file_sha256(file) == hashlib.sha256(content).hexdigest()


def test_the_digest_of_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "model.onnx"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            file_sha256(path)
