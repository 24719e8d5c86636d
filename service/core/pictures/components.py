"""The connected components of a page: which are the digit, and which are frames, ruling and specks.

A page has at most 128 pixels per side (`page.SIDE`) where one digit is found, and more where a
number is read.
"""

from __future__ import annotations

from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.pictures.page import IS_INK, Ink

Mask = npt.NDArray[np.bool_]
_LEAST_SIDE = 24  # pixels of a page with lines
_RUN, _THICK = 9, 8  # the least length of a run, and the least thickness of what is no line
_MARGIN = 0.06  # of the page's side: a line that comes as near to both edges goes through
_SLOPES = np.linspace(-0.08, 0.08, 17)  # tan of up to 4.6 degrees


class Components(NamedTuple):
    """Connected components: labels [H,W] from 1 on, and one row for each of them (row 0 is paper).

    `boxes` is int [N+1,4]: top, left, bottom, right, the last two excluded; `areas` is in pixels.
    """

    labels: npt.NDArray[np.unsignedinteger]
    areas: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]


def components_of(mask: Mask) -> Components:
    """The components of bool [H,W] that are connected along edges or corners."""
    labels = cc3d.connected_components(mask.view(np.uint8), connectivity=8)
    found = cc3d.statistics(labels, no_slice_conversion=True)
    boxes = found["bounding_boxes"].astype(np.int64).reshape(-1, 4)
    boxes = np.stack([boxes[:, 0], boxes[:, 2], boxes[:, 1] + 1, boxes[:, 3] + 1], axis=1)
    return Components(labels, found["voxel_counts"].astype(np.int64), boxes)


def without_lines(ink: Ink) -> Ink:
    """The ink without ruling and without form boxes, upright or tilted by up to 4.6 degrees."""
    mask = ink >= IS_INK
    wide, high = _lines_on(mask)
    if not wide and not high:
        return ink
    rest = ink.copy()
    for line in wide:
        _remove(rest, mask, line)
    mask = rest >= IS_INK  # where ruling crossed, only the other line is left
    for line in high:
        _remove(rest.T, mask.T, line)
    # A lone upright line is a one if there is little else.
    left = np.count_nonzero(rest >= IS_INK)
    is_one = not wide and len(high) == 1 and left < np.count_nonzero(ink >= IS_INK) / 2
    return ink if is_one else rest


