from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from service.core.budget import GRACE_S, PATIENCE_S, SLOWEST, SMALL, SWEEP_S, Budget, Claim
from service.core.errors import InFlightLimit

MIB = 1024 * 1024
LIMIT = 32 * MIB


class Worker:
    """A budget with a clock that is set by hand, and what became of its claims, by their names."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.now = 100.0
        self.refusals: list[str] = []
        self.budget = Budget(limit, count_refusal=self.refusals.append, clock=lambda: self.now)
        self.granted: list[str] = []
        self.refused: dict[str, str] = {}

    def claim(self, name: str, size: int) -> Claim:
        return self.budget.claim(
            size, "http", lambda: self.granted.append(name), self.refuser(name)
        )

    def refuser(self, name: str) -> Callable[[InFlightLimit], None]:
        return lambda error: self.refused.update({name: error.message})

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += SWEEP_S
            self.budget.sweep()


def test_claims_are_granted_while_they_fit_and_wait_in_their_order_after_that() -> None:
    worker = Worker()
    first = [worker.claim(f"{i}", 8 * MIB) for i in range(3)]
    waiting = [worker.claim("big", 8 * MIB), worker.claim("little", 2 * SMALL)]
    assert [claim.is_granted for claim in first] == [True] * 3
    assert [claim.is_granted for claim in waiting] == [False] * 2
    first[1].close()
    assert worker.granted == ["big"]
    first[0].close()
    assert worker.granted == ["big", "little"]
    for claim in (*first, *waiting):
        claim.close()
    assert worker.budget.used == worker.budget.in_flight == 0


def test_a_small_claim_never_waits_behind_large_ones() -> None:
    worker = Worker()
    for i in range(60):
        worker.claim(f"{i}", 8 * MIB)
    assert all(worker.claim(f"small {i}", SMALL).is_granted for i in range(64))


def test_claims_leave_room_for_messages_that_are_only_counted() -> None:
    worker = Worker()
    for i in range(1000):
        worker.claim(f"{i}", SMALL)
    assert LIMIT // 2 < worker.budget.used <= LIMIT * 7 // 8


def test_a_claim_larger_than_its_share_is_granted_alone() -> None:
    worker = Worker(limit=8 * MIB)
    large, small = worker.claim("large", 8 * MIB), worker.claim("small", 100)
    assert (large.is_granted, small.is_granted) == (True, False)
    large.close()
    assert worker.granted == ["small"]
    next_large = worker.claim("next", 8 * MIB)
    small.close()
    assert next_large.is_granted


def test_a_claim_is_refused_once_it_has_waited_too_long() -> None:
    worker = Worker()
    for i in range(4):
        claim = worker.claim(f"{i}", 8 * MIB)
        claim.complete()
    worker.wait(PATIENCE_S - 2 * SWEEP_S)
    assert not worker.refused
    worker.wait(3 * SWEEP_S)
    assert list(worker.refused) == ["3"]
    assert "max_inflight_bytes" in worker.refused["3"]
    assert worker.refusals == ["http"]


def test_claims_whose_first_bytes_fill_the_budget_do_not_all_end_together() -> None:
    """Eight messages have 4 MiB each in flight, which are counted, and wait for as much again."""
    worker = Worker()
    budget = worker.budget
    budget.used = LIMIT

    def refused(name: str) -> Callable[[InFlightLimit], None]:
        def refuse(error: InFlightLimit) -> None:
            worker.refused[name] = error.message
            budget.used -= 4 * MIB

        return refuse

    for name in "abcdefgh":
        granted = partial(worker.granted.append, name)
        budget.claim(8 * MIB, "grpc", granted, refused(name))
    worker.wait(PATIENCE_S)
    assert worker.granted == ["c", "f"]
    assert list(worker.refused) == ["a", "b", "d", "e", "g", "h"]


def test_room_that_counted_messages_leave_goes_to_claims_that_wait() -> None:
    worker = Worker()
    worker.budget.used += LIMIT
    large, small = worker.claim("large", 8 * MIB), worker.claim("small", SMALL)
    assert (large.is_granted, small.is_granted) == (False, False)
    worker.budget.used -= LIMIT
    worker.wait(SWEEP_S)
    assert worker.granted == ["large", "small"]
    worker.wait(2 * PATIENCE_S)
    assert not worker.refused


def test_slow_claims_make_room_for_those_that_wait_the_slowest_first() -> None:
    worker = Worker()
    slow = [worker.claim(f"{i}", 8 * MIB) for i in range(3)]
    slow[0].moved, slow[1].moved, slow[2].moved = 3000, 1000, 2000
    worker.wait(10)
    assert not worker.refused  # no claim waits
    worker.claim("next", 8 * MIB)
    worker.wait(SWEEP_S)
    assert list(worker.refused) == ["1"]
    assert worker.budget.in_flight == 6000  # the owner still holds what had arrived
    slow[1].close()
    assert worker.budget.in_flight == 5000
    assert worker.granted == ["next"]


def test_as_many_slow_claims_give_way_as_others_need() -> None:
    worker = Worker(16 * MIB)
    for i in range(40):
        worker.claim(f"slow {i}", SMALL)
    worker.budget.used += 16 * MIB - 40 * SMALL  # of messages that are only counted
    worker.wait(5)
    for i in range(20):
        worker.claim(f"next {i}", SMALL)
    assert not worker.granted
    worker.wait(SWEEP_S)
    assert list(worker.refused) == [f"slow {i}" for i in range(20)]
    assert worker.granted == [f"next {i}" for i in range(20)]


def test_a_claim_that_moves_fast_enough_is_left_alone() -> None:
    worker = Worker()
    fast = [worker.claim(f"{i}", 8 * MIB) for i in range(3)]
    worker.claim("next", 8 * MIB)
    for _ in range(16):
        worker.wait(SWEEP_S)
        for claim in fast:
            claim.moved += int(SLOWEST * SWEEP_S)
    assert not worker.refused


def test_a_whole_message_is_not_slow_however_long_its_answer_takes() -> None:
    worker = Worker()
    for i in range(3):
        worker.claim(f"{i}", 8 * MIB).complete()
    worker.claim("next", 8 * MIB)
    worker.wait(60)
    assert list(worker.refused) == ["next"]


def test_a_stall_of_the_event_loop_is_not_held_against_claims() -> None:
    worker = Worker()
    for i in range(3):
        worker.claim(f"{i}", 8 * MIB)
    worker.claim("next", 8 * MIB)
    worker.now += GRACE_S + 2
    worker.budget.sweep()
    assert not worker.refused


def test_a_message_of_unknown_size_claims_the_most_and_keeps_what_it_has() -> None:
    worker = Worker()
    chunked = worker.claim("chunked", 8 * MIB)
    chunked.moved += 1000
    assert worker.budget.in_flight == 1000
    chunked.complete(1000)
    assert worker.budget.used == worker.budget.in_flight == 1000


def test_answers_count_and_those_that_are_not_read_make_room() -> None:
    worker = Worker()
    answers = [worker.budget.answer(8 * MIB, "http", worker.refuser(f"{i}")) for i in range(4)]
    answers[0].moved += MIB
    assert worker.budget.in_flight == 31 * MIB
    next_claim = worker.claim("next", 8 * MIB)
    worker.wait(GRACE_S + 2 * SWEEP_S)
    assert "1" in worker.refused
    assert worker.budget.answers == 32 * MIB
    closed: list[int] = []
    worker.budget.answer_closed = lambda: closed.append(worker.budget.answers)
    answers[1].close()
    answers[1].close()
    assert closed == [24 * MIB]
    answers[2].close()
    assert next_claim.is_granted


def test_an_answer_is_measured_when_others_need_its_room() -> None:
    worker = Worker()
    left = {"slow": 0, "fast": 0}
    answers = {
        name: worker.budget.answer(12 * MIB, "grpc", worker.refuser(name), partial(left.get, name))
        for name in left
    }
    worker.claim("next", 12 * MIB)
    for _ in range(12):
        left["fast"] += MIB
        worker.wait(SWEEP_S)
    assert "slow" in worker.refused
    assert "fast" not in worker.refused
    assert answers["fast"].moved >= 10 * MIB


def test_a_counted_message_that_does_not_fit_is_refused_and_makes_slow_claims_give_way() -> None:
    worker = Worker()
    stalled = [worker.claim(f"{i}", SMALL) for i in range(448)]
    assert all(claim.is_granted for claim in stalled)
    worker.wait(10)
    assert not worker.refused
    error = worker.budget.refusal("grpc")
    assert (error.http_status, error.grpc_code) == (503, "RESOURCE_EXHAUSTED")
    worker.wait(SWEEP_S)
    assert worker.refusals == ["grpc", "http"]


@pytest.mark.parametrize("seed", range(30))
def test_any_mix_stays_within_the_limit_and_every_claim_ends(seed: int) -> None:
    choice = random.Random(seed)
    worker = Worker()
    open_claims: dict[str, Claim] = {}
    for i in range(400):
        worker.wait(choice.choice([0, 0, SWEEP_S]))
        size = choice.choice([1000, SMALL, 300_000, MIB, 8 * MIB])
        open_claims[f"{i}"] = worker.claim(f"{i}", size)
        for name, claim in list(open_claims.items()):
            if name in worker.refused:
                open_claims.pop(name).close()
            elif claim.is_granted and choice.random() < 0.2:
                claim.complete(choice.randrange(claim.size + 1))
                if choice.random() < 0.5:
                    open_claims.pop(name).close()
            elif claim.is_granted:
                claim.moved += choice.randrange(claim.size - claim.moved + 1) // 3
        assert 0 <= worker.budget.in_flight <= worker.budget.used <= LIMIT
    for claim in open_claims.values():
        claim.close()
        claim.close()
    assert worker.budget.used == 0


def test_headers_have_a_quarter_of_the_budget_and_large_ones_half_of_that() -> None:
    budget = Budget(16 * MIB)
    large, usual = 128 * 1024, 4 * 1024
    count = 0
    while budget.add_headers(large):
        count += 1
    assert count * large == budget.used == 2 * MIB
    while budget.add_headers(usual):
        count += 1
    assert budget.used == 4 * MIB
    assert budget.claim(8 * MIB, "http", lambda: None, lambda error: None).is_granted
    budget.drop_headers(large)
    assert budget.add_headers(usual)
    # A limit below the headers of one request does not refuse it for good.
    assert Budget(1024).add_headers(large)


def test_the_error_names_the_setting() -> None:
    for error in (InFlightLimit.full(LIMIT), InFlightLimit.slow()):
        assert "max_inflight_bytes" in error.message
