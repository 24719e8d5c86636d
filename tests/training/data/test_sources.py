"""The choice of data, on Fashion-MNIST in IDX form: nothing is hard-wired to digits.

Debian's package dataset-fashion-mnist is used if it is installed, as .ci/run tries to do. The other
tests write files in the same form, with clothes that are drawn as rectangles.
"""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.training.runs import evaluation_of, train
from training.commands.evaluate import main as evaluate
from training.commands.train import main
from training.data import mnist
from training.errors import DataError


def write_idx(folder: Path) -> Path:
    """1,000 and 200 images of ten shapes, gzipped as the package has them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for images, labels, count in (
        (mnist.TRAIN_IMAGES, mnist.TRAIN_LABELS, 1000),
        (mnist.TEST_IMAGES, mnist.TEST_LABELS, 200),
    ):
        classes = np.arange(count, dtype=np.uint8) % 10
        pixels = random.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, kind in zip(pixels, classes, strict=True):
            image[2 + 2 * kind : 8 + 2 * kind, 4:24] += 180
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{images}.gz").write_bytes(gzip.compress(head + pixels.tobytes(), 1))
        head = struct.pack(">II", 0x801, count)
        (folder / f"{labels}.gz").write_bytes(gzip.compress(head + classes.tobytes()))
    return folder


SHORT = ["--recipe", "book-30-30", "--epochs", "5", "--lr", "0.3", "--validation-size", "200"]


def test_fashion_mnist_is_published_with_its_own_labels(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "idx")
    run = train(tmp_path, *SHORT, "--dataset", "fashion", "--data-dir", str(folder))
    assert evaluation_of(run)["images"] == 200
    assert evaluation_of(run)["accuracy"] > 0.8
    published = tmp_path / "models" / "fashion" / "1"
    card = json.loads((published / "model.json").read_text())
    assert card["labels"][0] == "T-shirt/top"
    assert card["labels"][9] == "Ankle boot"
    assert card["picture"] == {"size": [28, 28], "colour": "grey", "resize": "pad"}
    assert "T-shirt/top" in (run / "report.html").read_text()
    (image,) = ort.InferenceSession(published / "model.onnx").get_inputs()
    assert image.shape == ["batch", 28, 28]
    # A checkpoint of clothes is not published as one of digits.
    arguments = ["--from-checkpoint", str(run / "checkpoint.safetensors")]
    assert main([*arguments, "--runs", str(tmp_path / "runs")]) == 2


def test_resumed_run_uses_its_own_data(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "idx")
    few = [*SHORT, "--no-publish", "--dataset", "fashion", "--data-dir", str(folder)]
    run = train(tmp_path, *few)
    assert train(tmp_path, "--resume", str(run), "--no-publish") == run
    folder.rename(tmp_path / "moved")
    assert main(["--resume", str(run)]) == 1
    other = ["--dataset", "mnist", "--no-publish"]
    assert main(["--resume", str(run), *other]) == 2


def test_fashion_mnist_is_never_downloaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--dataset", "fashion", "--download", "--runs", str(tmp_path)]) == 2
    assert "--data-dir" in capsys.readouterr().err
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        mnist.load_fashion(tmp_path)


def test_debian_package_is_read_if_installed(tmp_path: Path) -> None:
    if not mnist.FASHION_FOLDER.exists():
        with pytest.raises(DataError, match="dataset-fashion-mnist"):
            mnist.load_fashion()
        return
    clothes = mnist.load_fashion()
    assert (len(clothes.train_images), len(clothes.test_images)) == (60_000, 10_000)
    assert clothes.labels[int(clothes.test_labels[0])] == "Ankle boot"
    run = train(tmp_path, *SHORT, "--dataset", "fashion", "--train-limit", "6000", "--no-publish")
    assert evaluation_of(run)["accuracy"] > 0.6
    assert evaluate([str(run / "checkpoint.safetensors"), "--data", "fashion"]) == 0
