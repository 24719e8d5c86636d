"""Files, folders, patterns, lists and stdin as pictures."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from mnist_client.command.sources import Entry, entries, names, names_in

from tests.conftest import ROOT

SEVEN = ROOT / "docs" / "seven.png"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("scans/b.png", "scans/a.PNG", "scans/deep/c.png", "scans/.d.png", "a[1].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SEVEN, path)
    (tmp_path / "scans" / "notes.txt").write_text("seven")
    (tmp_path / "empty").mkdir()
    return tmp_path


def listed(*arguments: str) -> list[str]:
    return [each.problem if isinstance(each, Entry) else each for each in names(arguments)]


@pytest.mark.usefixtures("folder")
def test_folders_are_walked_by_name_without_hidden_and_other_files() -> None:
    assert listed("scans") == ["scans/a.PNG", "scans/b.png", "scans/deep/c.png"]
    assert listed("empty") == ["the folder has no PNG, JPEG, WebP, BMP or GIF images."]


@pytest.mark.usefixtures("folder")
def test_patterns_are_expanded_and_files_with_such_names_are_files() -> None:
    assert listed("scans/*.png") == ["scans/b.png"]
    assert listed("**/c.png", "scans/b.png") == ["scans/deep/c.png", "scans/b.png"]
    assert listed("sc*") == ["scans/a.PNG", "scans/b.png", "scans/deep/c.png"]
    assert listed("a[1].png") == ["a[1].png"]
    assert listed("*.jpg") == ["no file matches."]
    assert listed("missing.png", "-") == ["missing.png", "-"]


def test_links_in_a_loop_are_not_followed(folder: Path) -> None:
    for name in ("again", "and_again"):  # two of them are 2 ** 40 paths
        (folder / "scans" / name).symlink_to(".")
    (folder / "scans" / ".hidden").mkdir()
    shutil.copy(SEVEN, folder / "scans" / ".hidden" / "e.png")
    expected = ["scans/a.PNG", "scans/b.png", "scans/deep/c.png"]
    assert listed("scans") == expected
    assert listed("**/[bc].png") == expected[1:]
    assert {f"{folder}/{name}" for name in expected} < set(listed(f"{folder}/scans/**"))
    assert listed("scans/.hidden/**/*.png") == ["scans/.hidden/e.png"]


def test_pipes_in_a_folder_are_left_out(folder: Path) -> None:
    os.mkfifo(folder / "scans" / "pipe.png")
    assert listed("scans") == ["scans/a.PNG", "scans/b.png", "scans/deep/c.png"]


def test_names_that_no_file_can_have_are_names() -> None:
    assert listed("a" * 5000, "a*" * 5000, "") == ["a" * 5000, "no file matches.", ""]


def test_a_closed_stdin_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    (entry,) = entries(["-"])
    assert entry.problem == "cannot be read: stdin is closed."
    with pytest.raises(OSError, match="stdin is closed"):
        list(names_in("-"))


@pytest.mark.usefixtures("folder")
def test_raw_files_hold_many_images(folder: Path) -> None:
    (folder / "two.raw").write_bytes(bytes(784) + b"\1" * 784)
    (folder / "odd.raw").write_bytes(bytes(785))
    read = list(entries(["two.raw", "odd.raw", "scans/notes.txt", "missing", "nul\0"]))
    assert [entry.name for entry in read[:2]] == ["two.raw[0]", "two.raw[1]"]
    assert read[1].data == b"\1" * 784
    assert [entry.problem for entry in read[2:]] == [
        "this is not a PNG, JPEG, WebP, BMP or GIF image.",
        "this is not a PNG, JPEG, WebP, BMP or GIF image.",
        "cannot be read: No such file or directory.",
        "cannot be read: embedded null byte.",
    ]


def test_stdin_is_a_picture_or_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, found in (
        (SEVEN.read_bytes(), ["-"]),
        (bytes(784), ["-"]),
        (bytes(784 * 2), ["-[0]", "-[1]"]),
    ):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert [entry.name for entry in entries(["-"])] == found


def test_lists_have_one_name_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"a b.png\n\r\nc.png\r\n\xff.png"
    (tmp_path / "list").write_bytes(lines)
    expected = ["a b.png", "c.png", "\udcff.png"]
    assert list(names_in(str(tmp_path / "list"))) == expected
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert list(names_in("-")) == expected


def test_files_are_read_when_their_turn_comes(tmp_path: Path) -> None:
    reading = entries([str(tmp_path / "later.raw")])
    (tmp_path / "later.raw").write_bytes(bytes(784))
    assert next(reading).data == bytes(784)
