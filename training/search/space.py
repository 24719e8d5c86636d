"""The space of a search: some knobs of a recipe, each with a list of values or a range."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from training.data.dataset import DataSet
from training.errors import UsageError
from training.recipes.flags import knob_named, parse_knob
from training.recipes.recipe import Recipe, flag_of, to_json


class Varied(NamedTuple):
    """One knob, with the texts of its values, or with a range from `low` to `high`."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return a value of the knob for this trial."""
        if self.choices:
            return self.value(trial.suggest_categorical(self.name, self.choices))
        # Over more than a decade, search for the order of magnitude.
        logarithmic = self.low > 0 and self.high / self.low >= 10
        if isinstance(knob_named(self.name).default, int):
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=logarithmic)
        return trial.suggest_float(self.name, self.low, self.high, log=logarithmic)

    def value(self, parameter: Any) -> Any:
        """Return the value of the knob that a parameter of a trial stands for."""
        return parse_knob(knob_named(self.name), parameter) if self.choices else parameter


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched: the knobs in `space`, varied in one recipe on one data set."""

    recipe: Recipe
    space: tuple[Varied, ...]
    data: DataSet
    seed: int  # of every trial's training
    folder: Path
    sampler: str  # grid or tpe
    trials: int  # for tpe
    prune: bool

    def plan(self) -> dict[str, Any]:
        """Return, as JSON values, what all processes that share a study must agree on."""
        return {
            "recipe": to_json(self.recipe),
            "space": [v._asdict() | {"choices": list(v.choices)} for v in self.space],
            "sampler": self.sampler,
            "seed": self.seed,
            "data": self.data.sha256,
        }


def parse_varied(text: str) -> Varied:
    """Parse `lr=0.001,0.01,0.1` or `lr=0.001:0.1`; lists of numbers as `hidden=30+30,256`."""
    name, _, values = text.partition("=")
    knob = knob_named(name.strip())
    try:
        if ":" in values:
            low, high = (float(part) for part in values.split(":"))
            if type(knob.default) not in (int, float) or not low < high:
                raise ValueError("a range needs a numeric knob, and its lower end first")
            return Varied(knob.name, low=low, high=high)
        choices = tuple(part.strip().replace("+", ",") for part in values.split(",") if part)
        for choice in choices:
            parse_knob(knob, choice)
    except ValueError as error:
        raise UsageError(f"--vary {text}: {error}.") from error
    if not choices:
        raise UsageError(f"--vary {text}: give values, as in --vary lr=0.001,0.01,0.1.")
    return Varied(knob.name, choices)


def cells(space: tuple[Varied, ...]) -> list[dict[str, str]]:
    """Return every combination of the choices. Raises UsageError if a knob has a range."""
    for varied in space:
        if not varied.choices:
            flag = flag_of(knob_named(varied.name))
            raise UsageError(
                f"A grid needs a list of values for {flag}; for a range add --sampler tpe."
            )
    names = [varied.name for varied in space]
    combinations = itertools.product(*(varied.choices for varied in space))
    return [dict(zip(names, values, strict=True)) for values in combinations]


def changes_of(space: tuple[Varied, ...], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the knobs that the parameters of a trial stand for."""
    return {varied.name: varied.value(parameters[varied.name]) for varied in space}
