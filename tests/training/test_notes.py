"""What the course notes teach, each as a real run: kinds of descent, regularisation, stopping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.small_run import epochs_of, evaluation_of, train
from training.commands.train import main
from training.hardware import computes_bf16
from training.models import build_network
from training.objective import limit_norms, penalty
from training.recipes.recipe import Recipe
from training.run import checkpoint

NOTES = ["--recipe", "book-30-30", "--validation-size", "1000", "--no-publish"]
FEW = [*NOTES, "--train-limit", "200", "--lr", "0.1"]


def network_of(run: Path) -> torch.nn.Sequential:
    return checkpoint.read(run / "checkpoint.safetensors").network


def weights_of(run: Path) -> list[torch.Tensor]:
    return [p for p in network_of(run).parameters() if p.ndim == 2]


@pytest.mark.parametrize("size", ["1", "64", "full"])
def test_descent_by_image_by_batch_and_by_minibatch_all_learn(tmp_path: Path, size: str) -> None:
    run = train(tmp_path, *FEW, "--batch-size", size, "--epochs", "3", "--lr", "0.05")
    losses = [figures["train_loss"] for figures in epochs_of(run)]
    assert losses[2] < losses[0]


def test_batch_descent_is_one_step_an_epoch_over_all_images(tmp_path: Path) -> None:
    full = train(tmp_path / "a", *FEW, "--batch-size", "full", "--epochs", "2")
    whole = train(tmp_path / "b", *FEW, "--batch-size", "200", "--epochs", "2")
    assert all(map(torch.equal, weights_of(full), weights_of(whole)))


def test_a_batch_size_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--batch-size", "half"])
    assert stopped.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_the_small_net_learns_with_each_activation(tmp_path: Path, activation: str) -> None:
    run = train(tmp_path, *FEW, "--activation", activation, "--epochs", "2", "--lr", "0.3")
    losses = [figures["train_loss"] for figures in epochs_of(run)]
    assert losses[1] < losses[0]


def test_l1_and_l2_are_the_sums_the_notes_name() -> None:
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


def test_max_norm_projects_long_vectors_and_leaves_short_ones(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    network[0].weight.data = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    limit_norms(network, 2.5)
    assert torch.allclose(network[0].weight, torch.tensor([[1.5, 2.0], [0.3, 0.4]]))
    run = train(tmp_path, *FEW, "--max-norm", "0.5", "--epochs", "3", "--lr", "0.5")
    for weight in weights_of(run):
        assert weight.norm(dim=1).max() <= 0.5 + 1e-5


def test_dropout_keeps_units_with_its_probability_and_their_mean() -> None:
    torch.manual_seed(0)
    layer = next(
        layer
        for layer in build_network(Recipe(name="x", dropout=0.2))
        if isinstance(layer, torch.nn.Dropout)
    )
    values = layer.train()(torch.ones(100_000))
    assert (values > 0).float().mean() == pytest.approx(0.8, abs=0.01)
    assert values.mean() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(layer.eval()(torch.ones(10)), torch.ones(10))


def test_dropout_comes_after_hidden_units_only() -> None:
    def layers(**knobs: object) -> list[str]:
        network = build_network(Recipe(name="x", dropout=0.5, **knobs))  # type: ignore[arg-type]
        return [type(layer).__name__ for layer in network]

    assert layers(hidden=()) == ["Flatten", "Linear"]
    assert layers(hidden=(9,)) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert layers(channels=(4,), hidden=())[-3:] == ["Flatten", "Dropout", "Linear"]


def test_in_bfloat16_a_net_learns_and_its_weights_stay_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = train(tmp_path / "exact", *FEW, "--epochs", "3")
    capsys.readouterr()
    rounded = train(tmp_path / "rounded", *FEW, "--epochs", "3", "--bf16")
    able = computes_bf16(torch.device("cpu"))
    if Path("/proc/cpuinfo").exists():
        flags = Path("/proc/cpuinfo").read_text()
        assert able == ("avx512_bf16" in flags or "amx_bf16" in flags)
    told = capsys.readouterr()
    assert ("on cpu in bfloat16" if able else "on cpu in float32") in told.out + told.err
    for ours, theirs in zip(weights_of(rounded), weights_of(exact), strict=True):
        assert ours.dtype == torch.float32
        # Where the device has no instructions for it, all of it is in float32, and it says so.
        assert torch.equal(ours, theirs) != able
        assert torch.allclose(ours, theirs, atol=0.01)


def test_early_stopping_takes_the_best_epoch_on_validation(tmp_path: Path) -> None:
    # 64 images are learnt by heart: the validation loss turns soon.
    arguments = ["--train-limit", "64", "--batch-size", "8", "--lr", "0.3", "--epochs", "200"]
    run = train(tmp_path, *NOTES, *arguments, "--patience", "3")
    losses = [figures["validation_loss"] for figures in epochs_of(run)]
    assert len(losses) < 200
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 3
    assert checkpoint.read(run / "checkpoint.safetensors").epoch == best
    assert evaluation_of(run)["images"] == 10_000


def test_early_stopping_needs_something_to_judge_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", "book", "--patience", "2", "--runs", str(tmp_path)]) == 2
    assert "--validation-size" in capsys.readouterr().err
    assert main(["--validation-size", "60000", "--runs", str(tmp_path)]) == 2
    assert "leaves none of the 60000" in capsys.readouterr().err
