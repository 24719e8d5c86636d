"""The request path of a picture stays short; docs/architecture.md has the walk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.conftest import ROOT


class Walk(NamedTuple):
    """What `tests.service.request_path` prints: names of functions, outermost first."""

    functions: list[str]
    to_the_queue: list[str]
    to_the_model: list[str]
    deepest: int


@pytest.fixture(scope="module")
def walk() -> Walk:
    command = [sys.executable, "-m", "tests.service.request_path"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Walk(**json.loads(done.stdout))


def test_at_most_8_calls_are_nested_from_the_socket_to_the_model(walk: Walk) -> None:
    assert walk.to_the_queue[0] == "HttpFront.__call__"
    assert walk.to_the_model[0] == "Batcher._turn"
    assert len(walk.to_the_queue) + len(walk.to_the_model) <= 8
    assert walk.deepest <= 8


def test_at_most_26_functions_answer_a_picture(walk: Walk) -> None:
    assert len(set(walk.functions)) <= 26, walk.functions


def test_the_walk_in_the_manual_names_every_function(walk: Walk) -> None:
    """docs/architecture.md names exactly these functions, each in a numbered line."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## The path of a picture")[1].split("\n## ")[0]
    named = set(re.findall(r"^ *- \d+: `([\w.]+)`", section, re.MULTILINE))
    assert named == set(walk.functions)
