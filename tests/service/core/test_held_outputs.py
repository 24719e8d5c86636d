from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from service.core import held_outputs
from service.core.batching import Batcher, BatchLimits
from service.core.budget import Budget
from service.core.datatypes import Array
from service.core.errors import RequestTooLarge
from service.core.held_outputs import HeldOutputs, outputs_are_small, row_bytes
from service.core.tensors import TensorSpec
from tests.service.core.test_batching import Doubler

KB = 1024


@pytest.mark.parametrize(
    ("outputs", "of_a_row", "small_rows"),
    [
        ([("FP32", (-1, 10))], 40, 64),
        ([("FP32", (-1, 10)), ("BOOL", (-1,))], 41, 64),
        ([("FP32", (-1, 1000))], 4000, 64),
        ([("FP32", (-1, 3, 512, 512))], 3 * KB * KB, 0),
        ([("FP32", (-1, -1))], 0, 0),
        ([("BYTES", (-1, 1))], 0, 0),
        ([("FP32", (-1, 10)), ("FP32", (-1, -1))], 0, 0),
    ],
)
def test_outputs_are_small_if_every_run_is_known_to_have_few_bytes(
    outputs: list[tuple[str, tuple[int, ...]]], of_a_row: int, small_rows: int
) -> None:
    specs = [TensorSpec("y", datatype, shape) for datatype, shape in outputs]
    assert row_bytes(specs) == of_a_row
    assert outputs_are_small(specs, 64) == (small_rows == 64)


@pytest.mark.parametrize(
    ("spec", "is_small"),
    [
        (TensorSpec("y", "FP32", (5, 10)), True),
        (TensorSpec("y", "FP32", (512, 512)), False),
        (TensorSpec("y", "FP32", (-1, 10)), False),  # any number of rows
        (TensorSpec("y", "FP32", (-1,), has_rank=False), False),
    ],
)
def test_without_batches_the_first_dimension_counts(spec: TensorSpec, is_small: bool) -> None:
    assert outputs_are_small([spec], 0) == is_small


def test_bytes_count_until_arrays_are_freed_on_any_thread() -> None:
    held = HeldOutputs(Budget(100))
    arrays = [np.zeros(10 * KB, np.uint8) for _ in range(4)]
    for array in arrays:
        assert held.hold([array[: 5 * KB], array]) == 15 * KB
    assert held.bytes == 4 * 10 * KB  # nothing has the slices
    view = arrays[0][1:]
    del array, arrays[0]
    gc.collect()
    assert held.bytes == 4 * 10 * KB  # the view has the array
    del view
    arrays.pop()
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert held.bytes == 0


