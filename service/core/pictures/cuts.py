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
# Paths are looked for on pieces of about this many rows.
_PATH_ROWS = 28
# The cost of a step of a path to the side; a full pixel of ink costs 1.
_SIDEWAYS = np.float32(0.03)

Floats = npt.NDArray[np.float32]


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
    factor = max(1, round(height / _PATH_ROWS))
    small = np.asarray(Image.fromarray(ink).reduce(factor), np.float32) / np.float32(255)
    rows = len(small)
    stroke = _stroke(small)
    before = np.pad(small.cumsum(axis=1), ((0, 0), (1, 0)))[:, :-1]
    down, left_above = _least_ink(small, before)
    up, left_below = (part[::-1] for part in _least_ink(small[::-1], before[::-1]))
    through = down + up - small
    # Paths through all pixels, by the ink to their left: the best of each bin.
    part = _PART * stroke * height / factor
    bins = ((left_above + left_below - before) / part).astype(np.intp).ravel()
    order = np.argsort(through.ravel(), kind="stable")
    found, firsts = np.unique(bins[order], return_index=True)
    best = np.full(int(bins.max()) + 3, np.inf)
    best[found + 1] = through.ravel()[order[firsts]]
    is_least = (best[1:-1] <= best[:-2]) & (best[1:-1] < best[2:])
    is_least &= best[1:-1] < _MOST_STROKES * stroke
    end = round(LEAST_INK / _PART)
    is_least[:end] = False
    is_least[max(0, int(small.sum() / part) + 1 - end) :] = False
    chosen = np.flatnonzero(is_least)
    chosen = np.sort(chosen[np.argsort(best[chosen + 1])][:most])
    place_of = dict(zip(found.tolist(), order[firsts].tolist(), strict=True))
    row_of = np.minimum(np.arange(ink.shape[0]) // factor, rows - 1)
    cuts = []
    for number in chosen.tolist():
        row, column = divmod(int(place_of[number]), int(small.shape[1]))
        above = _path(small[: row + 1], down, column)
        below = _path(small[row:][::-1], up[row:][::-1], column)[::-1]
        path = np.concatenate([above, below[1:]])
        crossed = float(best[number + 1]) / stroke
        cuts.append(Cut(path[row_of] * factor, crossed, number * _PART))
    return cuts, float(small.sum()) / part * _PART


def _stroke(ink: Floats) -> float:
    """The width of strokes in pixels, from the ink's area and the length of its edges."""
    mask = np.pad(ink > 0.4, 1)
    edges = sum(int(np.diff(mask, axis=axis).sum()) for axis in (0, 1))
    width = 2.4 * float(ink.sum()) / (edges + 1)
    return max(width, 1.0)


def _least_ink(ink: Floats, before: Floats) -> tuple[Floats, Floats]:
    """For each pixel the least ink on a path from the first row to it, which never turns back.

    And the ink to the left of that path, with `before` to the left of each pixel.
    """
    total, left_of = np.empty_like(ink), np.empty_like(ink)
    side = ink + _SIDEWAYS
    along = side.cumsum(axis=1)  # of a walk along the row, up to each pixel and with it
    upto = along - side
    columns = np.arange(ink.shape[1])
    reached = np.zeros(ink.shape[1], np.float32)
    left = np.zeros(ink.shape[1], np.float32)
    for row in range(len(ink)):
        here = reached + ink[row]
        right = here - along[row]
        least = np.minimum.accumulate(right)
        from_left = np.maximum.accumulate(np.where(right <= least, columns, 0))
        right = least + along[row]
        wrong = (here + upto[row])[::-1]
        least = np.minimum.accumulate(wrong)
        from_right = columns[-1] - np.maximum.accumulate(np.where(wrong <= least, columns, 0))[::-1]
        back = least[::-1] - upto[row]
        is_right = right <= back
        reached = np.where(is_right, right, back)
        left = left[np.where(is_right, from_left, from_right)] + before[row]
        total[row], left_of[row] = reached, left
    return total, left_of


def _path(ink: Floats, total: Floats, column: int) -> npt.NDArray[np.intp]:
    """The columns, row by row, of the path of least ink to a pixel of the last row."""
    path = np.empty(len(ink), np.intp)
    side = ink + _SIDEWAYS
    for row in range(len(ink) - 1, -1, -1):
        path[row] = column
        if row:
            along = side[row].cumsum()
            walk = np.abs(along[column] - along)
            # To the left of it, a walk starts behind the first pixel; to the right, before it.
            walk[column + 1 :] += side[row, column] - side[row, column + 1 :]
            column = int((total[row - 1] + ink[row] + walk).argmin())
    return path
