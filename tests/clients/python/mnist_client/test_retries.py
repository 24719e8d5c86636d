"""When an attempt is repeated, on a clock that the test turns."""

from __future__ import annotations

import pytest
from mnist_client import Retries
from mnist_client.errors import ClientError, DeadlineExceeded, NotFound, Unreachable
from mnist_client.retries import Attempts


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(
    clock: Clock, retries: Retries | None = None, timeout: float = 60.0, draw: float = 0.0
) -> Attempts:
    return Attempts(retries or Retries(), timeout, clock=clock, draw=lambda: draw)


def unreachable(retry_after: float | None = None) -> ClientError:
    error = Unreachable("gone")
    error.retry_after = retry_after
    return error


def test_waits_double_up_to_the_longest() -> None:
    of_call = attempts(Clock(), Retries(attempts=6, first_wait=0.1, longest_wait=0.5))
    waits = [of_call.wait_after(unreachable()) for _ in range(5)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


def test_there_can_be_any_number_of_attempts() -> None:
    of_call = attempts(Clock(), Retries(attempts=10_000, longest_wait=0.5))
    assert [of_call.wait_after(unreachable()) for _ in range(2_000)][-1] == 0.5


def test_chance_shortens_a_wait_by_up_to_a_half() -> None:
    assert attempts(Clock(), draw=1.0).wait_after(unreachable()) == pytest.approx(0.05)


def test_the_last_attempt_raises_its_error() -> None:
    of_call = attempts(Clock(), Retries(attempts=2))
    of_call.wait_after(unreachable())
    last = unreachable()
    with pytest.raises(Unreachable) as caught:
        of_call.wait_after(last)
    assert caught.value is last


def test_an_error_that_would_repeat_is_raised_at_once() -> None:
    with pytest.raises(NotFound):
        attempts(Clock()).wait_after(NotFound("no such model"))


@pytest.mark.parametrize(("draw", "wait"), [(0.0, 7.0), (1.0, 7.7)])
def test_the_servers_wait_is_never_shortened(draw: float, wait: float) -> None:
    of_call = attempts(Clock(), draw=draw)
    assert of_call.wait_after(unreachable(retry_after=7.0)) == pytest.approx(wait)


def test_a_wait_past_the_deadline_raises_the_error_instead() -> None:
    of_call = attempts(Clock(), timeout=5.0)
    with pytest.raises(Unreachable):
        of_call.wait_after(unreachable(retry_after=7.0))


def test_all_attempts_share_one_deadline() -> None:
    clock = Clock()
    of_call = attempts(clock, timeout=5.0)
    assert of_call.remaining() == 5.0
    clock.now += 4.5
    assert of_call.remaining() == 0.5
    clock.now += 0.5
    with pytest.raises(DeadlineExceeded, match="timeout of 5 s"):
        of_call.remaining()


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_finite_and_above_zero(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout: is"):
        attempts(Clock(), timeout=timeout)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="attempts is at least 1"):
        Retries(attempts=0)
