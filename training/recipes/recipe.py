"""Recipes: everything that decides what is learnt, as data.

A recipe is one frozen `Recipe`; a reader sees every hyper-parameter of it in `RECIPES`. The
command line's override flags, `config.json`, the checkpoint's metadata and the model card all
come from these fields, so a knob is added here and nowhere else.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.errors import UsageError

FULL_BATCH = 0  # a batch size
_POOL_AFTER = (2, 3)  # of a network with fewer convolutions: those of them that it has
_MOST_POOLS = {1: 4, 2: 3}  # by stride: from maps of 28x28 or 12x12 to one pixel


def _knob(
    default: Any,
    help: str,  # noqa: A002 - argparse's own word
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    words: Mapping[str, int] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """Return a dataclass field with what its command-line flag needs: `low <= value <= high`.

    `words` are names of single values, as `full` for a batch size.
    """
    metadata = {"help": help, "flag": flag, "choices": choices, "words": words or {}}
    return field(default=default, metadata=metadata | {"low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is learnt and how. The defaults are the course notes' classifier: recipe `book`."""

    name: str

    # The network: convolutions, then dense layers, then the ten logits.
    channels: tuple[int, ...] = _knob(
        (), "output channels of each convolution, as 16,32; empty for a dense network", low=1
    )
    pool_after: tuple[int, ...] = _knob(
        _POOL_AFTER, "convolutions, counted from 1, whose maps are halved by a 2x2 maximum", low=1
    )
    stride: int = _knob(
        2,
        "of the first convolution: 2 is 6x6 and makes maps of 12x12, 1 is 3x3 and keeps 28x28",
        low=1,
        high=2,
    )
    average_maps: bool = _knob(
        False, "give the dense layers the mean of each of the last maps, not all of its pixels"
    )
    hidden: tuple[int, ...] = _knob(
        (256,), "units of each hidden dense layer, as 30,30; empty for none", low=1
    )
    activation: str = _knob(
        "relu", "activation after each hidden layer", choices=("relu", "sigmoid", "tanh")
    )
    dropout: float = _knob(
        0.0,
        "share of hidden units zeroed at each training step: each is kept with probability "
        "1 - dropout and then divided by it, so that nothing changes when the network is used",
        low=0,
        high=0.95,
    )
    standardise: bool = _knob(False, "shift and scale pixels to MNIST's mean 0 and deviation 1")

    # The optimisation.
    epochs: int = _knob(40, "passes over the training images", low=1)
    batch_size: int = _knob(
        64,
        "images per step: 1 is stochastic, full is batch, anything else is minibatch descent",
        words={"full": FULL_BATCH},
        low=FULL_BATCH,
    )
    optimizer: str = _knob("sgd", "optimiser", choices=("sgd", "adamw"))
    learning_rate: float = _knob(
        1e-3, "learning rate (the peak one, if it is scheduled)", flag="--lr", low=0
    )
    schedule: str = _knob(
        "constant", "how the learning rate moves", choices=("constant", "one-cycle")
    )
    momentum: float = _knob(0.0, "momentum (sgd only)", low=0, high=0.999)
    weight_decay: float = _knob(0.0, "weight decay (of AdamW: decoupled from the loss)", low=0)
    l1: float = _knob(0.0, "adds this times the sum of |w| over all weights to the loss", low=0)
    l2: float = _knob(0.0, "adds this times the sum of w * w over all weights to the loss", low=0)
    max_norm: float = _knob(
        0.0, "longest a unit's vector of incoming weights may be after a step; 0 for any", low=0
    )
    patience: int = _knob(
        0,
        "stop after so many epochs without a lower validation loss and take the best epoch's "
        "weights; 0 never stops early",
        low=0,
    )
    label_smoothing: float = _knob(0.0, "label smoothing of the training loss", low=0, high=0.5)
    sharpness: float = _knob(
        0.0,
        "descend by the gradient of the worst weights within this distance (SAM); doubles the time",
        flag="--sam",
        low=0,
    )
    ema_decay: float = _knob(
        0.0, "decay of the moving average of the weights; 0 keeps the last ones", low=0, high=0.9999
    )
    self_distillation: float = _knob(
        0.0,
        "share of the loss that is the cross-entropy with the answers of the moving average, "
        "not with the labels, after the first quarter of the epochs",
        low=0,
        high=1,
    )
    bf16: bool = _knob(
        False, "convolve and multiply in bfloat16 where the device has instructions for that"
    )

    # What most epochs leave out: images that were learnt already.
    easy_below: float = _knob(
        0.0, "an image is easy while its training loss was below this when last seen", low=0
    )
    easy_share: float = _knob(
        1.0,
        "share of the easy images, drawn anew each epoch, that are trained on; all of them with 1",
        low=0.01,
        high=1,
    )

    # The images.
    shift: float = _knob(0.0, "random shifts of up to this many pixels", low=0, high=14)
    rotation: float = _knob(0.0, "random turns of up to this many degrees", low=0, high=180)
    zoom: float = _knob(0.0, "random zoom of up to this share", low=0, high=0.9)
    elastic: float = _knob(
        0.0, "random smooth bending: each point moves by up to this many pixels", low=0, high=14
    )
    plain_end: float = _knob(
        0.0, "last share of the epochs, whose images are left as they are", low=0, high=1
    )
    validation_size: int = _knob(
        5000, "last training images held out, to choose and to calibrate on", low=0
    )
    train_limit: int = _knob(0, "train on the first so many images only; 0 for all", low=0)
    # Pure reporting: no weight, temperature or choice of epoch ever depends on it.
    report_test_each_epoch: bool = _knob(False, "also print the test figures after every epoch")

    def __post_init__(self) -> None:
        for knob in knobs():
            _check(knob, getattr(self, knob.name))
        if self.patience and not self.validation_size:
            raise UsageError("--patience needs images to judge by; give a --validation-size, too.")
        if self.self_distillation and not self.ema_decay:
            raise UsageError("--self-distillation needs a moving average; give --ema-decay, too.")
        _check_pools(self)


