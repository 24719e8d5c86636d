"""Cuts through digits that touch: where a piece of ink may be taken apart.

Strategy: over-segmentation (Casey and Lecolinet, "A survey of methods and strategies in character
segmentation", PAMI 1996). A cut is a path from the top of a piece to its bottom, of the least ink
among those that cross its middle row in the same stretch of ink or of paper. On paper a path may go
to the side as far as it likes, so slanted digits and those that reach over each other need nothing
else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.pictures.page import Ink

# A digit has at least the ink of a stroke of this part of its height.
LEAST_INK = 0.5
# Lengths below are shares of the height of a line's digits.
_PART = 0.1  # of a stroke of this height: the ink between two cuts, at least
_MOST_STROKES = 3.5  # that a cut may cross, as a multiple of a stroke's width
# Paths are looked for on pieces of about this many rows, and twice as many columns.
_PATH_ROWS = 40
# A path moves by up to this many columns from row to row.
_REACH = 4
# Costs are integers, _FULL for each column of full ink. A step to the side costs _SIDEWAYS.
_FULL = 64
_SIDEWAYS = 5
# What pixels cost: where strokes only touch, their soft edges leave a valley of thinner ink.
_COSTS = (_FULL * (np.arange(256) / 255) ** 3).astype(np.int32)
# Costs are kept with the step that led to them in the lowest bits.
_STEP_BITS = 4
_NONE = np.int64(2**62)

Floats = npt.NDArray[np.float32]
Costs = npt.NDArray[np.int32]


class Cut(NamedTuple):
    """A cut from top to bottom: for each row its column, the first to the right of it.

    `strokes` is the number of strokes that it crosses, by their width, and `left` the ink to its
    left as a stroke, by the height of a digit.
    """

    columns: npt.NDArray[np.intp]
    strokes: float
    left: float


def cuts_through(ink: Ink, height: float, most: int) -> tuple[list[Cut], float]:
    """The promising cuts through a piece of ink, uint8 [H,W], from left to right.

    At most `most`, those of the least ink, and all ink as a stroke, by the height of a digit.
    `height` is that of the line's digits.
    """
    # Columns are finer than rows, as cuts go down.
    fine = max(1, round(height / _PATH_ROWS / 2))
    reduced = Image.fromarray(ink).reduce((fine, 2 * fine))
    grey = np.asarray(reduced)
    small = grey * np.float32(1 / 255)
    rows, width = small.shape
    stroke = _stroke(small)
    before = np.zeros((rows, width), np.float32)
    small[:, :-1].cumsum(axis=1, out=before[:, 1:])
    costs = _COSTS[grey]
    (down, up), (left_above, left_below), (came, went) = _least_ink(costs, before)
    through = (down + up[::-1] - costs).ravel()
    # Paths through all pixels, by the ink to their left: the best of each bin, and where it is.
    part = _PART * stroke * height / fine
    bins = ((left_above + left_below[::-1] - before) / part).astype(np.intp).ravel()
    keys = np.full(int(bins.max()) + 3, _NONE)
    np.minimum.at(keys, bins + 1, through * through.size + np.arange(through.size))
    best, places = keys // through.size, keys % through.size
    is_least = (best[1:-1] <= best[:-2]) & (best[1:-1] < best[2:])
    is_least &= best[1:-1] < _MOST_STROKES * stroke * _FULL
    end = round(LEAST_INK / _PART)
    is_least[:end] = False
    is_least[max(0, int(small.sum() / part) + 1 - end) :] = False
    chosen = np.flatnonzero(is_least) + 1
    chosen = np.sort(chosen[np.argsort(best[chosen], kind="stable")][:most])
    row_of = np.minimum(np.arange(ink.shape[0]) // (2 * fine), rows - 1)
    cuts = []
    for number, place in zip(chosen.tolist(), places[chosen].tolist(), strict=True):
        row, column = divmod(place, width)
        above = _path(came, width, row, column)
        below = _path(went, width, rows - 1 - row, column)
        path = np.array([*above[::-1], *below[1:]], np.intp)
        crossed = float(best[number]) / (stroke * _FULL)
        cuts.append(Cut(path[row_of] * fine, crossed, (number - 1) * _PART))
    return cuts, float(small.sum()) / part * _PART


def _stroke(ink: Floats) -> float:
    """The width of strokes in columns, from the ink's area and the length of its edges.

    A row is as high as two columns are wide.
    """
    mask = np.zeros((ink.shape[0] + 2, ink.shape[1] + 2), bool)
    mask[1:-1, 1:-1] = ink > 0.4
    edges = np.count_nonzero(mask[1:] != mask[:-1])
    edges += 2 * np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    width = 2.4 * float(ink.sum()) / (edges + 1)
    return max(width, 1.0)


def _least_ink(costs: Costs, before: Floats) -> tuple[Costs, Floats, list[bytes]]:
    """For each pixel of costs [H,W] the least cost of a path to it, from above and from below.

    All have these two as their first axis, and rows in the order of the paths. The second is the
    ink to the left of that path; `before` is that to the left of each pixel. The third has the step
    from the column in the row before, plus _REACH, of pixels in rows.
    """
    rows, width = costs.shape
    steps = 2 * _REACH + 1
    # Of a walk along a row; a row is as high as two columns are wide.
    along = costs.cumsum(axis=1, dtype=np.int32)
    walks = np.zeros((rows, steps, 2, width), np.int32)
    walks[:, _REACH] = _REACH
    for step in range(1, min(_REACH + 1, width)):
        walk = along[:, step:] - along[:, :-step] >> 1
        walk += _SIDEWAYS * step
        walk <<= _STEP_BITS
        walk += _REACH + step
        walks[:, _REACH + step, 0, :-step] = walk
        walk -= 2 * step
        walks[:, _REACH - step, 0, step:] = walk
    walks[:, :, 1] = walks[::-1, :, 0]
    shifted = costs << _STEP_BITS
    shifted = np.stack([shifted, shifted[::-1]], axis=1)
    padded = np.full((2, width + 2 * _REACH), 2**30, np.int32)
    inner = padded[:, _REACH:-_REACH]
    inner[:] = shifted[0]
    near = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1).transpose(1, 0, 2)
    least = np.empty((rows, 2, width), np.int32)
    least[0] = inner
    tried, whole = np.empty((steps, 2, width), np.int32), np.int32(-(1 << _STEP_BITS))
    for walk, cost, best in zip(walks[1:], shifted[1:], least[1:], strict=True):
        np.add(near, walk, out=tried)
        np.minimum.reduce(tried, axis=0, out=best)
        np.bitwise_and(best, whole, out=inner)
        np.add(inner, cost, out=inner)
    came = (least & (1 << _STEP_BITS) - 1).astype(np.uint8)
    shifted += least
    shifted[0] = least[0]
    total = shifted >> _STEP_BITS
    left_of = np.stack([before, before[::-1]], axis=1).reshape(rows, 2 * width)
    origins = came.reshape(rows, 2 * width) + np.arange(-_REACH, 2 * width - _REACH)
    for row in range(1, rows):
        left_of[row] += left_of[row - 1].take(origins[row])
    left = left_of.reshape(rows, 2, width).transpose(1, 0, 2)
    return total.transpose(1, 0, 2), left, [came[:, 0].tobytes(), came[:, 1].tobytes()]


def _path(came: bytes, width: int, row: int, column: int) -> list[int]:
    """The columns of the path to a pixel, from its row to the first."""
    path = [column]
    for start in range(row * width, 0, -width):
        column += came[start + column] - _REACH
        path.append(column)
    return path
