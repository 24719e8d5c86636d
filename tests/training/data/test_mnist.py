"""MNIST in IDX files: bundled, cached, and in folders."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import mnist
from training.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MNIST in torchvision's layout, gzipped."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.FILES:
        shutil.copy(mnist.BUNDLE / f"{name}.gz", raw)
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "mnist-service"


def test_bundle_is_all_of_mnist_and_is_cached(cache: Path) -> None:
    first = mnist.load_mnist()
    assert tuple(first.train_images.shape) == (60_000, 28, 28)
    assert tuple(first.test_images.shape) == (10_000, 28, 28)
    assert first.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert sorted(path.name for path in cache.iterdir()) == sorted(mnist.FILES)
    assert mnist.load_mnist().sha256 == first.sha256


def test_damaged_cache_is_unpacked_again(cache: Path) -> None:
    mnist.load_mnist()
    (cache / mnist.TEST_LABELS).write_bytes(b"damaged")
    assert mnist.load_mnist().test_labels[0] == 7
    assert len((cache / mnist.TEST_LABELS).read_bytes()) == 10_008


def test_damaged_bundle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(mnist.BUNDLE, tmp_path / "mnist")
    monkeypatch.setattr(mnist, "BUNDLE", tmp_path / "mnist")
    packed = tmp_path / "mnist" / f"{mnist.TEST_LABELS}.gz"
    packed.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match=f"{mnist.TEST_LABELS}.gz is damaged"):
        mnist.load_mnist()


def test_torchvision_layout_is_read_gzipped_or_not(folder: Path) -> None:
    packed = folder / "MNIST" / "raw" / f"{mnist.TEST_IMAGES}.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert len(mnist.load_mnist(folder).test_images) == 10_000
    assert len(mnist.load_mnist(folder / "MNIST" / "raw").train_images) == 60_000


@pytest.mark.parametrize("name", mnist.FILES)
def test_truncated_file_is_named(folder: Path, name: str) -> None:
    packed = folder / "MNIST" / "raw" / f"{name}.gz"
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{name}.gz is damaged"):
        mnist.load_mnist(folder)


def test_missing_file_is_named_with_a_remedy(folder: Path) -> None:
    (folder / "MNIST" / "raw" / f"{mnist.TRAIN_LABELS}.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels.*--download"):
        mnist.load_mnist(folder)


def test_labels_over_nine_and_missing_labels_are_refused(folder: Path) -> None:
    labels = folder / "MNIST" / "raw" / mnist.TEST_LABELS
    labels.write_bytes(struct.pack(">II", 0x801, 10_000) + bytes([10]) * 10_000)
    with pytest.raises(DataError, match="label 10"):
        mnist.load_mnist(folder)
    labels.write_bytes(struct.pack(">II", 0x801, 3) + bytes(3))
    with pytest.raises(DataError, match="3 labels"):
        mnist.load_mnist(folder)


@given(st.binary(max_size=64))
def test_parser_raises_nothing_but_data_error(content: bytes) -> None:
    with contextlib.suppress(DataError):
        array = mnist.parse_idx(content, Path("file"))
        assert array.size + 4 + 4 * array.ndim == len(content)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=60))
def test_idx_files_round_trip(values: list[int]) -> None:
    content = struct.pack(">II", 0x801, len(values)) + bytes(values)
    assert mnist.parse_idx(content, Path("file")).tolist() == values
