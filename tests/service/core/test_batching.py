from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from service.core.batching import Batcher, BatchLimits
from service.core.errors import DeadlineExceeded, InternalError, Overloaded


class Doubler:
    """A session that doubles rows, fails on 13, and remembers its batches."""

    batchable = True

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        assert self.may_run.wait(10)
        if 13 in inputs[0]:
            raise RuntimeError("unlucky")
        self.batches.append(inputs[0].tolist())
        return [inputs[0] * 2]

    def expected_seconds(self, rows: int) -> float:
        return self.seconds


def rows(*values: int) -> list[np.ndarray]:
    return [np.array(values)]


def run(session: Doubler, scenario: Any, limits: BatchLimits | None = None) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await scenario(Batcher(session, limits or BatchLimits(), executor))

    asyncio.run(main())


def test_requests_that_wait_together_run_together_and_get_their_own_rows() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        answers = await asyncio.gather(
            batcher.submit(rows(1), 1), batcher.submit(rows(2, 3), 2), batcher.submit(rows(4), 1)
        )
        assert [answer[0].tolist() for answer in answers] == [[2], [4, 6], [8]]

    run(session, scenario)
    assert session.batches == [[1, 2, 3, 4]]


def test_batches_stop_at_their_limit_but_a_large_request_goes_alone() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        sent = [rows(1, 2), rows(3), rows(4, 5, 6, 7, 8), rows(9)]
        await asyncio.gather(*(batcher.submit(each, len(each[0])) for each in sent))
        assert batcher.queued_rows == 0

    run(session, scenario, BatchLimits(max_batch_size=3))
    assert session.batches == [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def test_a_model_with_a_fixed_batch_runs_one_request_at_a_time() -> None:
    session = Doubler()
    session.batchable = False

    async def scenario(batcher: Batcher) -> None:
        await asyncio.gather(batcher.submit(rows(1), 1), batcher.submit(rows(2), 1))

    run(session, scenario)
    assert session.batches == [[1], [2]]


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario(batcher: Batcher) -> None:
        first = batcher.submit(rows(1, 2, 3), 3)  # over the bound, but nobody is before it
        with pytest.raises(Overloaded, match="3 images"):
            batcher.submit(rows(4), 1)
        await first
        await batcher.submit(rows(4), 1)

    run(Doubler(), scenario, BatchLimits(max_queue=2))


def test_who_has_gone_or_is_late_costs_no_inference() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        now = asyncio.get_running_loop().time()
        gone = batcher.submit(rows(1), 1)
        gone.cancel()
        late = batcher.submit(rows(2), 1, deadline=now - 1)
        in_time = batcher.submit(rows(3), 1, deadline=now + 60)
        assert (await in_time)[0].tolist() == [6]
        with pytest.raises(DeadlineExceeded):
            await late

    run(session, scenario)
    assert session.batches == [[3]]


def test_one_bad_request_does_not_fail_its_batch() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        good, bad, other = (batcher.submit(rows(value), 1) for value in (1, 13, 2))
        assert (await good)[0].tolist() == [2]
        assert (await other)[0].tolist() == [4]
        with pytest.raises(InternalError):
            await bad

    run(session, scenario)


def test_slow_inference_leaves_the_loop_and_the_queue_fills_meanwhile() -> None:
    session = Doubler(seconds=1.0)
    session.may_run.clear()

    async def scenario(batcher: Batcher) -> None:
        first = batcher.submit(rows(1), 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its turn came: it is in the thread now, and the loop still runs
        rest = [batcher.submit(rows(value), 1) for value in (2, 3)]
        assert batcher.queued_rows == 2
        session.may_run.set()
        await asyncio.gather(first, *rest)

    run(session, scenario)
    assert session.batches == [[1], [2, 3]]


def test_a_delay_waits_for_company() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        first = batcher.submit(rows(1), 1)
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.gather(first, batcher.submit(rows(2), 1))

    run(session, scenario, BatchLimits(max_delay_s=0.05))
    assert session.batches == [[1, 2]]


class FailsWhenJoined(Doubler):
    """Fails on every batch of two requests or more, and notes the thread of every run."""

    def __init__(self) -> None:
        super().__init__(seconds=1.0)
        self.threads: list[int] = []

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        self.threads.append(threading.get_ident())
        if len(inputs[0]) > 1:
            raise RuntimeError("joined")
        return super().run(inputs)


def test_members_of_a_failed_slow_batch_are_run_again_off_the_event_loop() -> None:
    session = FailsWhenJoined()

    async def scenario(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(batcher.submit(rows(value), 1) for value in range(6)))
        assert [answer[0].tolist() for answer in answers] == [[2 * value] for value in range(6)]

    run(session, scenario)
    assert len(session.threads) == 7  # one joined run, then one run per request
    assert threading.get_ident() not in session.threads


def test_cancelled_requests_make_room_in_a_full_queue() -> None:
    session = Doubler(seconds=1.0)
    session.may_run.clear()

    async def scenario(batcher: Batcher) -> None:
        running = batcher.submit(rows(1), 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its turn came: it has left the queue for the thread
        batcher.submit(rows(2), 1).cancel()
        batcher.submit(rows(3), 1).cancel()
        accepted = batcher.submit(rows(4), 1)
        session.may_run.set()
        await asyncio.gather(running, accepted)

    run(session, scenario, BatchLimits(max_queue=2))
    assert session.batches == [[1], [4]]
