"""The queue of one model by itself: flows, turns, parts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.core.admission import Admission
from service.core.queueing import FairQueue, Progress, Queued


class Bench:
    """A queue, filled by `add`; a request is its caller's name and a number."""

    def __init__(self, batch_rows: int = 8, part_rows: int = 8, *, joins: bool = True) -> None:
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.dropped: list[Queued] = []
        self.queue = FairQueue(
            batch_rows=batch_rows,
            part_rows=part_rows,
            joins=joins,
            admission=Admission(1.0, batch_rows),
            on_dropped=self.dropped.extend,
            clock=lambda: self.now,
        )

    def add(self, caller: str, rows: int, deadline: float | None = None) -> Queued:
        queue = self.queue
        is_large = rows > queue.small_rows
        inputs = [np.arange(rows)]
        progress = Progress(caller, inputs, rows, splits=True) if is_large else None
        outputs: asyncio.Future[list[np.ndarray]] = self.loop.create_future()
        queued = Queued(inputs, rows, deadline, outputs, self.now, progress)
        flow = queue.flow(caller, is_large)
        flow.requests.append(queued)
        flow.rows += rows
        queue.rows += rows
        queue.large_rows += rows * is_large
        queue.requests += 1
        return queued

    def take(self) -> list[Queued]:
        batch = self.queue.take()
        assert batch or not self.queue.requests
        return batch


def test_one_caller_is_served_in_the_order_of_arrival() -> None:
    bench = Bench()
    sent = [bench.add("a", 3) for _ in range(5)]
    assert [bench.take(), bench.take(), bench.take()] == [sent[:2], sent[2:4], sent[4:]]
    assert (bench.queue.rows, bench.queue.requests) == (0, 0)


def test_a_caller_who_sends_little_does_not_wait_for_one_who_sends_much() -> None:
    bench = Bench()
    for _ in range(100):
        bench.add("busy", 2)
    bench.take()
    quiet = bench.add("quiet", 2)
    assert any(queued is quiet for queued in bench.take())


@pytest.mark.parametrize("callers", [2, 5, 50])
def test_busy_callers_get_the_same_share_of_rows_whatever_their_requests(callers: int) -> None:
    bench = Bench()
    sizes = {f"caller {number}": 1 + number % 8 for number in range(callers)}
    for caller, rows in sizes.items():
        for _ in range(200):
            bench.add(caller, rows)
    served = dict.fromkeys(sizes, 0)
    for _ in range(12 * callers):
        for queued in bench.take():
            caller = next(name for name, rows in sizes.items() if rows == queued.rows)
            served[caller] += queued.rows
    shares = [
        served[caller] / sum(1 for rows in sizes.values() if rows == size)
        for caller, size in sizes.items()
        if served[caller]
    ]
    assert max(shares) - min(shares) <= 2 * 8  # two batches


def test_a_large_request_runs_in_whole_batches_while_it_is_alone() -> None:
    bench = Bench(batch_rows=8, part_rows=16)
    large = bench.add("a", 40)
    parts = [bench.take(), bench.take(), bench.take()]
    assert [[part.rows for part in batch] for batch in parts] == [[16], [16], [8]]
    assert [batch[0].inputs[0][0] for batch in parts] == [0, 16, 32]
    assert all(batch[0].outputs is large.outputs for batch in parts)
    assert (bench.queue.rows, bench.queue.large_rows, bench.queue.requests) == (0, 0, 0)


@pytest.mark.parametrize("caller", ["the same", "another"])
def test_a_small_request_runs_with_the_next_part_of_a_large_one(caller: str) -> None:
    bench = Bench()
    bench.add("the same", 1000)
    bench.take()
    small = bench.add(caller, 1)
    batch = bench.take()
    assert any(queued.outputs is small.outputs for queued in batch)
    assert sum(queued.rows for queued in batch) == 8


def test_requests_that_are_not_joined_take_turns_by_caller() -> None:
    bench = Bench(joins=False)
    busy = [bench.add("busy", 5) for _ in range(3)]
    quiet = bench.add("quiet", 1)
    order = [queued for _ in range(4) for queued in bench.take()]
    assert order == [busy[0], quiet, busy[1], busy[2]]


def test_cancelled_and_expired_requests_are_dropped_at_their_turn() -> None:
    bench = Bench()
    cancelled, expired, good = bench.add("a", 1), bench.add("a", 1, deadline=5.0), bench.add("a", 1)
    cancelled.outputs.cancel()
    bench.now = 5.0
    assert bench.take() == [good]
    assert bench.dropped == [cancelled, expired]


def test_a_cancelled_large_request_is_dropped_with_what_is_left_of_it() -> None:
    bench = Bench()
    large, small = bench.add("a", 100), bench.add("b", 1)
    bench.take()
    large.outputs.cancel()
    assert [queued.outputs for queued in bench.take()] in ([], [small.outputs])
    assert (bench.queue.rows, bench.queue.large_rows, bench.queue.requests) == (0, 0, 0)


def test_callers_who_have_left_are_forgotten() -> None:
    bench = Bench()
    for number in range(1000):
        bench.add(f"caller {number}", 1)
        bench.take()
    assert len(bench.queue._turns) <= 2
    assert len(bench.queue._small) <= 2


def test_a_request_whose_part_failed_runs_whole_before_others_of_its_caller() -> None:
    bench = Bench()
    bench.add("a", 20)
    later = bench.add("a", 30)
    (part,) = bench.take()
    bench.queue.run_whole(part)
    bench.queue.run_whole(part)  # another part of it fails as well
    (whole,) = bench.take()
    assert (whole.rows, whole.progress, len(whole.inputs[0])) == (20, None, 20)
    assert bench.queue.rows == later.rows
    assert bench.queue.requests == 1


def test_shedding_keeps_the_newest_requests_of_each_flow() -> None:
    bench = Bench()
    first = [bench.add("a", 2) for _ in range(10)]
    (second,) = [bench.add("b", 2)]
    bench.add("c", 100)
    # Four flows share 16 rows; one of them is empty.
    assert bench.queue.shed(16) == first[:-2]
    assert bench.queue.rows == 4 + second.rows + 100


def test_outputs_of_parts_are_joined_in_order() -> None:
    bench = Bench()
    large = bench.add("a", 20)
    joined = None
    while joined is None:
        (part,) = bench.take()
        assert large.progress is not None
        joined = large.progress.add(part, [part.inputs[0] * 2, part.inputs[0] * 3])
    assert [output.tolist() for output in joined] == [
        [2 * row for row in range(20)],
        [3 * row for row in range(20)],
    ]


def test_outputs_without_a_row_for_each_of_the_part_are_rejected() -> None:
    bench = Bench()
    large = bench.add("a", 20)
    (part,) = bench.take()
    assert large.progress is not None
    with pytest.raises(ValueError, match="another batch size"):
        large.progress.add(part, [np.zeros(3)])
