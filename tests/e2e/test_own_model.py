"""docs/own-model.md as written: each script, each command, and what the answers say.

What cannot be done here is replaced: ResNet-18 gets random weights, as these come from a download,
and the training is short. Fashion-MNIST is Debian's if that is installed, else drawn rectangles.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
from mnist_client.command.main import main
from PIL import Image
from torchvision.models import ResNet18_Weights

from tests.conftest import ROOT, free_ports
from tests.training.data.test_sources import write_idx
from training.data.mnist import CLOTHES, FASHION_FOLDER

PAGE = (ROOT / "docs" / "own-model.md").read_text()
SHORT = "--epochs 1 --train-limit 500 --validation-size 200"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


TRAIN, BOOT, MAKE_RESNET, MAKE_IRIS, SERVE, CALLS = blocks("sh")
RESNET, IRIS = blocks("python")


class Page(NamedTuple):
    """A folder in which the page was followed, and the addresses of its server."""

    folder: Path
    address: str
    grpc: str

    def call(self, line: str) -> Any:
        command = line.replace("127.0.0.1:8000", self.address)
        answer = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, capture_output=True, check=True
        )
        return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("own-model")
    http, grpc = free_ports(2)
    environ = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MNIST_HTTP_PORT": str(http),
        "MNIST_GRPC_PORT": str(grpc),
    }

    def run(command: str) -> None:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    data, boot = "", BOOT
    if not FASHION_FOLDER.exists():
        write_idx(folder / "idx")
        data = " --data-dir idx"
        boot = BOOT.replace("load_fashion()", "load_fashion(__import__('pathlib').Path('idx'))")
    (folder / "resnet18.py").write_text(RESNET.replace("weights=weights", "weights=None"))
    (folder / "iris.py").write_text(IRIS)
    for command in (f"{TRAIN.strip()} {SHORT}{data}", boot, MAKE_RESNET, MAKE_IRIS):
        run(command)
    log = folder / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {SERVE.strip()}"],
            cwd=folder,
            env=environ,
            stdout=file,
            stderr=file,
        )
    address = f"127.0.0.1:{http}"
    end = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=60):
                break
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(log.read_text())
            time.sleep(0.05)
    yield Page(folder, address, f"127.0.0.1:{grpc}")
    server.send_signal(signal.SIGTERM)
    server.wait(timeout=60)


def calls() -> list[str]:
    return [line.strip() for line in CALLS.replace("\\\n", " ").splitlines()]


def test_clothes_have_their_labels(page: Page) -> None:
    answer = page.call(calls()[0])
    assert answer["model_name"] == "fashion"
    (row,) = answer["predictions"]
    assert row["label"] in CLOTHES
    assert set(row["probabilities"]) == set(CLOTHES)
    # The picture has the model's size: the model sees it as it is.
    (boot,) = session(page, "fashion").run(
        ["probabilities"], {"image": np.asarray(Image.open(page.folder / "boot.png"))[None]}
    )
    assert list(row["probabilities"].values()) == pytest.approx(sorted(boot[0])[::-1], abs=1e-6)
    again = page.call(calls()[0].replace("?model=fashion", ""))
    assert again["predictions"] == answer["predictions"]


def test_the_command_for_digits_says_what_it_got(
    page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    boot = str(page.folder / "boot.png")
    assert main([boot, "--model", "fashion", "--address", page.address]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "classifies something other than digits; its answer is" in said
    assert main([boot, "--model", "fashion", "--grpc", "--address", page.grpc]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "send its pictures to POST /predict" in said


def test_resnet_sees_what_torchvision_would_show_it(page: Page) -> None:
    weights = ResNet18_Weights.IMAGENET1K_V1
    few = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(few).resize((640, 426), Image.Resampling.BICUBIC).save(
        page.folder / "photo.jpg", quality=95
    )
    answer = page.call(calls()[1].replace("boot.png", "photo.jpg"))
    (row,) = answer["predictions"]
    photo = weights.transforms()(Image.open(page.folder / "photo.jpg"))
    (logits,) = session(page, "resnet18").run(None, {"image": photo[None].numpy()})
    exact = np.exp(logits[0] - logits.max())
    exact /= exact.sum()
    names = weights.meta["categories"]
    assert row["label"] == names[exact.argmax()]
    assert list(row["probabilities"]) == [names[i] for i in np.argsort(-exact)[:3]]
    assert row["probabilities"][row["label"]] == pytest.approx(exact.max(), rel=0.01)
    assert row["entropy_bits"] == pytest.approx(-(exact * np.log2(exact)).sum(), abs=0.01)


def test_iris_is_answered_as_the_page_shows(page: Page) -> None:
    answer = page.call(calls()[2])
    shown = json.loads(blocks("json")[1])
    assert answer["model_name"] == shown["model_name"]
    (row,), (expected,) = answer["predictions"], shown["predictions"]
    assert row["label"] == expected["label"]
    assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=0.01)
    assert row["entropy_bits"] == pytest.approx(expected["entropy_bits"], abs=0.02)


def session(page: Page, name: str) -> ort.InferenceSession:
    return ort.InferenceSession(page.folder / "models" / name / "1" / "model.onnx")
