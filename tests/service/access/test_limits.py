from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.limits import Buckets, Limits, limits_of, small_bursts
from service.core.errors import RequestTooLarge, TooManyRequests
from service.settings import Settings


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Of each attempt: seconds since the one before, and tokens.
ATTEMPTS = st.lists(
    st.tuples(st.floats(0, 3) | st.just(0.0), st.integers(1, 6)), min_size=1, max_size=60
)
RATES = st.floats(0.1, 50)


@given(rate=RATES, burst=st.floats(1, 20), attempts=ATTEMPTS)
def test_no_window_lets_more_through_than_its_burst_and_rate(
    rate: float, burst: float, attempts: list[tuple[float, int]]
) -> None:
    buckets, now, taken = Buckets(rate, burst), 100.0, []
    for pause, tokens in attempts:
        now += pause
        if not buckets.take("a", tokens, now):
            taken.append((now, tokens))
    for first in range(len(taken)):
        total = 0
        for at, tokens in taken[first:]:
            total += tokens
            assert total <= burst + rate * (at - taken[first][0]) + 1e-6


@given(rate=RATES, burst=st.integers(1, 20), attempts=ATTEMPTS)
def test_what_a_refusal_says_is_when_the_same_tokens_can_be_taken(
    rate: float, burst: int, attempts: list[tuple[float, int]]
) -> None:
    buckets, now = Buckets(rate, burst), 100.0
    for pause, tokens in attempts:
        now += pause
        if tokens <= burst and (wait := buckets.take("a", tokens, now)):
            assert buckets.take("a", tokens, now + 0.99 * wait) or wait < 1e-6
            now += wait + 1e-6
            assert not buckets.take("a", tokens, now)


@given(rate=RATES, burst=st.floats(1, 20), attempts=ATTEMPTS, flood=st.integers(1, 9))
def test_a_caller_gets_the_same_whatever_another_sends(
    rate: float, burst: float, attempts: list[tuple[float, int]], flood: int
) -> None:
    alone, shared, now = Buckets(rate, burst), Buckets(rate, burst), 100.0
    for pause, tokens in attempts:
        now += pause
        for _ in range(flood):
            shared.take("flood", tokens, now)
        assert shared.take("a", tokens, now) == alone.take("a", tokens, now)


@pytest.mark.parametrize(
    ("settings", "small"),
    [
        (Settings(workers=4), []),
        (Settings(workers=4, max_requests_per_second=4), []),
        (Settings(workers=4, max_requests_per_second=100, request_burst=4), []),
        (Settings(workers=4, request_burst=1), []),
        (Settings(workers=4, max_requests_per_second=2), ["the 2 of max_requests_per_second"]),
        (
            Settings(workers=4, max_requests_per_second=9, request_burst=3),
            ["the 3 of request_burst"],
        ),
        (
            Settings(workers=4, max_requests_per_second=1, max_images_per_second=9, image_burst=2),
            ["the 1 of max_requests_per_second", "the 2 of image_burst"],
        ),
    ],
)
def test_a_burst_that_workers_cannot_share_is_named_and_each_lets_one_through(
    settings: Settings, small: list[str]
) -> None:
    sentences = list(small_bursts(settings))
    assert len(sentences) == len(small)
    for sentence, words in zip(sentences, small, strict=True):
        assert words in sentence
        assert "Each of 4 workers" in sentence
    if small and settings.max_requests_per_second:
        let_through = 0
        for _ in range(settings.workers):
            limits = Limits(settings, clock=Clock())
            for _ in range(3):
                with contextlib.suppress(TooManyRequests):
                    limits.request("a")
                    let_through += 1
        assert let_through == settings.workers