def _check(knob: "dataclasses.Field[Any]", value: Any) -> None:
    choices, low, high = (knob.metadata[key] for key in ("choices", "low", "high"))
    if choices is not None and value not in choices:
        raise UsageError(f"{flag_of(knob)} is {value!r}; it must be one of {', '.join(choices)}.")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise UsageError(f"{flag_of(knob)} is {number}; it must be from {low} to {high}.")


def _check_pools(recipe: Recipe, asked: bool = False) -> None:
    pool_after, convolutions = recipe.pool_after, len(recipe.channels)
    last, most = max(pool_after, default=0), _MOST_POOLS[recipe.stride]
    if convolutions and last > convolutions and (asked or pool_after != _POOL_AFTER):
        raise UsageError(f"--pool-after names convolution {last}; --channels has {convolutions}.")
    if sum(number <= convolutions for number in set(pool_after)) > most:
        raise UsageError(f"--pool-after names more than {most} convolutions.")


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values of some fields. Raises UsageError.

    With other channels and nothing said of `pool_after`, the recipe's own is cut to the
    convolutions that there are.
    """
    asked = "pool_after" in changes
    if "channels" in changes and not asked:
        last = len(changes["channels"])
        changes = {"pool_after": tuple(n for n in recipe.pool_after if n <= last), **changes}
    made = dataclasses.replace(recipe, **changes)
    _check_pools(made, asked)
    return made


def knobs() -> tuple["dataclasses.Field[Any]", ...]:
    """Return the overridable fields: all but the name."""
    return tuple(f for f in dataclasses.fields(Recipe) if f.name != "name")


def flag_of(knob: "dataclasses.Field[Any]") -> str:
    """Return the command-line flag of a field."""
    return knob.metadata["flag"] or "--" + knob.name.replace("_", "-")


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Return the fields as JSON values (tuples as lists)."""
    return to_json_values(dataclasses.asdict(recipe))


def to_json_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of some fields as JSON values."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
    }


def from_json(fields: Mapping[str, Any]) -> Recipe:
    """Rebuild a recipe from `to_json`'s mapping; raise `TypeError` on unknown fields."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return Recipe(**values)


def describe(recipe: Recipe) -> str:
    """Return the recipe on one line of JSON, keys in field order."""
    return json.dumps(to_json(recipe))
