"""The exported ONNX file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from training.commands.train import main
from training.data.dataset import DIGITS, output_count
from training.errors import ExportError
from training.models import Classifier, Thresholds, build_network
from training.publish.export import IR_VERSION, OPSET, export, prove
from training.recipes.presets import RECIPES
from training.run import checkpoint

IMAGES = torch.randint(
    0, 256, (200, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)


# From blank to full contrast.
IMAGES = (IMAGES * torch.linspace(0, 1, 200)[:, None, None]).to(torch.uint8)
LABELS = torch.zeros(200, dtype=torch.int64)
LIMITS = Thresholds(contrast=0.1, outlier=0.5, confidence=0.05, prediction_set=0.1)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """An untrained fast network whose batch norms have seen something."""
    torch.manual_seed(3)
    network = build_network(RECIPES["fast"], output_count(RECIPES["fast"], DIGITS))
    network(torch.rand(64, 1, 28, 28))
    return Classifier(network.eval(), temperature=1.5, thresholds=LIMITS)


@pytest.fixture(scope="module")
def model(classifier: Classifier) -> bytes:
    return export(classifier, {"recipe": "fast", "seed": "3"})


def test_graph_has_the_documented_inputs_and_outputs(model: bytes) -> None:
    graph = onnx.load_from_string(model)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", OPSET)] == [("", 18)]
    assert graph.ir_version == IR_VERSION == 10
    session = ort.InferenceSession(model)
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 28, 28])
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 10]),
        ("probabilities", "tensor(float)", ["batch", 10]),
        ("accepted", "tensor(bool)", ["batch"]),
        ("reason", "tensor(uint8)", ["batch"]),
        ("prediction_set", "tensor(bool)", ["batch", 10]),
    ]
    assert not {"Shape", "BatchNormalization"} & {node.op_type for node in graph.graph.node}


def test_file_contains_no_paths_and_no_stack_traces(model: bytes) -> None:
    for forbidden in (b"/home", b"/root", b"/work", b"site-packages", b".py", b"File "):
        assert forbidden not in model
    assert {p.key for p in onnx.load_from_string(model).metadata_props} == {"recipe", "seed"}


def test_any_batch_size_gives_pytorchs_probabilities(model: bytes, classifier: Classifier) -> None:
    session = ort.InferenceSession(model)
    with torch.inference_mode():
        logits, probabilities, *decisions = (part.numpy() for part in classifier(IMAGES))
    assert 0 < decisions[0].sum() < 200  # some are accepted
    for count in (1, 2, 7, 64, 200):
        got = session.run(None, {"image": IMAGES[:count].numpy()})
        assert np.abs(got[0] - logits[:count]).max() < 1e-4
        assert np.abs(got[1] - probabilities[:count]).max() < 1e-5
        assert np.abs(got[1].sum(1) - 1).max() < 1e-6
        for part, expected in zip(got[2:], decisions, strict=True):
            assert (part == expected[:count]).all()
    tempered = np.exp(logits / 1.5) / np.exp(logits / 1.5).sum(1, keepdims=True)
    assert np.abs(probabilities - tempered).max() < 1e-6


def test_same_checkpoint_gives_the_same_bytes_in_another_process_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The layers of fast with few channels: the file is tried on all test images.
    recipe = dataclasses.replace(
        RECIPES["fast"], channels=(4, 8), pool_after=(1, 2), validation_size=500
    )
    torch.manual_seed(3)
    network = build_network(recipe, output_count(recipe, DIGITS))
    network(torch.rand(64, 1, 28, 28))
    digests = set()
    for name in ("here", "there"):
        root = tmp_path / name
        root.mkdir()
        saved = checkpoint.Checkpoint(network, recipe, seed=3, epoch=1, thresholds=LIMITS)
        checkpoint.save(root / "c.safetensors", saved)
        arguments = ["--from-checkpoint", "c.safetensors"]
        if name == "here":
            monkeypatch.chdir(root)
            assert main(arguments) == 0
        else:
            command = [sys.executable, "-m", "training.commands.train", *arguments]
            subprocess.run(command, cwd=root, check=True, capture_output=True)
        published = root / "models" / "mnist" / "1"
        digests.add(hashlib.sha256((published / "model.onnx").read_bytes()).hexdigest())
        assert json.loads((published / "model.json").read_text())["sha256"] in digests
    assert len(digests) == 1


def test_graph_of_another_network_is_refused(model: bytes) -> None:
    torch.manual_seed(4)
    with pytest.raises(ExportError, match="differ"):
        prove(model, Classifier(build_network(RECIPES["fast"]).eval()), IMAGES, LABELS)


def test_network_without_thresholds_has_logits_and_probabilities_only(
    classifier: Classifier,
) -> None:
    model = export(Classifier(classifier.network), {})
    session = ort.InferenceSession(model)
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    assert session.run(["logits"], {"image": IMAGES[:3].numpy()})[0].shape == (3, 10)
