"""--help of every command: named groups, a usage of one line, and examples that run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable

import pytest

from service import probe, settings
from training.commands import evaluate, search, train

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "mnist-serve": settings.parser,
    "mnist-probe": probe.parser,
    "mnist-train": train.parser,
    "mnist-search": search.parser,
    "mnist-evaluate": evaluate.parser,
}
every_command = pytest.mark.parametrize("command", PARSERS)


def examples(command: str) -> list[list[str]]:
    """The arguments of each example in the help of a command."""
    epilog = PARSERS[command]().epilog or ""
    _, _, lines = epilog.partition("example")
    found = [shlex.split(line, comments=True) for line in lines.splitlines()[1:]]
    prefix = command.split()
    assert found
    assert all(words[: len(prefix)] == prefix for words in found)
    return [words[len(prefix) :] for words in found]


@every_command
def test_every_flag_is_in_a_group_with_a_name(command: str) -> None:
    parser = PARSERS[command]()
    grouped = [action for group in parser._action_groups[2:] for action in group._group_actions]
    assert [action.dest for action in parser._actions if action not in grouped] == []
    titles = [group.title for group in parser._action_groups[2:]]
    assert len(titles) > 1
    assert all(titles)


@every_command
def test_usage_is_one_line(command: str) -> None:
    usage = PARSERS[command]().format_usage()
    assert usage.startswith(f"usage: {command} ")
    assert usage.count("\n") == 1
    assert len(usage) <= 81


@every_command
def test_help_fits_into_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in PARSERS[command]().format_help().splitlines() if len(line) > 80] == []
