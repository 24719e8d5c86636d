"""The recipe: everything that determines what is trained, as data.

A recipe is one frozen `Recipe`. The flags of the command line, `config.json`, the metadata of
checkpoints and the model card all come from its fields, so a new knob is added here and nowhere
else.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from training.errors import UsageError

FULL_BATCH = 0  # as a batch size: all images
_DEFAULT_POOL_AFTER = (2, 3)  # networks with fewer convolutions ignore the numbers beyond them
# By stride: from maps of 28x28 or 12x12 pixels down to one pixel.
_MOST_POOLS = {1: 4, 2: 3}

# Headings of --help.
Group = Literal["run", "network", "optimisation", "images"]

_T = TypeVar("_T")


def _knob(
    group: Group,
    default: _T,
    help: str,  # noqa: A002 - argparse's own word
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    words: Mapping[str, int] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> _T:
    """Return a dataclass field with the metadata of its flag: `low <= value <= high`.

    `group` is the heading of the flag in --help.
    `words` are names for single values, such as `full` for a batch size.
    """
    metadata = {"help": help, "flag": flag, "choices": choices, "words": words or {}}
    return field(default=default, metadata=metadata | {"group": group, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how. The defaults are the classifier of the course notes (`book`)."""

    name: str

    # The network: convolutions, then hidden dense layers, then the dense layer of the logits.
    channels: tuple[int, ...] = _knob(
        "network",
        (),
        "output channels of each convolution, as 16,32; empty for a dense network",
        low=1,
    )
    pool_after: tuple[int, ...] = _knob(
        "network",
        _DEFAULT_POOL_AFTER,
        "convolutions, counted from 1, followed by 2x2 max pooling",
        low=1,
    )
    stride: int = _knob(
        "network",
        2,
        "stride of the first convolution: 2 is 6x6 with maps of 12x12, 1 is 3x3 with maps of 28x28",
        low=1,
        high=2,
    )
    average_maps: bool = _knob(
        "network", False, "reduce each of the last maps to its mean (global average pooling)"
    )
    hidden: tuple[int, ...] = _knob(
        "network", (256,), "units of each hidden dense layer, as 30,30; empty for none", low=1
    )
    activation: str = _knob(
        "network", "relu", "activation after each hidden layer", choices=("relu", "sigmoid", "tanh")
    )
    dropout: float = _knob(
        "network",
        0.0,
        "share of hidden units that each training step sets to zero; the others are divided by "
        "1 - dropout, so inference needs no scaling",
        low=0,
        high=0.95,
    )
    standardise: bool = _knob(
        "network",
        False,
        "scale pixels to mean 0 and standard deviation 1, with MNIST's own statistics",
    )

    # The optimisation.
    epochs: int = _knob("optimisation", 40, "passes over the training images", low=1)
    batch_size: int = _knob(
        "optimisation",
        64,
        "images per step: 1 is stochastic, full is batch, anything else is minibatch descent",
        words={"full": FULL_BATCH},
        low=FULL_BATCH,
    )
    optimizer: str = _knob("optimisation", "sgd", "optimiser", choices=("sgd", "adamw"))
    learning_rate: float = _knob(
        "optimisation", 1e-3, "learning rate; with a schedule, its peak", flag="--lr", low=0
    )
    schedule: str = _knob(
        "optimisation",
        "constant",
        "schedule of the learning rate",
        choices=("constant", "one-cycle"),
    )
    momentum: float = _knob("optimisation", 0.0, "momentum (sgd only)", low=0, high=0.999)
    weight_decay: float = _knob(
        "optimisation", 0.0, "weight decay (decoupled from the loss for adamw)", low=0
    )
    l1: float = _knob(
        "optimisation", 0.0, "L1 penalty: adds this times the sum of |w| to the loss", low=0
    )
    l2: float = _knob(
        "optimisation", 0.0, "L2 penalty: adds this times the sum of w * w to the loss", low=0
    )
    max_norm: float = _knob(
        "optimisation",
        0.0,
        "largest norm of a unit's vector of incoming weights; 0 for no limit",
        low=0,
    )
    patience: int = _knob(
        "optimisation",
        0,
        "early stopping: stop after N epochs without a lower validation loss and keep the weights "
        "of the best epoch; 0 for never",
        low=0,
    )
    label_smoothing: float = _knob(
        "optimisation", 0.0, "label smoothing of the training loss", low=0, high=0.5
    )
    sharpness: float = _knob(
        "optimisation",
        0.0,
        "sharpness-aware minimisation (SAM): radius of the perturbation of the weights; doubles "
        "the training time",
        flag="--sam",
        low=0,
    )
    ema_decay: float = _knob(
        "optimisation",
        0.0,
        "decay of the moving average (EMA) of the weights; 0 uses the last weights",
        low=0,
        high=0.9999,
    )
    self_distillation: float = _knob(
        "optimisation",
        0.0,
        "share of the loss with the predictions of the EMA weights as targets in place of the "
        "labels, after the first quarter of the epochs",
        low=0,
        high=1,
    )
    bf16: bool = _knob(
        "optimisation",
        False,
        "convolve and multiply in bfloat16 on devices that have instructions for it",
    )

    # The images of an epoch: most recipes leave out those that the network classifies easily.
    easy_below: float = _knob(
        "images", 0.0, "an image is easy if its training loss was below this when last seen", low=0
    )
    easy_share: float = _knob(
        "images",
        1.0,
        "share of the easy images that each epoch trains on, drawn again for each; 1 for all",
        low=0.01,
        high=1,
    )

    # Augmentation and the split.
    shift: float = _knob("images", 0.0, "random shifts of up to this many pixels", low=0, high=14)
    rotation: float = _knob(
        "images", 0.0, "random rotations of up to this many degrees", low=0, high=180
    )
    zoom: float = _knob("images", 0.0, "random zoom of up to this share", low=0, high=0.9)
    elastic: float = _knob(
        "images",
        0.0,
        "random elastic deformation that moves points by up to this many pixels",
        low=0,
        high=14,
    )
    shear: float = _knob(
        "images", 0.0, "random shear of up to this share of the height", low=0, high=1
    )
    perspective: float = _knob(
        "images",
        0.0,
        "random perspective: one edge is longer than the other by up to this share",
        low=0,
        high=1,
    )
    stroke: float = _knob(
        "images",
        0.0,
        "random width of strokes: mixes up to this share of the image dilated or eroded by a pixel",
        low=0,
        high=1,
    )
    resample: int = _knob(
        "images",
        0,
        "every other image is reduced to a random side of N to 28 pixels and enlarged again; 0 for "
        "never",
        low=0,
        high=28,
    )
    faint: float = _knob(
        "images",
        0.0,
        "every other image loses up to this share of its ink's strength",
        low=0,
        high=0.95,
    )
    frame: float = _knob(
        "images",
        0.0,
        "share of the images that get a line along one edge, like what is left of a frame",
        low=0,
        high=1,
    )
    plain_end: float = _knob(
        "images",
        0.0,
        "share of the epochs, at the end, that train without augmentation",
        low=0,
        high=1,
    )
    validation_size: int = _knob(
        "images", 5000, "number of training images, the last ones, held out for validation", low=0
    )
    outliers: float = _knob(
        "images",
        0.0,
        "made-up letters, signs, noise and several digits to learn as two more classes, and "
        "printed digits: this many per training image; only for data sets of digits",
        low=0,
        high=10,
    )
    train_limit: int = _knob("images", 0, "train on the first N images only; 0 for all", low=0)
    # For reporting only: no weight, temperature or choice of an epoch depends on it.
    report_test_each_epoch: bool = _knob("run", False, "also print test metrics after every epoch")

    def __post_init__(self) -> None:
        for knob in knobs():
            value, choices = getattr(self, knob.name), knob.metadata["choices"]
            if choices is not None and value not in choices:
                raise UsageError(
                    f"{flag_of(knob)} is {value!r}; it must be one of {', '.join(choices)}."
                )
            low, high = knob.metadata["low"], knob.metadata["high"]
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not low <= number <= high:
                    raise UsageError(
                        f"{flag_of(knob)} is {number}; it must be from {low} to {high}."
                    )
        if self.patience and not self.validation_size:
            raise UsageError("--patience needs validation images; add --validation-size.")
        if self.self_distillation and not self.ema_decay:
            raise UsageError("--self-distillation needs EMA weights; add --ema-decay.")
        _check_pools(self)


