"""The selection of images for an epoch."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.runs import epochs_of, train
from training.data.sampling import Sampler
from training.recipes.recipe import Recipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_recipe_without_selection_uses_all_images_and_stores_no_losses() -> None:
    sampler = Sampler(Recipe(name="x"), 100)
    assert sampler.order(generator()).sort().values.tolist() == list(range(100))
    sampler.record(torch.arange(100), torch.zeros(100))
    sampler.end_epoch(sampler.recorded)
    assert len(sampler.losses) == 0
    assert len(sampler.order(generator())) == 100


@given(
    losses=st.lists(st.sampled_from([0.0, 0.01, 0.5, 3.0]), min_size=1, max_size=200),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_hard_images_are_always_kept_and_none_is_repeated(
    losses: list[float], share: float, seed: int
) -> None:
    sampler = Sampler(Recipe(name="x", easy_below=0.1, easy_share=share), len(losses))
    random = generator(seed)
    first = sampler.order(random)
    assert len(first) == len(losses)  # none has been seen
    sampler.record(first, torch.tensor(losses)[first])
    sampler.end_epoch(sampler.recorded)
    second = sampler.order(random).tolist()
    assert second
    assert len(set(second)) == len(second)
    assert {at for at, loss in enumerate(losses) if loss >= 0.1} <= set(second)


def test_each_epoch_draws_another_share_of_the_easy_images() -> None:
    sampler = Sampler(Recipe(name="x", easy_below=0.1, easy_share=0.1), 10_000)
    random = generator()
    sampler.record(sampler.order(random), torch.zeros(10_000))
    sampler.end_epoch(sampler.recorded)
    second, third = (set(sampler.order(random).tolist()) for _ in range(2))
    assert 850 < len(second) < 1_150  # five deviations
    assert len(second & third) < 200
    # An image that an epoch left out is as easy as when it was last seen.
    sampler.end_epoch(sampler.recorded)
    assert bool((sampler.losses == 0).all())


def test_each_process_gets_an_image_even_if_all_are_easy() -> None:
    for seed in range(50):
        sampler = Sampler(Recipe(name="x", easy_below=1, easy_share=0.01), 20)
        random = generator(seed)
        sampler.record(sampler.order(random), torch.zeros(20))
        sampler.end_epoch(sampler.recorded)
        assert len(sampler.order(random, at_least=2)) >= 2


def test_run_records_the_number_of_images_of_each_epoch(tmp_path: Path) -> None:
    few = ["--recipe", "mlp", "--hidden", "64", "--epochs", "6", "--train-limit", "2000"]
    run = train(tmp_path, *few, "--easy-below", "0.2", "--easy-share", "0.05", "--no-publish")
    counts = [metrics["images"] for metrics in epochs_of(run)]
    assert counts[0] == 2_000
    assert counts[-1] < 1_500


def test_label_smoothing_does_not_affect_which_images_are_easy(tmp_path: Path) -> None:
    few = ["--recipe", "mlp", "--hidden", "64", "--epochs", "8", "--train-limit", "2000"]
    few += ["--label-smoothing", "0.1", "--easy-below", "0.3", "--easy-share", "0.05"]
    # No loss of a smoothed label is below its entropy, 0.5.
    assert epochs_of(train(tmp_path, *few, "--no-publish"))[-1]["images"] < 1_800
