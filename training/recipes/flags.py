"""Recipes from the command line: a name, a TOML file of overrides, and a flag for each knob."""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import UsageError
from training.recipes.presets import RECIPES
from training.recipes.recipe import Recipe, changed, flag_of, knobs

_Knob = dataclasses.Field[Any]
_METAVARS = {int: "N", float: "X", tuple: "N,N,..."}


def add_recipe_flags(groups: Mapping[str, Any], default: str) -> None:
    """Add --recipe, --config and a flag for each knob; all are None unless they are set.

    `groups` are those of the command line, by their titles: at least those of the knobs.
    """
    add = groups["run"].add_argument
    add("--recipe", choices=RECIPES, help=f"recipe to train (default: {default})")
    add("--config", type=Path, metavar="FILE", help="TOML file with a recipe and knobs")
    for knob in knobs():
        _add_knob(groups[knob.metadata["group"]], knob)


def asked_knobs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the knobs that are set on the command line, by name."""
    values = {knob.name: getattr(options, knob.name) for knob in knobs()}
    return {name: value for name, value in values.items() if value is not None}


def recipe_of(options: argparse.Namespace, default: str) -> Recipe:
    """Return the recipe of the options: flags override the file, the file overrides the recipe."""
    changes = _read_config(options.config) if options.config else {}
    name = options.recipe or changes.pop("recipe", default)
    changes.pop("recipe", None)
    if name not in RECIPES:
        raise UsageError(f"{options.config}: no recipe {name!r}; use one of {', '.join(RECIPES)}.")
    return changed(RECIPES[name], changes | asked_knobs(options))


def changes_from_named(recipe: Recipe) -> dict[str, Any]:
    """Return the knobs in which a recipe differs from the preset with its name."""
    preset = RECIPES[recipe.name]
    values = {knob.name: getattr(recipe, knob.name) for knob in knobs()}
    return {name: value for name, value in values.items() if value != getattr(preset, name)}


def knob_named(name: str) -> _Knob:
    """Return the knob with this name or flag. Raises UsageError."""
    for knob in knobs():
        if name.replace("-", "_") == knob.name or flag_of(knob) == f"--{name}":
            return knob
    names = ", ".join(knob.name for knob in knobs())
    raise UsageError(f"A recipe has no knob {name!r}; it has {names}.")


def parse_knob(knob: _Knob, text: str) -> Any:
    """Return the value that a text on the command line stands for. Raises ValueError."""
    if text in knob.metadata["words"]:
        return knob.metadata["words"][text]
    if isinstance(knob.default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text == "true"
    if isinstance(knob.default, tuple):
        return tuple(int(part) for part in text.split(",") if part.strip())
    if knob.metadata["choices"] and text not in knob.metadata["choices"]:
        raise ValueError(f"{text!r} is not one of {', '.join(knob.metadata['choices'])}")
    kind: Any = type(knob.default)
    return kind(text)


def write_config(recipe: str, changes: dict[str, Any], comment: str) -> str:
    """Return the text of a file for --config."""
    lines = [f"# {comment}", f'recipe = "{recipe}"']
    lines += [f"{name} = {_toml(value)}" for name, value in changes.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'  # the name of a choice; nothing to escape
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.") from error
    values = {}
    for name, value in content.items():
        if name == "recipe":
            values[name] = value
        else:
            knob, checked = _config_value(path, name, value)
            values[knob.name] = checked
    return values


def _config_value(path: Path, name: str, value: Any) -> tuple[_Knob, Any]:
    try:
        knob = knob_named(name)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    kind = type(knob.default)
    if isinstance(value, str) and value in knob.metadata["words"]:
        return knob, knob.metadata["words"][value]
    if kind is tuple and isinstance(value, list) and all(type(v) is int for v in value):
        return knob, tuple(value)
    if kind is float and type(value) is int:
        return knob, float(value)
    if type(value) is kind:
        return knob, value
    raise UsageError(f"{path}: {name} is {value!r}; it must be a {kind.__name__}.")


def _add_knob(group: Any, knob: _Knob) -> None:
    flag, text = flag_of(knob), knob.metadata["help"]
    if isinstance(knob.default, bool):
        group.add_argument(
            flag, dest=knob.name, action=argparse.BooleanOptionalAction, help=text, default=None
        )
        return

    def value(text: str) -> Any:
        return parse_knob(knob, text)

    value.__name__ = type(knob.default).__name__  # argparse: invalid int value: 'half'
    choices = knob.metadata["choices"]
    metavar = None if choices else _METAVARS[type(knob.default)]
    group.add_argument(
        flag, dest=knob.name, type=value, help=text, choices=choices, metavar=metavar
    )
