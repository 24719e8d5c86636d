"""The choice of a data set: the flags that all commands share, and the data they load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.data.dataset import DataSet
from training.data.folder import load_image_folder
from training.data.mnist import has_idx_files, load_fashion, load_mnist
from training.errors import UsageError

SOURCES = ("dataset", "data_dir", "image_folder")  # the options that choose the data


def add_data_flags(group: Any) -> None:
    """Add the flags that `load_data` reads to a group of a command line."""
    add = group.add_argument
    add("--dataset", choices=("mnist", "fashion"), help="default: mnist")
    add(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="folder with IDX files (default: the bundled MNIST)",
    )
    add("--download", action="store_true", help="download MNIST from torchvision's mirrors first")
    add(
        "--image-folder",
        type=Path,
        metavar="FOLDER",
        help="instead, a folder with img_0.png ... and labels.npy, or with a folder per class",
    )


def load_data(options: argparse.Namespace) -> DataSet:
    """Load the data that the flags choose. Raises UsageError or DataError."""
    if options.image_folder:
        if options.dataset or options.data_dir or options.download:
            raise UsageError(
                "--image-folder cannot be combined with --dataset, --data-dir or --download."
            )
        return load_image_folder(options.image_folder)
    if options.dataset == "fashion":
        if options.download:
            raise UsageError("--download fetches MNIST only; for Fashion-MNIST use --data-dir.")
        return load_fashion(options.data_dir)
    return load_mnist(options.data_dir, download=options.download)


def load_named(name: str) -> DataSet:
    """Load a data set by its name, `mnist` or `fashion`, or by a folder of images or IDX files."""
    if name == "mnist":
        return load_mnist()
    if name == "fashion":
        return load_fashion()
    folder = Path(name)
    return load_mnist(folder) if has_idx_files(folder) else load_image_folder(folder)
