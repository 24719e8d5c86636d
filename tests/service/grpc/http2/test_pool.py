"""Who gets the places and the calls of a worker that has no more of them."""

from __future__ import annotations

import pytest

from service.grpc.http2.pool import Pool
from tests.service.grpc.http2.client import budget

SILENCE = 30.0


class Member:
    """A connection as the pool sees it."""

    def __init__(self, used_at: float, open_calls: int = 0, was_used: bool = True) -> None:
        self.used_at = used_at
        self.open_calls = open_calls
        self.was_used = was_used
        self.has_left = False

    def give_way(self) -> None:
        self.has_left = True


def full(*members: Member, callers: str = "") -> Pool:
    """A pool without a free place; `callers` has one letter per member."""
    pool = Pool(len(members), max_calls=100, silence=SILENCE, budget=budget())
    for member, caller in zip(members, callers or "x" * len(members), strict=True):
        assert pool.add(member, caller, member.used_at)
    return pool


def left(members: list[Member]) -> list[int]:
    return [index for index, member in enumerate(members) if member.has_left]


def test_the_least_recently_used_idle_connection_gives_way() -> None:
    members = [Member(3.0), Member(1.0, open_calls=1), Member(2.0), Member(4.0)]
    pool = full(*members)
    assert pool.add(Member(9.0), "x", 9.0)
    assert left(members) == [2]
    assert pool.add(Member(9.0), "x", 9.0)
    assert left(members) == [0, 2]
    assert len(pool) == 4


def test_connections_without_any_call_give_way_first_but_not_at_once() -> None:
    used, unused, fresh = Member(1.0), Member(5.0, was_used=False), Member(8.5, was_used=False)
    pool = full(used, unused, fresh)
    assert pool.add(Member(9.0), "x", 9.0)
    assert left([used, unused, fresh]) == [1]
    assert pool.add(Member(9.0), "x", 9.0)
    assert left([used, unused, fresh]) == [0, 1]


def test_an_unused_connection_that_was_in_line_and_has_a_call_now_stays() -> None:
    members = [Member(float(index), was_used=False) for index in range(4)]
    pool = full(*members)
    assert pool.add(Member(9.0), "x", 9.0)
    members[1].was_used, members[1].open_calls = True, 1
    assert pool.add(Member(9.0), "x", 9.0)
    assert left(members) == [0, 2]


def test_one_that_ended_by_itself_gives_its_place_to_the_next() -> None:
    members = [Member(1.0), Member(2.0)]
    pool = full(*members)
    pool.remove(members[0])
    pool.remove(members[0])
    assert pool.add(Member(9.0), "x", 9.0)
    assert left(members) == []


def test_the_caller_with_the_most_connections_gives_way_if_all_have_calls() -> None:
    members = [Member(float(index), open_calls=1) for index in range(5)]
    pool = full(*members, callers="abbba")
    assert pool.add(Member(9.0, open_calls=1), "c", 9.0)  # a 2, b 3: now b 2, c 1
    assert left(members) == [1]
    assert not pool.add(Member(9.0, open_calls=1), "c", 9.0)  # all would have 2 or less
    assert left(members) == [1]


def test_a_connection_with_silent_calls_gives_way_even_to_its_own_caller() -> None:
    members = [Member(2.0, open_calls=1), Member(1.0, open_calls=1)]
    pool = full(*members)
    assert not pool.add(Member(9.0), "x", 1.0 + SILENCE - 0.1)
    assert pool.add(Member(9.0), "x", 1.0 + SILENCE)
    assert left(members) == [1]


def test_a_flood_of_connections_displaces_itself() -> None:
    clients = [Member(0.0) for _ in range(10)]
    flood = [Member(0.0, was_used=False) for _ in range(10)]
    pool = full(*clients, *flood)
    for index in range(1000):
        now = 5.0 + index / 5  # each is older than a second when its turn comes
        newcomer = Member(now, was_used=False)
        assert pool.add(newcomer, "x", now)
    assert left(clients) == []


@pytest.mark.parametrize(("connections", "share"), [(1, 50), (2, 33), (4, 20)])
def test_calls_are_shared_by_the_connections_that_want_many(connections: int, share: int) -> None:
    pool = Pool(8, max_calls=100, silence=SILENCE, budget=budget())
    calls = [0] * connections
    for _ in range(100):
        for index in range(connections):
            if pool.may_open(calls[index]):
                calls[index] += 1
                pool.open_calls += 1
    assert all(abs(count - share) <= 2 for count in calls)
    assert pool.may_open(7)  # a newcomer
    assert pool.open_calls < 100
