"""The loop: descent, regularisation, early stopping, SAM and self-distillation, in short runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training.runs import begin_on_mnist, epochs_of, evaluation_of, train
from training.data.mnist import load_mnist
from training.evaluation.metrics import logits_of, loss_and_accuracy
from training.hardware import computes_bf16
from training.loop import limit_norms, penalty, perturbed
from training.models import build_network, scale
from training.recipes.recipe import Recipe
from training.run import checkpoint

NOTES = ["--recipe", "book-30-30", "--validation-size", "1000", "--no-publish"]


FEW = [*NOTES, "--train-limit", "200", "--lr", "0.1"]


def weights_of(run: Path) -> list[torch.Tensor]:
    network = checkpoint.read(run / "checkpoint.safetensors").network
    return [parameter for parameter in network.parameters() if parameter.ndim == 2]


@pytest.mark.parametrize("size", ["1", "64", "full"])
def test_stochastic_batch_and_minibatch_descent_learn(tmp_path: Path, size: str) -> None:
    run = train(tmp_path, *FEW, "--batch-size", size, "--epochs", "3", "--lr", "0.05")
    losses = [metrics["train_loss"] for metrics in epochs_of(run)]
    assert losses[2] < losses[0]


def test_batch_size_full_is_one_step_per_epoch_over_all_images(tmp_path: Path) -> None:
    full = train(tmp_path / "a", *FEW, "--batch-size", "full", "--epochs", "2")
    whole = train(tmp_path / "b", *FEW, "--batch-size", "200", "--epochs", "2")
    assert all(map(torch.equal, weights_of(full), weights_of(whole)))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_small_network_learns_with_each_activation(tmp_path: Path, activation: str) -> None:
    run = train(tmp_path, *FEW, "--activation", activation, "--epochs", "2", "--lr", "0.3")
    losses = [metrics["train_loss"] for metrics in epochs_of(run)]
    assert losses[1] < losses[0]


def test_l1_and_l2_penalties_are_sums_over_all_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 1))
    weight = network[0].weight
    weight.data = torch.tensor([[3.0, -4.0]])
    with torch.no_grad():
        assert float(penalty(network, Recipe(name="x", l1=0.1))) == pytest.approx(0.7)
        assert float(penalty(network, Recipe(name="x", l2=0.1))) == pytest.approx(2.5)
    assert penalty(network, Recipe(name="x")) == 0.0


def test_l1_and_l2_shrink_the_weights(tmp_path: Path) -> None:
    plain, l1, l2 = (
        weights_of(train(tmp_path / name, *FEW, *flags, "--epochs", "5"))
        for name, flags in (("no", []), ("l1", ["--l1", "0.01"]), ("l2", ["--l2", "0.05"]))
    )
    assert sum(w.abs().sum() for w in l1) < 0.8 * sum(w.abs().sum() for w in plain)
    assert sum(w.square().sum() for w in l2) < 0.8 * sum(w.square().sum() for w in plain)


def test_max_norm_projects_long_vectors_and_keeps_short_ones(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    network[0].weight.data = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    limit_norms(network, 2.5)
    assert torch.allclose(network[0].weight, torch.tensor([[1.5, 2.0], [0.3, 0.4]]))
    run = train(tmp_path, *FEW, "--max-norm", "0.5", "--epochs", "3", "--lr", "0.5")
    for weight in weights_of(run):
        assert weight.norm(dim=1).max() <= 0.5 + 1e-5


def test_bfloat16_changes_the_arithmetic_but_not_the_dtype_of_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = train(tmp_path / "exact", *FEW, "--epochs", "3")
    capsys.readouterr()
    rounded = train(tmp_path / "rounded", *FEW, "--epochs", "3", "--bf16")
    able = computes_bf16(torch.device("cpu"))
    if Path("/proc/cpuinfo").exists():
        flags = Path("/proc/cpuinfo").read_text()
        assert able == ("avx512_bf16" in flags or "amx_bf16" in flags)
    log = capsys.readouterr()
    assert ("on cpu in bfloat16" if able else "on cpu in float32") in log.out + log.err
    for ours, theirs in zip(weights_of(rounded), weights_of(exact), strict=True):
        assert ours.dtype == torch.float32
        # A device without bfloat16 instructions computes in float32, and the log says so.
        assert torch.equal(ours, theirs) != able
        assert torch.allclose(ours, theirs, atol=0.01)


def test_epochs_before_the_last_look_at_some_of_the_validation_images(tmp_path: Path) -> None:
    many = ["--epochs", "2", "--validation-size", "6000"]
    run = train(tmp_path, *FEW, *many)
    first, last = (metrics["validation_accuracy"] for metrics in epochs_of(run))
    assert first * 2500 == pytest.approx(round(first * 2500), abs=1e-6)
    network = checkpoint.read(run / "checkpoint.safetensors").network
    data = load_mnist()
    logits = logits_of(network, data.train_images[-6000:], torch.device("cpu"))
    assert last == loss_and_accuracy(logits, data.train_labels[-6000:])[1]


def test_early_stopping_keeps_the_best_epoch_on_validation(tmp_path: Path) -> None:
    # The network memorises 64 images, so the validation loss soon rises.
    arguments = ["--train-limit", "64", "--batch-size", "8", "--lr", "0.3", "--epochs", "200"]
    run = train(tmp_path, *NOTES, *arguments, "--patience", "3")
    losses = [metrics["validation_loss"] for metrics in epochs_of(run)]
    assert len(losses) < 200
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 3
    assert checkpoint.read(run / "checkpoint.safetensors").epoch == best
    assert evaluation_of(run)["images"] == 10_000


TINY = ["--recipe", "book-30-30", "--train-limit", "50", "--batch-size", "full", "--lr", "0.5"]


def test_self_distillation_starts_after_a_quarter_of_the_run(
    tmp_path: Path,
) -> None:
    # Four steps of batch descent, three of them with soft targets.
    more = ["--epochs", "4", "--ema-decay", "0.9", "--self-distillation", "0.7", "--no-publish"]
    reached = checkpoint.read(train(tmp_path, *TINY, *more) / "checkpoint.safetensors").network
    state = begin_on_mnist(Recipe(name="x", hidden=(30, 30), ema_decay=0.9))
    network, averaged, data = state.network, state.averaged, load_mnist()
    pixels, labels = scale(data.train_images[:50]), data.train_labels[:50]
    for step in range(1, 5):
        logits = network(pixels)
        loss = cross_entropy(logits, labels)
        if step > 1:
            soft_targets = averaged(pixels).softmax(1).detach()
            loss = 0.3 * loss + 0.7 * cross_entropy(logits, soft_targets)
        network.zero_grad()
        loss.backward()
        decay = min(0.9, (1 + step) / (10 + step))
        with torch.no_grad():
            for ours, average in zip(network.parameters(), averaged.parameters(), strict=True):
                assert ours.grad is not None
                ours.sub_(0.5 * ours.grad)
                average.copy_(decay * average + (1 - decay) * ours)
    for ours, theirs in zip(averaged.parameters(), reached.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_convolutional_network_learns_with_sam_and_self_distillation(tmp_path: Path) -> None:
    few = ["--recipe", "fast", "--channels", "4,8", "--train-limit", "2000", "--batch-size", "64"]
    more = ["--epochs", "4", "--sam", "0.05", "--self-distillation", "0.5", "--no-publish"]
    epochs = epochs_of(train(tmp_path, *few, *more))
    assert epochs[3]["train_loss"] < epochs[0]["train_loss"]


def test_plain_end_turns_augmentation_off_in_the_last_epochs(tmp_path: Path) -> None:
    few = [*TINY, "--shift", "4", "--epochs", "2", "--no-publish"]
    never, half, always = (
        epochs_of(train(tmp_path / share, *few, "--plain-end", share))
        for share in ("0", "0.5", "1")
    )
    plain = epochs_of(train(tmp_path / "plain", *TINY, "--epochs", "2", "--no-publish"))
    assert half[0]["train_loss"] == never[0]["train_loss"] != plain[0]["train_loss"]
    assert half[1]["train_loss"] != never[1]["train_loss"]
    # Augmentation is still drawn, so only the order of the images may differ.
    assert always[1]["train_loss"] == pytest.approx(plain[1]["train_loss"], abs=1e-5)


def test_perturbation_moves_weights_along_their_gradients_and_restores_them() -> None:
    torch.manual_seed(0)
    network = build_network(Recipe(name="x", channels=(4, 8), hidden=()))
    pixels, labels = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    loss = torch.nn.functional.cross_entropy(network(pixels), labels)
    loss.backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with perturbed(network, 0.05):
        moves = [p.detach() - before[name] for name, p in network.named_parameters()]
        assert torch.cat([m.flatten() for m in moves]).norm().item() == pytest.approx(0.05, 1e-3)
        worse = torch.nn.functional.cross_entropy(network(pixels), labels)
        assert worse > loss
    after = network.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    # Batch statistics are not updated meanwhile; only the number of batches is.
    assert {name.rpartition(".")[2] for name in changed} <= {"num_batches_tracked"}
    network(pixels)
    assert not torch.equal(network.state_dict()["1.running_mean"], before["1.running_mean"])


def test_perturbation_restores_weights_after_an_error() -> None:
    network = build_network(Recipe(name="x", hidden=(4,)))
    network(torch.rand(2, 1, 28, 28)).sum().backward()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with pytest.raises(ZeroDivisionError), perturbed(network, 1.0):
        raise ZeroDivisionError
    assert all(map(torch.equal, network.parameters(), before))


def test_sam_steps_by_the_gradient_at_the_perturbed_weights(tmp_path: Path) -> None:
    # One step of batch descent.
    few = ["--recipe", "book-30-30", "--train-limit", "50", "--batch-size", "full", "--lr", "0.5"]
    few += ["--epochs", "1", "--sam", "0.3", "--no-publish"]
    reached = checkpoint.read(train(tmp_path, *few) / "checkpoint.safetensors").network
    network = begin_on_mnist(Recipe(name="x", hidden=(30, 30))).network
    data = load_mnist()
    pixels, labels = scale(data.train_images[:50]), data.train_labels[:50]

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(pixels), labels).backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    first = gradients()
    length = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for p, g in zip(network.parameters(), first, strict=True):
            p.add_(g * (0.3 / length))
    second = gradients()
    with torch.no_grad():
        for p, before, g in zip(network.parameters(), first, second, strict=True):
            p.sub_(before * (0.3 / length) + 0.5 * g)
    for ours, theirs in zip(network.parameters(), reached.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_sam_changes_the_run_and_still_learns(tmp_path: Path) -> None:
    few = ["--recipe", "book-30-30", "--validation-size", "1000", "--train-limit", "500"]
    few += ["--lr", "0.1", "--epochs", "3", "--no-publish"]
    plain = epochs_of(train(tmp_path / "plain", *few))
    flat = epochs_of(train(tmp_path / "flat", *few, "--sam", "0.05"))
    assert flat[0]["train_loss"] != plain[0]["train_loss"]
    assert flat[2]["train_loss"] < flat[0]["train_loss"]
