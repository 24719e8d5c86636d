"""MNIST as bundled here, and data sets in its file format from a folder.

The four IDX files of MNIST are bundled, gzipped, in `training/data/bundled/`. The first use unpacks
them into a cache, and every use checks the SHA-256 of what it reads against `SHA256SUMS`: neither a
damaged download nor a damaged cache can train a model unnoticed. The IDX format
(http://yann.lecun.com/exdb/mnist/): two zero bytes, a type code (8: unsigned byte), the number of
dimensions, each dimension as a big-endian 32-bit integer, then the values.
"""

import contextlib
import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data.dataset import DIGITS, DataSet
from training.errors import DataError
from training.files import write_atomically

BUNDLE = Path(__file__).parent / "bundled"
# The folder of Debian's package dataset-fashion-mnist.
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_mnist(data_dir: Path | None = None, *, download: bool = False) -> DataSet:
    """Load MNIST from the bundle, or from `data_dir`, which `download` fills first.

    `data_dir` has torchvision's layout (`DIR/MNIST/raw/`), or the files themselves, gzipped or
    not. Nothing is fetched without `download`.
    """
    if download:
        data_dir = data_dir or cache_dir()
        _download(data_dir)
    if data_dir is None:
        return _load(_read_bundled, "mnist", DIGITS)
    remedy = "Choose another --data-dir, add --download, or remove both for the bundled MNIST."
    folders = (data_dir / "MNIST" / "raw", data_dir)
    return _load(_reader_of(folders, remedy), "mnist", DIGITS)


def load_fashion(data_dir: Path | None = None) -> DataSet:
    """Load Fashion-MNIST (Xiao et al. 2017) from `data_dir`, or from Debian's package.

    `data_dir` has torchvision's layout (`DIR/FashionMNIST/raw/`), or the files themselves, gzipped
    or not. Nothing is ever fetched.
    """
    data_dir = data_dir or FASHION_FOLDER
    remedy = "Install Debian's package dataset-fashion-mnist, or set --data-dir to its folder."
    folders = (data_dir / "FashionMNIST" / "raw", data_dir)
    return _load(_reader_of(folders, remedy), "fashion", CLOTHES)


def has_idx_files(folder: Path) -> bool:
    """Whether a folder has IDX files that `load_mnist` can read."""
    folders = (folder, folder / "MNIST" / "raw")
    return any((path / f"{TEST_IMAGES}{end}").exists() for path in folders for end in ("", ".gz"))


def cache_dir() -> Path:
    """Return the cache folder, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mnist-service"


def parse_idx(content: bytes, path: Path) -> npt.NDArray[np.uint8]:
    """Parse an IDX file of unsigned bytes; error messages name `path`. Raises DataError."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes. Fetch it again.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < start:
        raise DataError(f"{path} is damaged: its IDX header is incomplete. Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    values = math.prod(shape)
    if len(content) != start + values:
        raise DataError(
            f"{path} is damaged: its header announces {values} bytes of values and it has "
            f"{len(content) - start}. Fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# The uncompressed bytes of a file, and its path.
_Content = tuple[bytes, Path]


def _load(read: Callable[[str], _Content], name: str, labels: tuple[str, ...]) -> DataSet:
    contents = {name: read(name) for name in FILES}
    train_images, train_labels = _pair(contents, TRAIN_IMAGES, TRAIN_LABELS)
    test_images, test_labels = _pair(contents, TEST_IMAGES, TEST_LABELS)
    hashes = {name: _sha256(content) for name, (content, _) in contents.items()}
    return DataSet(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        sha256=hashes,
        name=name,
        labels=labels,
    )


def _read_bundled(name: str) -> _Content:
    """Return a bundled file from the cache; unpack it there first if it is missing or damaged."""
    expected = _bundled_sums()[name]
    cached = cache_dir() / name
    with contextlib.suppress(OSError):
        content = cached.read_bytes()
        if _sha256(content) == expected:
            return content, cached

    packed = BUNDLE / f"{name}.gz"
    content = _gunzip(packed)
    if _sha256(content) != expected:
        raise DataError(
            f"{packed} is damaged: its SHA-256 is not the one in SHA256SUMS. "
            "Restore it from the repository, or install the package again."
        )
    # The cache only saves time: a read-only or full home folder must not stop a run.
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, content)
    return content, packed


def _bundled_sums() -> dict[str, str]:
    sums = BUNDLE / "SHA256SUMS"
    try:
        pairs = [line.split() for line in sums.read_text("ascii").splitlines()]
        digests = {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise DataError(f"{sums} cannot be read ({error}). Install the package again.") from error
    if missing := set(FILES) - set(digests):
        raise DataError(f"{sums} has no line for {', '.join(sorted(missing))}.")
    return digests


def _reader_of(folders: tuple[Path, Path], remedy: str) -> Callable[[str], _Content]:
    """Return a function that reads a file from the first of two folders that has it."""

    def read(name: str) -> _Content:
        for folder in folders:
            raw, packed = folder / name, folder / f"{name}.gz"
            try:
                if raw.exists():
                    return raw.read_bytes(), raw
                if packed.exists():
                    return _gunzip(packed), packed
            except OSError as error:
                raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error
        raise DataError(
            f"{name} (or {name}.gz) is neither in {folders[0]} nor in {folders[1]}. {remedy}"
        )

    return read


def _gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is damaged: it cannot be unpacked ({error}). Fetch it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _pair(contents: dict[str, _Content], images: str, labels: str) -> tuple[Tensor, Tensor]:
    pixels, digits = (parse_idx(*contents[name]) for name in (images, labels))
    image_path, label_path = contents[images][1], contents[labels][1]
    if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or not len(pixels):
        raise DataError(f"{image_path} holds an array {pixels.shape}, not images [N,28,28].")
    if digits.shape != pixels.shape[:1]:
        raise DataError(
            f"{label_path} has {digits.size} labels for the {len(pixels)} images of {image_path}."
        )
    if digits.max() > 9:
        raise DataError(f"{label_path} has the label {digits.max()}; labels are 0 to 9.")
    return torch.from_numpy(pixels.copy()), torch.from_numpy(digits.astype(np.int64))


def _download(root: Path) -> None:
    from torchvision.datasets import MNIST

    try:
        MNIST(str(root), download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"MNIST could not be downloaded into {root} ({error}). Check the network, or remove "
            "--download: MNIST is bundled."
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
