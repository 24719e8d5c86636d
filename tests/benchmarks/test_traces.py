"""The cost of traces, from real servers under a short load. Needs wrk."""

from __future__ import annotations

import re

import pytest

from benchmarks import traces


def test_every_kind_is_compared_with_the_server_without_traces(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert traces.main(["--rounds", "1", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [
        re.match(r" *(.+): +([0-9.]+) us per request, ([0-9.]+) of off", line) for line in lines
    ]
    rows = {match[1]: (float(match[2]), float(match[3])) for match in found if match}
    assert list(rows) == list(traces.KINDS)
    off, ratio = rows["off"]
    assert off > 0
    assert ratio == 1
