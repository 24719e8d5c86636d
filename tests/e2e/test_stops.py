"""Twenty stops of a real server, out of the 300 of `make test-stops`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stops.stop import Case, Moment, Signals, cases, stop

_CASES = cases(count=20, seed=16)


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_a_stop_is_clean(case: Case, tmp_path: Path) -> None:
    """Status 0, no killed worker, no surviving process; the time is asserted by make test-stops."""
    stopped = stop(case, tmp_path)
    assert not stopped.problems, "\n".join(stopped.problems)


def test_the_chosen_stops_cover_every_moment_and_every_choice_of_signals() -> None:
    assert {case.moment for case in _CASES} == set(Moment)
    assert {case.signals for case in _CASES} == set(Signals)
    assert {case.workers for case in _CASES} == {1, 2}
