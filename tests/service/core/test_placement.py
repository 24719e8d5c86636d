"""Where runs happen: known short runs on the event loop, all others in a thread."""

from __future__ import annotations

import numpy as np
import pytest

from service.core.datatypes import Array
from service.core.placement import Place, Placement, Timing

BUDGET_S = 0.001
SHORT_S, LONG_S, SLIGHTLY_S = 0.0004, 8.0, 0.0011


def placement(timing: Timing | None = None, *, is_row_wise: bool = False) -> Placement:
    return Placement(timing or Timing(), BUDGET_S, is_row_wise=is_row_wise)


def shaped(*shapes: tuple[int, ...]) -> list[Array]:
    return [np.zeros(shape, np.float32) for shape in shapes]


def place_of(places: Placement, *shapes: tuple[int, ...]) -> Place:
    place = places.of([shaped(*shapes)])
    assert place is not None
    return place


def earn(place: Place, runs: int = 4, rows: int = 1) -> None:
    for _ in range(runs):
        place.ran_in_thread(rows, SHORT_S)


def test_a_shape_earns_its_place_with_runs_clearly_below_the_budget() -> None:
    place = place_of(placement(), (1, 7))
    earn(place, 3)
    assert place.inline_rows == 0
    place.ran_in_thread(1, 0.0006)  # below the budget, but not clearly
    earn(place, 3)
    assert place.inline_rows == 0
    earn(place, 1)
    assert place.inline_rows > 0


def test_a_place_is_for_its_shape_only() -> None:
    places = placement()
    earn(place_of(places, (1, 7), (2,)))
    assert place_of(places, (1, 7), (2,)).inline_rows > 0
    assert place_of(places, (1, 8), (2,)).inline_rows == 0
    assert place_of(places, (2, 7), (2,)).inline_rows == 0


def test_a_place_of_a_row_wise_model_is_for_as_many_rows_as_fit() -> None:
    places = placement(is_row_wise=True)
    place = place_of(places, (8, 7))
    for _ in range(4):
        place.ran_in_thread(8, 0.00025)
    assert place.inline_rows == 16  # in half of the budget
    assert place_of(places, (16, 7)) is place
    for _ in range(4):
        place.ran_in_thread(20, 0.0)
    assert place.inline_rows == 80  # not without end: caches do


def test_many_rows_that_take_long_leave_few_rows_their_place() -> None:
    place = place_of(placement(is_row_wise=True), (1, 7))
    for _ in range(4):
        place.ran_in_thread(6, LONG_S)
        place.ran_in_thread(1, 0.0)
    assert place.inline_rows == 3
    for _ in range(8):
        place.ran_in_thread(1, LONG_S)
        place.ran_in_thread(100, SHORT_S)
    assert place.inline_rows == 3


def test_runs_of_few_rows_say_little_of_many() -> None:
    place = place_of(placement(is_row_wise=True), (1, 7))
    place.ran_in_thread(1, 0.00001)
    earn(place, 3, rows=100)
    assert place.inline_rows == 4


def test_a_batch_of_several_shapes_has_no_place() -> None:
    places = placement(is_row_wise=True)
    assert places.of([shaped((1, 7)), shaped((3, 7))]) is place_of(places, (9, 7))
    assert places.of([shaped((1, 7)), shaped((1, 8))]) is None


def test_a_shape_loses_its_place_at_once_and_each_return_takes_16_times_as_many_runs() -> None:
    places = placement()
    place = place_of(places, (1, 7))
    for needed in (4, 64, 1024):
        earn(place, needed - 1)
        assert place.inline_rows == 0
        earn(place, 1)
        assert place.inline_rows > 0
        place.ran_inline(1, SHORT_S)
        assert place.inline_rows > 0
        place.ran_inline(1, SLIGHTLY_S)
        assert place.inline_rows == 0


def test_a_run_that_holds_the_loop_takes_its_model_off_it_for_good() -> None:
    places = placement()
    place, other = place_of(places, (1, 7)), place_of(places, (1, 8))
    earn(place)
    earn(other)
    place.ran_inline(1, LONG_S)
    assert places.of([shaped((1, 7))]) is None
    assert places.of([shaped((1, 8))]) is None
    earn(place, 1000)  # a run that had already begun
    assert place.inline_rows == 0


def test_time_on_the_wall_is_not_evidence_for_good() -> None:
    places = placement(Timing(is_cpu_time=False))
    place = place_of(places, (1, 7))
    earn(place)
    place.ran_inline(1, SLIGHTLY_S)
    earn(place, 4)
    assert place.inline_rows > 0
    place.ran_inline(1, LONG_S)
    earn(place, 63)
    assert place.inline_rows == 0
    earn(place, 1)
    assert place.inline_rows > 0


def test_a_model_whose_only_shape_was_warmed_up_is_on_the_loop_at_once() -> None:
    known = Timing(is_known=True, rows=16, fixed_s=0.0001, row_s=0.0001)
    only = placement(known, is_row_wise=True).only
    assert only is not None
    assert only.inline_rows == 9
    free = placement(Timing(is_known=True, rows=16), is_row_wise=True).only
    assert free is not None
    assert free.inline_rows == 256  # 16 times what the warm-up ran
    for slow in (Timing(is_known=True, fixed_s=0.002), Timing(is_known=True, row_s=0.002)):
        place = placement(slow, is_row_wise=True).only
        assert place is not None
        assert place.inline_rows == 0


def test_a_noisy_machine_never_costs_it_the_place() -> None:
    only = placement(Timing(is_known=True, rows=16), is_row_wise=True).only
    assert only is not None
    for _ in range(100):
        only.suspect()
        for _ in range(16):
            assert only.is_timed
            only.ran_inline(1, SHORT_S)
        assert not only.is_timed
    assert only.inline_rows == 256


def test_it_loses_the_place_for_the_rows_that_took_long_and_earns_it_again() -> None:
    only = placement(Timing(is_known=True, rows=16), is_row_wise=True).only
    assert only is not None
    only.suspect()
    only.ran_inline(40, LONG_S)
    assert only.inline_rows == 20
    assert only.is_timed
    for _ in range(2):
        only.ran_inline(20, SLIGHTLY_S)
        assert only.inline_rows == 10
        earn(only, 4, rows=40)
        assert only.inline_rows == 50


@pytest.mark.parametrize("is_known", [True, False])
def test_a_model_whose_time_may_depend_on_values_never_has_a_place(is_known: bool) -> None:
    places = placement(Timing(is_known=is_known, may_depend_on_values=True))
    assert places.only is None
    assert places.of([shaped((1, 7))]) is None


def test_a_budget_of_0_means_no_run_on_the_loop() -> None:
    places = Placement(Timing(is_known=True), 0.0, is_row_wise=True)
    assert places.only is None
    assert places.of([shaped((1, 7))]) is None


def test_the_shapes_that_ran_least_recently_are_forgotten() -> None:
    places = placement()
    kept, lost = place_of(places, (1, 1)), place_of(places, (1, 2))
    for size in range(3, 1000):
        place_of(places, (1, size))
        assert place_of(places, (1, 1)) is kept
    assert place_of(places, (1, 2)) is not lost
    assert len(places._places) == 256