class Wide(Doubler):
    """A session with outputs of `size` bytes per row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def run(self, inputs: Sequence[Any], options: Any = None) -> list[Array]:
        super().run(inputs)
        return [np.zeros((len(inputs[0]), self.size), np.uint8)]


def run(session: Doubler, scenario: Any, **arguments: Any) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await scenario(Batcher(session, BatchLimits(), executor, **arguments))

    asyncio.run(main())


def rows(*values: int) -> list[np.ndarray]:
    return [np.array(values)]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_run_has_as_many_rows_as_fit_into_half_of_the_bytes(is_known: bool) -> None:
    session = Wide(KB)

    async def scenario(batcher: Batcher) -> None:
        for _ in range(2):
            await asyncio.gather(*(batcher.submit(rows(n), 1) for n in range(14, 30)))

    run(session, scenario, held=HeldOutputs(Budget(16 * KB)), row_bytes=KB * is_known)
    sizes = [len(batch) for batch in session.batches]
    # Where the size of a row is open, the first run tells it.
    assert sizes == ([8, 8, 8, 8] if is_known else [16, 8, 8])


def test_a_request_whose_outputs_are_known_to_be_too_large_is_refused() -> None:
    session = Wide(KB)

    async def scenario(batcher: Batcher) -> None:
        (output,) = await batcher.submit(rows(*range(14, 30)), 16)
        assert output.shape == (16, KB)
        message = (
            "^The outputs of 17 rows would have 17408 bytes, more than max_inflight_bytes; send"
        )
        with pytest.raises(RequestTooLarge, match=message):
            await batcher.submit(rows(*range(14, 31)), 17)

    run(session, scenario, held=HeldOutputs(Budget(16 * KB)), row_bytes=KB)
    assert [len(batch) for batch in session.batches] == [8, 8]


def test_no_batch_is_taken_while_too_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Wide(16 * KB)
    monkeypatch.setattr(held_outputs, "_LONGEST_WAIT_S", 3600)

    async def scenario(batcher: Batcher) -> None:
        first = [await batcher.submit(rows(1), 1), await batcher.submit(rows(2), 1)]
        waiting = asyncio.ensure_future(batcher.submit(rows(3), 1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert session.batches == [[1], [2]]
        await asyncio.get_running_loop().run_in_executor(None, first.clear)
        async with asyncio.timeout(60):
            await waiting
        assert session.batches == [[1], [2], [3]]

    run(session, scenario, held=HeldOutputs(Budget(20 * KB)), row_bytes=16 * KB)


def test_answers_that_wait_for_their_clients_count(monkeypatch: pytest.MonkeyPatch) -> None:
    session, budget = Wide(10 * KB), Budget(20 * KB)
    monkeypatch.setattr(held_outputs, "_LONGEST_WAIT_S", 3600)

    async def scenario(batcher: Batcher) -> None:
        first = await batcher.submit(rows(1), 1)
        answers = [budget.answer(5 * KB, "grpc", lambda error: None) for _ in range(2)]
        await batcher.submit(rows(2), 1)
        answers.append(budget.answer(KB, "grpc", lambda error: None))
        waiting = asyncio.ensure_future(batcher.submit(rows(3), 1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert session.batches == [[1], [2]]
        answers.pop().close()
        async with asyncio.timeout(60):
            await waiting
        assert len(first) == 1

    run(session, scenario, held=HeldOutputs(budget), row_bytes=10 * KB)
    assert budget._is_short  # so that those whose clients are slow give way


def test_outputs_that_are_never_freed_only_delay_others(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Wide(16 * KB)
    monkeypatch.setattr(held_outputs, "_LONGEST_WAIT_S", 0.001)
    outputs = []

    async def scenario(batcher: Batcher) -> None:
        async with asyncio.timeout(60):
            for number in range(3):
                outputs.append(await batcher.submit(rows(number), 1))

    run(session, scenario, held=HeldOutputs(Budget(20 * KB)), row_bytes=16 * KB)
    assert len(session.batches) == 3


def test_finished_parts_of_a_request_do_not_hold_back_its_others() -> None:
    held = HeldOutputs(Budget(16 * KB))
    during = []

    class Watched(Wide):
        def run(self, inputs: Sequence[Any], options: Any = None) -> list[Array]:
            during.append(held.bytes)
            return super().run(inputs)

    async def scenario(batcher: Batcher) -> None:
        await batcher.submit(rows(1), 1)  # tells the size of a row
        (output,) = await batcher.submit(rows(*range(14, 54)), 40)
        assert output.shape == (40, KB)
        assert held.bytes >= 40 * KB

    session = Watched(KB)
    run(session, scenario, held=held)
    assert [len(batch) for batch in session.batches] == [1, 8, 8, 8, 8, 8]
    assert max(during) <= KB


def test_the_size_of_the_latest_rows_counts_where_it_is_not_fixed() -> None:
    session = Wide(8 * KB)

    async def scenario(batcher: Batcher) -> None:
        await batcher.submit(rows(1), 1)  # a large one: further runs have one row
        session.size = KB
        for _ in range(2):
            await asyncio.gather(*(batcher.submit(rows(n), 1) for n in range(14, 24)))

    run(session, scenario, held=HeldOutputs(Budget(16 * KB)))
    assert [len(batch) for batch in session.batches] == [1, 1, 8, 1, 8, 2]


def test_where_runs_are_small_only_the_outputs_of_large_requests_count() -> None:
    held = HeldOutputs(Budget(100 * KB))

    async def scenario(batcher: Batcher) -> None:
        small = await batcher.submit(rows(1), 1)
        assert held.bytes == 0
        large = await batcher.submit(rows(*range(14, 104)), 90)
        assert held.bytes == large[0].nbytes == 90 * KB
        with pytest.raises(RequestTooLarge):
            await batcher.submit(rows(*range(14, 134)), 120)
        assert len(small) == 1

    session = Wide(KB)
    run(session, scenario, held=held, row_bytes=KB, has_small_runs=True)


def test_models_share_what_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_outputs, "_LONGEST_WAIT_S", 3600)
    held, one, other = HeldOutputs(Budget(20 * KB)), Wide(16 * KB), Wide(16 * KB)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            first, second = (
                Batcher(each, BatchLimits(), executor, held=held) for each in (one, other)
            )
            outputs = [await first.submit(rows(1), 1), await first.submit(rows(2), 1)]
            waiting = [asyncio.ensure_future(each.submit(rows(3), 1)) for each in (first, second)]
            for _ in range(20):
                await asyncio.sleep(0)
            assert not any(each.done() for each in waiting)
            outputs.clear()
            async with asyncio.timeout(60):
                for number, _ in enumerate(waiting):
                    await waiting[number]
                    waiting[number] = asyncio.ensure_future(asyncio.sleep(0))

    asyncio.run(main())
    assert other.batches == [[3]]
