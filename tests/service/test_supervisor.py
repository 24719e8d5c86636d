"""The supervisor's wakeup. tests/e2e/test_stops.py has whole stops."""

from __future__ import annotations

from service.supervisor import Wakeup


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