def test_an_idle_caller_gets_its_burst_and_then_its_rate() -> None:
    buckets = Buckets(rate=2, burst=4)
    assert [buckets.take("a", 1, 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert [buckets.take("a", 1, 0.5) for _ in range(2)] == [0, 0.5]
    assert [buckets.take("a", 1, 1000.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]


def test_all_tokens_are_taken_or_none() -> None:
    buckets = Buckets(rate=1, burst=4)
    assert not buckets.take("a", 3, 0.0)
    assert buckets.take("a", 2, 0.0) == 1.0
    assert not buckets.take("a", 1, 0.0)


def test_the_number_of_buckets_is_bounded() -> None:
    buckets = Buckets(rate=1, burst=1, max_callers=100)
    for number in range(1000):
        assert not buckets.take(f"caller {number}", 1, number / 1000)
    assert len(buckets) == 100


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_flood_of_callers_does_not_refill_an_empty_bucket(is_silent: bool) -> None:
    buckets = Buckets(rate=0.001, burst=10, max_callers=100)
    for number in range(200):
        buckets.take(f"before {number}", 1, 0.0)
    assert not buckets.take("hot", 10, 0.0)
    for number in range(20_000):
        assert not buckets.take(f"flood {number}", 1, 1.0)
        if not is_silent:
            assert buckets.take("hot", 1, 1.0)
    assert buckets.take("hot", 1, 1.0)


def limits(clock: Clock, **settings: float) -> Limits:
    return Limits(Settings(**settings), clock=clock)  # type: ignore[arg-type]


def accepted(allow: object, *arguments: object, times: int) -> int:
    """How many of several requests are accepted."""
    count = 0
    for _ in range(times):
        try:
            allow(*arguments)  # type: ignore[operator]
            count += 1
        except TooManyRequests:
            pass
    return count


def test_without_limits_there_is_nothing_to_ask() -> None:
    assert limits_of(Settings()) is None
    assert limits_of(Settings(max_requests_per_second=1)) is not None
    assert limits_of(Settings(max_images_per_second=1)) is not None


def test_requests_and_images_are_limited_apart() -> None:
    clock = Clock()
    both = limits(clock, max_requests_per_second=3, max_images_per_second=5)
    assert accepted(both.request, "a", times=9) == 3
    assert accepted(both.images, "a", 2, times=9) == 2
    assert accepted(both.request, "b", times=9) == 3
    clock.now += 1
    assert accepted(both.request, "a", times=9) == 3
    images = limits(clock, max_images_per_second=5)
    assert accepted(images.request, "a", times=9) == 9
    requests = limits(clock, max_requests_per_second=5)
    assert accepted(requests.images, "a", 1000, times=9) == 9


def test_the_burst_is_a_second_of_the_rate_or_as_set() -> None:
    clock = Clock()
    assert accepted(limits(clock, max_requests_per_second=0.2).request, "a", times=9) == 1
    burst = limits(clock, max_requests_per_second=2, request_burst=7)
    assert accepted(burst.request, "a", times=9) == 7


def test_workers_share_the_settings() -> None:
    clock = Clock()
    share = limits(
        clock, max_requests_per_second=8, max_images_per_second=40, image_burst=100, workers=4
    )
    assert accepted(share.request, "a", times=9) == 2
    assert accepted(share.images, "a", 25, times=9) == 1
    clock.now += 1.01
    assert accepted(share.request, "a", times=9) == 2
    assert accepted(share.images, "a", 10, times=9) == 1


def test_a_refusal_names_the_limit_and_when_to_try_again() -> None:
    counted: list[str] = []
    one = Limits(Settings(max_requests_per_second=0.25), counted.append, Clock())
    one.request("a")
    with pytest.raises(TooManyRequests, match=r"0.25 requests per second .max_requests") as caught:
        one.request("a")
    assert (caught.value.http_status, caught.value.grpc_code) == (429, "RESOURCE_EXHAUSTED")
    assert caught.value.retry_after_s == 4
    images = Limits(Settings(max_images_per_second=10), counted.append, Clock())
    images.images("a", 8)
    with pytest.raises(TooManyRequests, match=r"10 images per second .max_images_per_second"):
        images.images("a", 3)
    assert counted == ["requests", "images"]


def test_more_images_than_a_burst_are_refused_for_good() -> None:
    clock = Clock()
    with pytest.raises(RequestTooLarge, match=r"11 images, but .* 10 at once .image_burst.; split"):
        limits(clock, max_images_per_second=10).images("a", 11)
    with pytest.raises(RequestTooLarge, match=r"5 at once .image_burst, shared by 2 workers"):
        limits(clock, max_images_per_second=10, workers=2).images("a", 6)


def test_waits_shrink_as_time_passes() -> None:
    buckets = Buckets(rate=1, burst=1)
    buckets.take("a", 1, 0.0)
    waits = [buckets.take("a", 1, tenth / 10) for tenth in range(1, 10)]
    assert all(later < before for before, later in pairwise(waits))
