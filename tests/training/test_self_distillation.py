"""Learning from the moving average's answers, and last epochs on images as they are."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training.small_run import epochs_of, train
from training.commands.train import main
from training.data.mnist import load_mnist
from training.models import scale
from training.recipes.recipe import Recipe
from training.run import checkpoint
from training.state import begin

_FEW = ["--recipe", "book-30-30", "--train-limit", "50", "--batch-size", "full", "--lr", "0.5"]


def test_after_a_quarter_of_the_run_the_answers_of_the_average_are_learnt_too(
    tmp_path: Path,
) -> None:
    # Four steps of plain descent by all images, three of them with answers.
    more = ["--epochs", "4", "--ema-decay", "0.9", "--self-distillation", "0.7", "--no-publish"]
    reached = checkpoint.read(train(tmp_path, *_FEW, *more) / "checkpoint.safetensors").network
    state = begin(Recipe(name="x", hidden=(30, 30), ema_decay=0.9), 10, 50, 0, torch.device("cpu"))
    network, used, data = state.network, state.used, load_mnist()
    pixels, labels = scale(data.train_images[:50]), data.train_labels[:50]
    for step in range(1, 5):
        logits = network(pixels)
        loss = cross_entropy(logits, labels)
        if step > 1:
            answers = used(pixels).softmax(1).detach()
            loss = 0.3 * loss + 0.7 * cross_entropy(logits, answers)
        network.zero_grad()
        loss.backward()
        decay = min(0.9, (1 + step) / (10 + step))
        with torch.no_grad():
            for ours, average in zip(network.parameters(), used.parameters(), strict=True):
                assert ours.grad is not None
                ours.sub_(0.5 * ours.grad)
                average.copy_(decay * average + (1 - decay) * ours)
    for ours, theirs in zip(used.parameters(), reached.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_without_a_moving_average_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs", str(tmp_path), "--recipe", "book", "--self-distillation", "0.5"]) == 2
    assert "--ema-decay" in capsys.readouterr().err


def test_a_run_with_convolutions_learns_with_it(tmp_path: Path) -> None:
    few = ["--recipe", "fast", "--channels", "4,8", "--train-limit", "2000", "--batch-size", "64"]
    more = ["--epochs", "4", "--sam", "0.05", "--self-distillation", "0.5", "--no-publish"]
    epochs = epochs_of(train(tmp_path, *few, *more))
    assert epochs[3]["train_loss"] < epochs[0]["train_loss"]


def test_the_last_epochs_see_images_as_they_are(tmp_path: Path) -> None:
    few = [*_FEW, "--shift", "4", "--epochs", "2", "--no-publish"]
    never, half, always = (
        epochs_of(train(tmp_path / share, *few, "--plain-end", share))
        for share in ("0", "0.5", "1")
    )
    plain = epochs_of(train(tmp_path / "plain", *_FEW, "--epochs", "2", "--no-publish"))
    assert half[0]["train_loss"] == never[0]["train_loss"] != plain[0]["train_loss"]
    assert half[1]["train_loss"] != never[1]["train_loss"]
    # The draws still count in what is random, so that only the order of images may differ.
    assert always[1]["train_loss"] == pytest.approx(plain[1]["train_loss"], abs=1e-5)
