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
_PATH_ROWS = 28
# A path moves by up to this many columns from row to row. One costs as much as 0.3 pixels of ink.
_REACH = 4
_SIDEWAYS = np.float32(0.3) * np.abs(np.arange(-_REACH, _REACH + 1, dtype=np.float32))

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
    # Columns are finer than rows, as cuts go down.
    fine = max(1, round(height / _PATH_ROWS / 2))
    reduced = Image.fromarray(ink).reduce((fine, 2 * fine))
    small = np.asarray(reduced, np.float32) * np.float32(2 / 255)
    rows, width = small.shape
    stroke = _stroke(small)
    before = np.pad(small.cumsum(axis=1), ((0, 0), (1, 0)))[:, :-1]
    (down, up), (left_above, left_below), (came, went) = _least_ink(
        np.stack([small, small[::-1]]), np.stack([before, before[::-1]])
    )
    through = (down + up[::-1] - small).ravel()
    # Paths through all pixels, by the ink to their left: the best of each bin.
    part = _PART * stroke * height / fine
    bins = ((left_above + left_below[::-1] - before) / part).astype(np.intp).ravel()
    order = np.argsort(through)
    found, firsts = np.unique(bins[order], return_index=True)
    best = np.full(int(found[-1]) + 3, np.inf)
    places = np.zeros(len(best), np.intp)
    places[found + 1] = order[firsts]
    best[found + 1] = through[order[firsts]]
    is_least = (best[1:-1] <= best[:-2]) & (best[1:-1] < best[2:])
    is_least &= best[1:-1] < _MOST_STROKES * stroke
    end = round(LEAST_INK / _PART)
    is_least[:end] = False
    is_least[max(0, int(small.sum() / part) + 1 - end) :] = False
    chosen = np.flatnonzero(is_least) + 1
    chosen = np.sort(chosen[np.argsort(best[chosen])][:most])
    row_of = np.minimum(np.arange(ink.shape[0]) // (2 * fine), rows - 1)
    cuts = []
    for number, place in zip(chosen.tolist(), places[chosen].tolist(), strict=True):
        row, column = divmod(place, width)
        above = _path(came, row, column)
        below = _path(went, rows - 1 - row, column)
        path = np.array([*above[::-1], *below[1:]], np.intp)
        crossed = float(best[number]) / stroke
        cuts.append(Cut(path[row_of] * fine, crossed, (number - 1) * _PART))
    return cuts, float(small.sum()) / part * _PART


def _stroke(ink: Floats) -> float:
    """The width of strokes in columns, from the ink's area and the length of its edges.

    A row is as high as two columns are wide.
    """
    mask = np.pad(ink > 0.8, 1)
    edges = int(np.diff(mask, axis=0).sum()) + 2 * int(np.diff(mask, axis=1).sum())
    width = 2.4 * float(ink.sum()) / (edges + 1)
    return max(width, 1.0)


def _least_ink(ink: Floats, before: Floats) -> tuple[Floats, Floats, list[list[list[int]]]]:
    """For each pixel [B,H,W] the least ink on a path from the first row to it.

    The second is the ink to the left of that path; `before` is that to the left of each pixel. The
    third is the column in the row above from which the path comes.
    """
    total, left_of = np.empty_like(ink), np.empty_like(ink)
    came = np.zeros(ink.shape, np.intp)
    total[:, 0], left_of[:, 0] = ink[:, 0], before[:, 0]
    pages, rows, width = ink.shape
    padded = np.full((pages, width + 2 * _REACH), np.inf, np.float32)
    near = np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH + 1, axis=1)
    start = np.arange(width) - _REACH
    page = np.arange(pages)[:, None]
    # Of a walk along a row; a row is as high as two columns are wide.
    along = np.pad(ink.cumsum(axis=2) / 2, ((0, 0), (0, 0), (_REACH, _REACH)))
    windows = np.lib.stride_tricks.sliding_window_view(along, 2 * _REACH + 1, axis=2)
    walks = np.abs(windows - windows[..., _REACH, None]) + _SIDEWAYS
    for row in range(1, rows):
        padded[:, _REACH:-_REACH] = total[:, row - 1]
        costs = near + walks[:, row]
        at = costs.argmin(axis=2) + start
        came[:, row] = at
        total[:, row] = costs.min(axis=2) + ink[:, row]
        left_of[:, row] = left_of[page, row - 1, at] + before[:, row]
    # numpy's types do not say how deep the lists are.
    columns: list[list[list[int]]] = came.tolist()  # type: ignore[assignment]
    return total, left_of, columns


def _path(came: list[list[int]], row: int, column: int) -> list[int]:
    """The columns of the path to a pixel, from its row to the first."""
    path = [column]
    for above in range(row, 0, -1):
        column = came[above][column]
        path.append(column)
    return path
