"""How connections with many frames share the turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.core.turns import PER_TURN, Turns


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


class Crowd:
    """Connections that have much to do; `served` has, per turn, who spent how much."""

    def __init__(self, turns: Turns, costs: list[int]) -> None:
        self.turns = turns
        self.left = dict(enumerate(costs))
        self.served: list[list[tuple[int, int]]] = [[]]

    def receive(self, member: int) -> None:
        self.work(member, waits=False)

    def work(self, member: int, *, waits: bool = True) -> None:
        share = self.turns.share()
        assert not waits or share > 0  # a connection that is called may spend something
        spent = min(share, self.left[member])
        self.left[member] -= spent
        self.served[-1].append((member, spent))
        self.turns.spend(spent)
        if self.left[member]:
            self.turns.wait(partial(self.work, member))

    async def finish(self) -> None:
        while self.turns.waiting:
            self.served.append([])
            await asyncio.sleep(0)


def test_a_connection_alone_has_the_whole_turn_and_goes_on_in_the_next() -> None:
    async def main() -> None:
        crowd = Crowd(Turns(), [2 * PER_TURN + 5])
        crowd.receive(0)
        assert crowd.served == [[(0, PER_TURN)]]
        await crowd.finish()
        assert [spent for turn in crowd.served for _, spent in turn] == [PER_TURN, PER_TURN, 5]
        assert not crowd.left[0]

    run(main())


def test_what_comes_after_the_turn_is_used_up_waits_for_the_next() -> None:
    async def main() -> None:
        turns = Turns()
        turns.spend(PER_TURN)
        assert turns.share() == 0
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert turns.share() == PER_TURN

    run(main())


@given(st.lists(st.integers(1, 5 * PER_TURN), min_size=1, max_size=300))
def test_no_turn_exceeds_its_units_and_everyone_is_served_in_order(costs: list[int]) -> None:
    async def main() -> None:
        crowd = Crowd(Turns(), costs)
        for member in crowd.left:
            crowd.receive(member)
        await crowd.finish()
        assert not any(crowd.left.values())
        for turn in crowd.served:
            assert sum(spent for _, spent in turn) <= PER_TURN + 8  # the least share, once
        order = [member for turn in crowd.served for member, spent in turn if spent]
        for member in crowd.left:
            # Between two shares of one connection, no other connection has three.
            mine = [place for place, other in enumerate(order) if other == member]
            for begin, end in pairwise(mine):
                between = order[begin + 1 : end]
                assert all(between.count(other) <= 2 for other in set(between))

    run(main())


def test_what_one_connection_does_takes_nobodys_turn() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        turns = Turns()
        served: list[str] = []

        def fails() -> None:
            raise RuntimeError

        turns.wait(fails)
        turns.wait(lambda: served.append("the other"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert served == ["the other"]

    run(main())
