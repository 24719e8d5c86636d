from __future__ import annotations

import asyncio
import threading

import pytest

from service.core.off_loop import off_loop


def test_work_runs_in_another_thread_one_piece_at_a_time() -> None:
    at_work = threading.Semaphore(1)

    def work(number: int) -> tuple[int, int]:
        assert at_work.acquire(blocking=False)
        at_work.release()
        return number, threading.get_ident()

    async def start_all() -> list[tuple[int, int]]:
        return await asyncio.gather(*(off_loop(work, number) for number in range(20)))

    results = asyncio.run(start_all())
    assert [number for number, _ in results] == list(range(20))
    threads = {thread for _, thread in results}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_small_pieces_do_not_wait_for_large_ones() -> None:
    async def scenario() -> bool:
        small_ran = threading.Event()
        large = off_loop(small_ran.wait, 60, size=1 << 20)
        await off_loop(small_ran.set, size=1000)
        return await large

    assert asyncio.run(scenario())


def test_the_loop_runs_while_work_is_in_progress() -> None:
    async def wait_for_each_other() -> bool:
        loop_ran = threading.Event()
        working = off_loop(loop_ran.wait, 60)
        await asyncio.sleep(0)
        loop_ran.set()
        return await working

    assert asyncio.run(wait_for_each_other())


def test_what_work_raises_is_raised_to_the_one_who_awaits_it() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def both() -> int:
        with pytest.raises(ValueError, match="no"):
            await off_loop(fail)
        return await off_loop(int, "7")

    assert asyncio.run(both()) == 7


def test_work_that_was_cancelled_before_its_turn_does_not_run() -> None:
    ran: list[int] = []

    async def cancel_the_second() -> None:
        go = threading.Event()
        first = off_loop(go.wait, 60)
        second = off_loop(ran.append, 2)
        second.cancel()
        go.set()
        await first
        await off_loop(ran.append, 3)

    asyncio.run(cancel_the_second())
    assert ran == [3]
