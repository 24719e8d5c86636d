"""Decides where a run of a model happens: on the event loop, or in a thread.

A run on the loop saves the hand-off to a thread, but while it lasts, nothing else is answered. So
a run may happen there only if it is known to be short, from earlier runs of the same input shape.

Theory of operation: a run is measured in CPU time of its thread where that is possible, since the
time on the wall is also that of other programs on the machine.

1. The first runs of a shape happen in a thread. After `_CLEAN_RUNS` in a row that took at most half
   of the budget, the shape has a place on the loop. For a row-wise model the number of rows does
   not belong to the shape: a place has a number of rows, up to `_STRETCH` times those that ran.
2. A run on the loop that exceeds the budget costs its shape the place, and each time `_PENALTY`
   times as many clean runs are needed to return. One that exceeds it by far shows that its time
   depends on the values of the inputs: the model then runs in threads for good, with any shape.
   Where only the time on the wall is known, this needs an excess by far, and is never for good.
3. A model that contains If, Loop, Scan or functions runs in threads from the start: its time may
   depend on values.
4. If only the number of rows is open, the warm-up when the model was loaded has run the only shape,
   so a row-wise model without such nodes is on the loop from the first request on, with the rows
   that fit into the budget: up to `_STRETCH` times those of the warm-up, and `_PARTS` times that.
   Reading a further clock for each run would cost it 1 %. So only when a run exceeds the budget on
   the wall are the next `_TIMED_RUNS` runs measured in CPU time. One of them that exceeds the
   budget costs the place for half of its rows and more, without a penalty: it was the rows, not
   their values.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.core.datatypes import Array

_CLEAN_RUNS = 4
_STRETCH = 4
_PARTS = 4
_PENALTY = 16
_MOST_CLEAN_RUNS = 1 << 16
_BY_FAR = 10  # times the budget
_TIMED_RUNS = 16
_MOST_SHAPES = 256  # of a model; those that ran least recently are forgotten

Key = tuple[tuple[int, ...], ...]


class Timing(NamedTuple):
    """What a session knows of its run times before the first request.

    `is_known`: the warm-up has run the only shape with up to `rows` rows, and a run of n rows took
    `fixed_s` + n * `row_s` seconds. `may_depend_on_values`: the graph has nodes whose time does.
    `clock` measures a run: by the CPU time of its thread (`is_cpu_time`), unless other threads or a
    device take part in it. A run holds `device`, if there is one, until it ends.
    """

    is_known: bool = False
    rows: int = 1
    fixed_s: float = 0.0
    row_s: float = 0.0
    may_depend_on_values: bool = False
    clock: Callable[[], float] = time.thread_time
    is_cpu_time: bool = True
    device: threading.Lock | None = None


class Place:
    """The place of one input shape. A run of up to `inline_rows` rows happens on the loop.

    While it `is_timed`, the batcher tells `ran_inline` of each run on the loop.
    """

    __slots__ = (
        "_clean",
        "_clean_rows",
        "_needed",
        "_placement",
        "_timed_runs",
        "inline_rows",
        "is_known",
        "is_timed",
    )

    def __init__(
        self, placement: Placement, inline_rows: int = 0, *, is_known: bool = False
    ) -> None:
        self._placement = placement
        self.inline_rows = inline_rows
        self.is_known = is_known
        self.is_timed = not is_known
        self._timed_runs = 0  # that a known shape still has to show
        self._needed = _CLEAN_RUNS
        self._start_again()

    def _start_again(self) -> None:
        self._clean, self._clean_rows = 0, sys.maxsize

    def suspect(self) -> None:
        """Time the next runs of a known shape: one seemed to exceed the budget."""
        self.is_timed, self._timed_runs = True, _TIMED_RUNS

    def ran_inline(self, rows: int, seconds: float) -> None:
        """A timed run of `rows` rows on the loop took this long."""
        placement = self._placement
        if seconds <= placement.budget_s:
            if self.is_known:
                self._timed_runs -= 1
                self.is_timed = self._timed_runs > 0
            return
        self._start_again()
        self.inline_rows = 0
        if self.is_known:
            self.inline_rows = rows // 2
            return
        by_far = seconds > placement.budget_s * _BY_FAR
        if by_far or placement.is_cpu_time:
            self._needed = min(self._needed * _PENALTY, _MOST_CLEAN_RUNS)
        if by_far and placement.is_cpu_time:
            placement.leave_the_loop()

    def ran_in_thread(self, rows: int, seconds: float) -> None:
        """A run of `rows` rows in a thread took this long."""
        placement = self._placement
        allowed_s = placement.budget_s / 2
        if seconds > allowed_s:
            # Fewer rows of a row-wise model may still be short.
            self._clean_rows = min(self._clean_rows, rows // 2)
            if not placement.is_row_wise or not self._clean_rows:
                self._start_again()
            return
        self._clean += 1
        if placement.is_row_wise:
            stretch = min(_STRETCH, allowed_s / seconds) if seconds else _STRETCH
            self._clean_rows = min(self._clean_rows, int(rows * stretch))
        if self._clean >= self._needed and not placement.has_left:
            self.inline_rows = max(self.inline_rows, self._clean_rows)
            self._start_again()


class Placement:
    """The places of one model's input shapes. Lives on one event loop.

    `only` is the place of a model that has one shape and was on the loop from the start, else None.
    """

    def __init__(self, timing: Timing, budget_s: float, *, is_row_wise: bool) -> None:
        self.budget_s = budget_s
        self.is_row_wise = is_row_wise
        self.clock = timing.clock
        self.is_cpu_time = timing.is_cpu_time
        self.device = timing.device
        self.has_left = timing.may_depend_on_values or budget_s <= 0
        self._places: OrderedDict[Key, Place] = OrderedDict()
        self.only: Place | None = None
        if timing.is_known and not self.has_left:
            self.only = Place(self, self._warm_rows(timing), is_known=True)

    def _warm_rows(self, timing: Timing) -> int:
        """The rows that fit into the budget by the warm-up."""
        for_rows_s = self.budget_s - timing.fixed_s
        most = timing.rows * _STRETCH * _PARTS
        if for_rows_s < timing.row_s:
            return 0
        return most if for_rows_s >= timing.row_s * most else int(for_rows_s / timing.row_s)

    def of(self, batch: Sequence[Sequence[Array]]) -> Place | None:
        """The place of the shape that the inputs of these requests have.

        None if they have several, which a run will refuse, or if the model has left the loop.
        """
        if self.has_left:
            return None
        first = 1 if self.is_row_wise else 0
        key: Key = tuple([array.shape[first:] for array in batch[0]])
        for inputs in batch[1:]:
            if any(a.shape[first:] != shape for a, shape in zip(inputs, key, strict=True)):
                return None
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(self)
            if len(self._places) > _MOST_SHAPES:
                self._places.popitem(last=False)
        else:
            self._places.move_to_end(key)
        return place

    def leave_the_loop(self) -> None:
        """Run this model in threads from now on."""
        self.has_left = True
        self._places.clear()
