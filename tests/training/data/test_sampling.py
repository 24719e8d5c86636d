"""Which images an epoch trains on."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.small_run import epochs_of, train
from training.data.sampling import Sampler
from training.recipes.recipe import Recipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_recipe_that_leaves_nothing_out_trains_on_all_images_and_remembers_nothing() -> None:
    sampler = Sampler(Recipe(name="x"), 100)
    assert sampler.order(generator()).sort().values.tolist() == list(range(100))
    sampler.saw(torch.arange(100), torch.zeros(100))
    sampler.end_epoch(sampler.fresh)
    assert len(sampler.losses) == 0
    assert len(sampler.order(generator())) == 100


@given(
    losses=st.lists(st.sampled_from([0.0, 0.01, 0.5, 3.0]), min_size=1, max_size=200),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_hard_images_are_never_left_out_and_none_comes_twice(
    losses: list[float], share: float, seed: int
) -> None:
    sampler = Sampler(Recipe(name="x", easy_below=0.1, easy_share=share), len(losses))
    random = generator(seed)
    first = sampler.order(random)
    assert len(first) == len(losses)  # none has been seen
    sampler.saw(first, torch.tensor(losses)[first])
    sampler.end_epoch(sampler.fresh)
    second = sampler.order(random).tolist()
    assert second
    assert len(set(second)) == len(second)
    assert {at for at, loss in enumerate(losses) if loss >= 0.1} <= set(second)


def test_the_share_of_easy_images_is_drawn_anew_each_epoch() -> None:
    sampler = Sampler(Recipe(name="x", easy_below=0.1, easy_share=0.1), 10_000)
    random = generator()
    sampler.saw(sampler.order(random), torch.zeros(10_000))
    sampler.end_epoch(sampler.fresh)
    second, third = (set(sampler.order(random).tolist()) for _ in range(2))
    assert 850 < len(second) < 1_150  # five deviations
    assert len(second & third) < 200
    # An image that an epoch left out is as easy as when it was last seen.
    sampler.end_epoch(sampler.fresh)
    assert bool((sampler.losses == 0).all())


def test_there_is_an_image_for_each_process_even_if_all_are_easy() -> None:
    for seed in range(50):
        sampler = Sampler(Recipe(name="x", easy_below=1, easy_share=0.01), 20)
        random = generator(seed)
        sampler.saw(sampler.order(random), torch.zeros(20))
        sampler.end_epoch(sampler.fresh)
        assert len(sampler.order(random, at_least=2)) >= 2


def test_a_run_tells_how_many_images_each_epoch_trained_on(tmp_path: Path) -> None:
    few = ["--recipe", "mlp", "--hidden", "64", "--epochs", "6", "--train-limit", "2000"]
    run = train(tmp_path, *few, "--easy-below", "0.2", "--easy-share", "0.05", "--no-publish")
    counts = [figures["images"] for figures in epochs_of(run)]
    assert counts[0] == 2_000
    assert counts[-1] < 1_500


def test_label_smoothing_hides_from_nobody_how_easy_an_image_is(tmp_path: Path) -> None:
    few = ["--recipe", "mlp", "--hidden", "64", "--epochs", "8", "--train-limit", "2000"]
    few += ["--label-smoothing", "0.1", "--easy-below", "0.3", "--easy-share", "0.05"]
    # No loss of a smoothed label is below its entropy, 0.5.
    assert epochs_of(train(tmp_path, *few, "--no-publish"))[-1]["images"] < 1_800
