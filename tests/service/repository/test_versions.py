from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from service.core.errors import ModelLoadError
from service.repository.triton_config import TritonConfig, TritonConfigs
from service.repository.versions import (
    MODEL_FILE,
    VersionOnDisk,
    _external_of,
    digest_of_all,
    digests,
    external_weights,
    file_sha256,
    only_model,
    parse_version,
    scan,
)
from tests.descriptors import free_descriptors
from tests.e2e.onnx_models import external_model

NO_NUMBER = "a version's folder is named by a whole number from 1, without leading zeros"


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
    models = scan(tmp_path, TritonConfigs()).models
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
    on_disk = scan(tmp_path, TritonConfigs())
    assert on_disk.models == {}
    assert on_disk.unservable == {
        ("mnist", "2"): "it has no model.onnx",
        ("mnist", "3"): "it has no model.onnx",
        ("mnist", "01"): NO_NUMBER,
        ("none", "x"): NO_NUMBER,
    }


def test_a_version_whose_folder_has_another_name_is_not_hidden_by_good_ones(tmp_path: Path) -> None:
    for version in ("1", "v2", "2.0", ".3"):
        publish(tmp_path, "mnist", version)
    (tmp_path / "mnist" / "labels").mkdir()
    on_disk = scan(tmp_path, TritonConfigs())
    assert [version.number for version in on_disk.models["mnist"]] == [1]
    assert on_disk.unservable == {("mnist", "v2"): NO_NUMBER, ("mnist", "2.0"): NO_NUMBER}


def test_a_linked_version_is_served_as_any_other(tmp_path: Path) -> None:
    publish(tmp_path / "elsewhere", "mnist", "7")
    models = tmp_path / "models" / "mnist"
    models.mkdir(parents=True)
    (models / "1").symlink_to(tmp_path / "elsewhere" / "mnist" / "7")
    assert version_of(tmp_path / "models").number == 1


def test_the_signature_changes_with_the_file(tmp_path: Path) -> None:
    model = publish(tmp_path, "mnist", "1")
    (before,) = scan(tmp_path, TritonConfigs()).models["mnist"]
    assert scan(tmp_path, TritonConfigs()).models["mnist"] == [before]
    replacement = tmp_path / "new"
    replacement.write_bytes(b"MODEL")  # as long as the old one
    replacement.rename(model)
    (after,) = scan(tmp_path, TritonConfigs()).models["mnist"]
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


def test_a_folder_that_cannot_be_served_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "model.onnx").touch()
    publish(tmp_path, "named", "1").rename(tmp_path / "named" / "1" / "other.onnx")
    publish(tmp_path, "plan", "1").rename(tmp_path / "plan" / "1" / "model.plan")
    (tmp_path / "plan" / "config.pbtxt").write_text('platform: "tensorrt_plan"')
    publish(tmp_path, "good", "1")
    on_disk = scan(tmp_path, TritonConfigs())
    assert list(on_disk.models) == ["good"]
    reasons = {"/".join(key): reason for key, reason in on_disk.unservable.items()}
    assert reasons.pop("plan/1").endswith("this server runs 'onnxruntime_onnx' only")
    assert reasons == {
        "flat/": "model.onnx belongs into the folder of a version, flat/1",
        "named/1": "it has no model.onnx, but other.onnx; name that file in default_model_filename",
    }


def test_a_name_that_is_not_utf_8_is_not_served(tmp_path: Path) -> None:
    bad = os.fsdecode(b"bad\xff")
    publish(tmp_path, bad, "1")
    (tmp_path / f"{bad}.onnx").touch()
    file = publish(tmp_path, "good", "1")
    (file.parent / bad).touch()
    on_disk = scan(tmp_path, TritonConfigs())
    assert list(on_disk.models) == ["good"]
    assert on_disk.unservable == {
        ("bad\\udcff", ""): "its name is not UTF-8; rename it",
    }
    assert digest_of_all(digests(on_disk.models["good"][0]))