def _check_pools(recipe: Recipe, explicit: bool = False) -> None:
    pool_after, convolutions = recipe.pool_after, len(recipe.channels)
    last, most = max(pool_after, default=0), _MOST_POOLS[recipe.stride]
    if convolutions and last > convolutions and (explicit or pool_after != _DEFAULT_POOL_AFTER):
        raise UsageError(f"--pool-after names convolution {last}; --channels has {convolutions}.")
    if sum(number <= convolutions for number in set(pool_after)) > most:
        raise UsageError(f"--pool-after names more than {most} convolutions.")


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values of some fields. Raises UsageError.

    If `changes` has channels but not `pool_after`, the recipe's own is limited to the convolutions
    that remain.
    """
    explicit = "pool_after" in changes
    if "channels" in changes and not explicit:
        last = len(changes["channels"])
        changes = {"pool_after": tuple(n for n in recipe.pool_after if n <= last), **changes}
    result = dataclasses.replace(recipe, **changes)
    _check_pools(result, explicit)
    return result


def knobs() -> tuple["dataclasses.Field[Any]", ...]:
    """Return the fields that can be overridden: all but the name."""
    return tuple(f for f in dataclasses.fields(Recipe) if f.name != "name")


def flag_of(knob: "dataclasses.Field[Any]") -> str:
    """Return the command-line flag of a field."""
    return knob.metadata["flag"] or "--" + knob.name.replace("_", "-")


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Return the fields as JSON values, with lists for tuples."""
    return to_json_values(dataclasses.asdict(recipe))


def to_json_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of some fields as JSON values, with lists for tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
    }


def from_json(fields: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `to_json` gave `fields` for. Raises TypeError for unknown fields."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return Recipe(**values)