def may_have_lines(ink: Ink) -> bool:
    """Whether `without_lines` may find any on a large page: a look at a small copy of it."""
    factor = 4 if min(ink.shape) >= 4 * _LEAST_SIDE else 2
    small = np.asarray(Image.fromarray(ink).reduce(factor))
    return any(_lines_on(small >= IS_INK // factor))


class _Line(NamedTuple):
    """A thin line from left to right: its row is `offset + slope * column`.

    `is_through` says that it goes from one edge of the page to the other.
    """

    offset: float
    slope: float
    length: int
    thickness: int
    is_through: bool


def _lines_on(mask: Mask) -> tuple[list[_Line], list[_Line]]:
    """The lines that go across the page, or that are boxes on it, and those that go down."""
    across = _lines(mask)
    # Fewer than two across: only a line from edge to edge counts, which few pages have room for.
    margin = int(_MARGIN * len(mask)) + 1
    if len(across) < 2 and not (mask[:margin].any() and mask[-margin:].any()):
        return [line for line in across if line.is_through], []
    down = _lines(np.ascontiguousarray(mask.T))
    if len(across) >= 2 and len(down) >= 2:  # a box, or squared paper
        return _longest(across), _longest(down)
    return [line for line in across if line.is_through], [line for line in down if line.is_through]


def _longest(lines: list[_Line]) -> list[_Line]:
    """The lines that are about as long as the longest: the straight stroke of a 4 is shorter."""
    most = max(line.length for line in lines)
    return [line for line in lines if line.length >= 0.75 * most]


def _lines(mask: Mask) -> list[_Line]:
    """Thin lines that take at least 0.4 of the width."""
    height, width = mask.shape
    if min(mask.shape) < _LEAST_SIDE:
        return []
    least = 0.4 * width
    runs = _eroded(mask, _RUN)
    covered = np.atleast_2d(runs.any(axis=0))
    if np.count_nonzero(_dilated(covered, _RUN)) < least:
        return []  # without a look at how thick they are
    thin = _dilated(runs, _RUN)
    thin &= ~_dilated(_eroded(np.ascontiguousarray(mask.T), _THICK), _THICK).T
    if np.count_nonzero(thin.any(axis=0)) < least:
        return []
    rows, columns = np.nonzero(thin)
    # Rulings are parallel: the slope that gathers them in the fewest rows.
    shifts = np.outer(_SLOPES, np.arange(width)) - 16.5
    offsets = (rows - shifts[:, columns]).astype(np.int64)
    bins = height + 32
    each = offsets + np.arange(len(_SLOPES))[:, None] * bins
    gathered = np.bincount(each.ravel(), minlength=bins * len(_SLOPES)).reshape(-1, bins)
    best = int((gathered * gathered).sum(axis=1).argmax())
    slope, offsets, counts = float(_SLOPES[best]), offsets[best], gathered[best]
    lines = []
    for _ in range(32):
        centre = int(counts.argmax())
        near = np.abs(offsets - centre) <= 3
        seen = np.unique(columns[near])
        length = len(seen)
        if counts[centre] < least / 3:
            break
        if length >= least:
            thickness = max(1, round(int(near.sum()) / length))
            middle = float((rows[near] - slope * columns[near]).mean())
            margin = _MARGIN * width
            is_through = bool(
                length >= 0.6 * width and seen[0] <= margin and seen[-1] >= width - 1 - margin
            )
            lines.append(_Line(middle, slope, length, thickness, is_through))
        counts[max(0, centre - 4) : centre + 5] = 0
    return lines


def _eroded(mask: Mask, length: int) -> Mask:
    """Where runs of `length` pixels of bool [H,W] begin, [H,W - length + 1]."""
    run, done = mask, 1
    while done < length:  # the windows double, up to `length`
        step = min(done, length - done)
        run = run[:, :-step] & run[:, step:]
        done += step
    return run


def _dilated(begins: Mask, length: int) -> Mask:
    """The pixels [H,W + length - 1] of runs of `length` that begin at the pixels of bool [H,W]."""
    height, width = begins.shape
    dilated = np.zeros((height, width + length - 1), bool)
    dilated[:, :width] = begins
    done = 1
    while done < length:
        step = min(done, length - done)
        dilated[:, step:] |= dilated[:, :-step].copy()
        done += step
    return dilated


def _remove(ink: Ink, mask: Mask, line: _Line) -> None:
    """Clear a line in place, but where a stroke crosses or touches it."""
    height, width = mask.shape
    columns = np.arange(width)
    middle = line.offset + line.slope * columns
    half = line.thickness / 2 + 1
    top = np.ceil(middle - half).astype(np.int64)
    bottom = np.floor(middle + half).astype(np.int64)
    above, below = top - 1, bottom + 1
    crossed = np.zeros(width, bool)
    for edge in (above, below):
        inside = (edge >= 0) & (edge < height)
        crossed[inside] |= mask[edge[inside], columns[inside]]
    for row in range(int((bottom - top).max()) + 1):
        at = top + row
        clear = ~crossed & (at >= 0) & (at < height) & (at <= bottom)
        ink[at[clear], columns[clear]] = 0


def digit_of(found: Components, shape: tuple[int, int]) -> tuple[list[int], bool]:
    """The labels of the components that make up the digit, and whether they are several digits."""
    areas, boxes = found.areas, found.boxes
    height, width = shape
    labels = [n for n in range(1, len(areas)) if areas[n] >= 4]
    if not labels:
        return [], False
    sizes = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    touches = (
        (boxes[:, 0] <= 0) | (boxes[:, 1] <= 0) | (boxes[:, 2] >= height) | (boxes[:, 3] >= width)
    )
    inner = [n for n in labels if not touches[n] and sizes[n] >= 0.15 * min(height, width)]
    if inner:
        labels = [n for n in labels if not touches[n]]
    labels = [n for n in labels if not _encloses(n, labels, found, sizes)] or labels
    main = max(labels, key=lambda n: int(areas[n]))
    size = int(sizes[main])
    chosen = [main]
    thickness = areas / np.maximum(sizes, 1)
    labels = [
        n
        for n in labels
        # A piece of a pixel or two, apart from the strokes and much thinner, was left of a line.
        if thickness[n] >= min(2.5, 0.4 * thickness[main]) or _gap(boxes[n], boxes[main]) <= 2
    ]
    for n in labels:
        if n == main:
            continue
        gap = _gap(boxes[n], boxes[main])
        is_part = sizes[n] >= 0.15 * size and areas[n] >= 0.02 * areas[main] and gap < 0.6 * size
        if is_part or (gap <= 3 and areas[n] >= 0.01 * areas[main]):
            chosen.append(n)
    several = [
        n
        for n in labels
        if n != main
        and _is_a_digit_beside(boxes[n], boxes[main], size)
        and areas[n] >= 0.2 * areas[main]
    ]
    return chosen, bool(several)


def _encloses(n: int, labels: list[int], found: Components, sizes: npt.NDArray[np.int64]) -> bool:
    """Whether a component is a frame: sparse, and around another one of some size."""
    top, left, bottom, right = found.boxes[n].tolist()
    if found.areas[n] > 0.3 * (bottom - top) * (right - left):
        return False
    for other in labels:
        if other == n or sizes[other] < 0.4 * sizes[n]:
            continue
        a, b, c, d = found.boxes[other].tolist()
        if a > top and b > left and c < bottom and d < right:
            return True
    return False


def _gap(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    return int(max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3], 0))


def _is_a_digit_beside(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], size: int) -> bool:
    """Whether two boxes are digits of similar size beside (or above) each other."""
    heights = int(a[2] - a[0]), int(b[2] - b[0])
    widths = int(a[3] - a[1]), int(b[3] - b[1])
    across = int(min(a[3], b[3]) - max(a[1], b[1]))  # negative: a gap
    down = int(min(a[2], b[2]) - max(a[0], b[0]))
    if min(heights) >= 0.5 * max(heights) and across <= 0.15 * min(widths):
        return True
    return min(heights) >= 0.5 * max(heights) and down <= -0.1 * size