class LongNames(TritonConfigs):
    """Gives the model `bad` a file whose name no file system takes."""

    def of(self, folder: Path) -> tuple[TritonConfig, tuple[int, ...]]:
        return TritonConfig(model_file="a" * 300 if folder.name == "bad" else MODEL_FILE), ()


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        publish(tmp_path, name, "1")
    on_disk = scan(tmp_path, LongNames())
    assert list(on_disk.models) == ["good"]
    ((key, reason),) = on_disk.unservable.items()
    # For newer versions of Python, a file whose name is too long does not exist.
    assert key[0] == "bad"
    assert reason.startswith(("it cannot be read", "it has no aaa"))
    scan(tmp_path / "bad", LongNames())


@pytest.mark.parametrize("is_beside_a_file", [False, True])
def test_without_enough_descriptors_nothing_is_listed_rather_than_a_part(
    tmp_path: Path, is_beside_a_file: bool
) -> None:
    publish(tmp_path, "mnist", "1")
    external_model(publish(tmp_path, "other", "1"), "data/weights.bin")
    (tmp_path / "other" / "1" / "data").mkdir()
    (tmp_path / "other" / "1" / "data" / "weights.bin").write_bytes(bytes(4))
    if is_beside_a_file:
        (tmp_path / "bare.onnx").write_bytes(b"model")
    whole = scan(tmp_path, TritonConfigs())
    for free in range(6):
        _external_of.cache_clear()
        with free_descriptors(free):
            try:
                on_disk = scan(tmp_path, TritonConfigs())
            except OSError as error:
                assert error.errno == errno.EMFILE  # noqa: PT017 (with enough, it is listed)
            else:
                assert on_disk == whole
    assert scan(tmp_path, TritonConfigs()) == whole


def version_of(root: Path) -> VersionOnDisk:
    """The only version in a repository."""
    ((version,),) = scan(root, TritonConfigs()).models.values()
    return version


def test_the_signature_covers_every_file_of_the_version_and_its_card(tmp_path: Path) -> None:
    folder = publish(tmp_path, "mnist", "1").parent
    signatures = [version_of(tmp_path).signature]
    for name in ("model.json", "model.onnx.data", "weights/w.bin", "config.pbtxt"):
        path = tmp_path / "mnist" / name if name == "config.pbtxt" else folder / name
        path.parent.mkdir(exist_ok=True)
        for content in ("", "max_batch_size: 4"):
            path.write_text(content)
            signatures.append(version_of(tmp_path).signature)
    assert len(set(signatures)) == len(signatures)
    assert version_of(tmp_path).signature == signatures[-1]


def test_the_digest_of_a_version_is_what_sha256sum_gives(tmp_path: Path) -> None:
    folder = publish(tmp_path, "mnist", "1", b"the model").parent
    (folder / "model.json").write_text("{}")
    (folder / ".hidden").mkdir()
    for hidden in (".file", ".hidden/file"):
        (folder / hidden).touch()
    alone = digests(version_of(tmp_path))
    assert digest_of_all(alone) == hashlib.sha256(b"the model").hexdigest()
    (folder / "weights").mkdir()
    (folder / "weights" / "w").write_bytes(b"weights")
    both = digests(version_of(tmp_path))
    assert set(both) == {"model.onnx", "weights/w"}
    printed = subprocess.run(
        ["sha256sum", "model.onnx", "weights/w"], cwd=folder, capture_output=True, check=True
    ).stdout
    assert digest_of_all(both) == hashlib.sha256(printed).hexdigest()


