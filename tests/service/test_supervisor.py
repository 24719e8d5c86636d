"""The supervisor's wakeup and pauses. tests/e2e/test_stops.py has whole stops, and
tests/faults/test_crashing_models.py workers that crash again and again.
"""

from __future__ import annotations

import multiprocessing
import types
from collections.abc import Iterator
from typing import Any

import pytest

from service import supervisor as supervisors
from service.pulse import Pulse, WatchedProcess
from service.settings import Settings
from service.supervisor import Supervisor, Wakeup


def test_a_set_before_a_wait_is_not_lost_to_a_clear() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.clear()
    assert wakeup.wait()


def test_setting_never_blocks_even_if_no_thread_waits() -> None:
    wakeup = Wakeup()
    for _ in range(100_000):  # more than a pipe holds
        wakeup.set()
    assert wakeup.wait()


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """One of two workers, with a clock that stands at 1000 s."""
    method = multiprocessing.get_start_method(allow_none=True)
    made = Supervisor(Settings(workers=2))
    monkeypatch.setattr(supervisors.time, "monotonic", lambda: 1000.0)
    yield made
    multiprocessing.set_start_method(method, force=True)


def ended(supervisor: Supervisor, age_s: float, *, index: int = 0, served: bool) -> Any:
    worker = types.SimpleNamespace(idx=index, birth=1000.0 - age_s)
    watched = WatchedProcess(worker, Pulse(has_served=served))  # type: ignore[arg-type]
    watched.has_ended = True
    return watched


def test_workers_that_die_young_are_replaced_after_pauses_that_double(
    supervisor: Supervisor,
) -> None:
    def pause(age_s: float, served: bool = True) -> float:
        return supervisor._pause_after(ended(supervisor, age_s, served=served))

    assert [pause(100), pause(9)] == [0, 0]  # the first one at once
    assert [pause(9) for _ in range(7)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert [pause(11), pause(1), pause(1)] == [0, 0, 0.5]  # one that lived for longer
    assert pause(60, served=False) == 1  # however long it loaded


def test_only_workers_that_never_served_while_none_serves_are_a_crash_loop(
    supervisor: Supervisor,
) -> None:
    other = ended(supervisor, 1, index=1, served=True)
    supervisor.wrks = [other]

    def fails(served: bool = False) -> bool:
        supervisor._pause_after(ended(supervisor, 1, served=served))
        return supervisor._is_crash_loop()

    assert [fails() for _ in range(5)] == [False] * 5
    assert not fails(served=True)
    assert [fails() for _ in range(5)] == [False] * 5
    other.has_ended = False  # it serves
    assert not fails()
    other.has_ended = True
    assert [fails() for _ in range(6)] == [False] * 5 + [True]
    assert supervisor.interrupt_children == [0]


def test_a_worker_that_was_killed_because_it_hung_is_no_failed_start(
    supervisor: Supervisor,
) -> None:
    for _ in range(10):
        silent = ended(supervisor, 60, served=False)
        silent.is_silent = True
        supervisor._pause_after(silent)
    assert not supervisor._is_crash_loop()