@pytest.mark.parametrize("place", ["../w.bin", "/etc/hostname", "a/../../w.bin", "link"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    file = publish(tmp_path / "models", "m", "1")
    external_model(file, place)
    (file.parent / "link").symlink_to("/etc/hostname")
    with pytest.raises(ModelLoadError, match="outside its folder"):
        external_weights(version_of(tmp_path / "models"))
    external_model(file, "w.bin")
    assert external_weights(version_of(tmp_path / "models")) == ("w.bin",)


def test_links_to_another_folder_that_holds_both_files_are_followed(tmp_path: Path) -> None:
    """A Kubernetes ConfigMap links each file like that."""
    store, folder = tmp_path / "store", tmp_path / "models" / "m" / "1"
    store.mkdir()
    folder.mkdir(parents=True)
    external_model(store / "model.onnx", "w.bin")
    (store / "w.bin").write_bytes(bytes(4))
    for name in ("model.onnx", "w.bin"):
        (folder / name).symlink_to(store / name)
    assert external_weights(version_of(tmp_path / "models")) == ("w.bin",)


def test_a_bare_file_is_a_model_with_the_files_that_hold_its_weights(tmp_path: Path) -> None:
    external_model(tmp_path / "net.onnx", "net.onnx.data")
    (tmp_path / "net.onnx.data").write_bytes(bytes(4))
    (tmp_path / "notes.txt").touch()
    version = version_of(tmp_path / "net.onnx")
    assert (version.name, version.number) == ("net", 1)
    assert version.card == tmp_path / "net.json"
    assert [file.name for file in version.files] == ["net.onnx", "net.onnx.data"]
    (tmp_path / "notes.txt").write_text("changed")
    assert version_of(tmp_path / "net.onnx").signature == version.signature
    (tmp_path / "net.json").write_text("{}")
    assert version_of(tmp_path / "net.onnx").signature != version.signature
    assert only_model(tmp_path / "net.onnx") == "net"


def test_a_folder_of_bare_files_is_a_repository(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx", ".hidden.onnx", "readme.txt"):
        (tmp_path / name).touch()
    (tmp_path / "pictures").mkdir()
    publish(tmp_path, "c", "2")
    on_disk = scan(tmp_path, TritonConfigs())
    assert sorted(on_disk.models) == ["a", "b", "c"]
    assert on_disk.unservable == {}
    assert only_model(tmp_path) == ""


def test_folders_of_models_beside_a_bare_file_are_served_or_listed(tmp_path: Path) -> None:
    (tmp_path / "alone.onnx").touch()
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    publish(tmp_path, "named", "1").rename(tmp_path / "named" / "1" / "net.onnx")
    (tmp_path / "named" / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
    publish(tmp_path, "unnamed", "1").rename(tmp_path / "unnamed" / "1" / "net.onnx")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "config.pbtxt").write_text('backend: "python"')
    on_disk = scan(tmp_path, TritonConfigs())
    assert sorted(on_disk.models) == ["alone", "named"]
    assert sorted(on_disk.unservable) == [("empty", "1"), ("python", ""), ("unnamed", "1")]
    assert "'python'" in on_disk.unservable["python", ""]


def test_a_configuration_beside_a_bare_file_is_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "net.onnx").touch()
    (folder / ".tmp-net.onnx").touch()
    (folder / "folder.onnx").mkdir()
    (folder / "config.pbtxt").write_text('max_batch_size: 4 name: "net"')
    for path in (folder, folder / "net.onnx"):
        (version,) = scan(path, TritonConfigs()).models["net"]
        assert version.config.max_batch_size == 4
        assert version.model_folder == folder
    (folder / "config.pbtxt").write_text('name: "other"')
    (version,) = scan(folder, TritonConfigs()).models["net"]
    assert "name is 'other'" in version.config.problem
    (folder / "b.onnx").touch()  # whose configuration is it?
    on_disk = scan(folder, TritonConfigs())
    assert sorted(on_disk.models) == ["b", "net"]
    assert on_disk.unservable == {
        ("config.pbtxt", ""): "it is beside several models; give each of them a folder of its own"
    }


def test_the_file_that_a_configuration_names_is_the_version_of_its_model(tmp_path: Path) -> None:
    path = publish(tmp_path, "named", "7").rename(tmp_path / "named" / "7" / "net.onnx")
    (tmp_path / "named" / "config.pbtxt").write_text(
        'default_model_filename: "net.onnx" max_batch_size: 2'
    )
    (version,) = scan(path, TritonConfigs()).models["named"]
    assert (version.number, version.config.max_batch_size) == (7, 2)


def test_the_folder_of_a_model_or_a_version_can_be_served_itself(tmp_path: Path) -> None:
    publish(tmp_path, "net", "3")
    publish(tmp_path, "net", "12")
    (tmp_path / "net" / "config.pbtxt").write_text("max_batch_size: 4")
    versions = scan(tmp_path / "net", TritonConfigs()).models["net"]
    assert [version.number for version in versions] == [12, 3]
    version = version_of(tmp_path / "net" / "3")
    assert (version.name, version.number) == ("net", 3)
    assert version.config.max_batch_size == 4
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.onnx").touch()
    assert only_model(tmp_path / "bare") == "bare"
    assert only_model(tmp_path / "missing") == ""
