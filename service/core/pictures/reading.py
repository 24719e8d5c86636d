"""Numbers on a page: where their digits are, in reading order.

Strategy: cut too often, and let the classifier choose (over-segmentation; Casey and Lecolinet, "A
survey of methods and strategies in character segmentation", PAMI 1996). Connected pieces of ink are
sorted into lines, and wide pieces are cut along the paths from top to bottom that cross the least
ink. Every run of neighbouring pieces that could be one digit is a candidate. All candidates of a
picture go to the model in one batch. `choose` then takes, per line, the cheapest way to use every
piece once: the sum of the candidates' costs, which is -log of the largest probability, more for a
candidate that the model does not accept, and more for cuts through ink and for odd shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log
from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.digits import SIDE, Pixels, Prediction
from service.core.errors import RequestTooLarge
from service.core.pictures.components import without_lines
from service.core.pictures.digit import fit_digit
from service.core.pictures.page import LEAST_CONTRAST, Ink, closed, ink_is_bright, upright

# Ink levels of 255 that belong to a stroke.
_STROKE = 96
# A page is read at this number of pixels on its longer side, to twice that.
_PAGE_SIDE = 640
# Pixels per side of the copy on which the paper is estimated.
_PAPER_SIDE = 128
# Lengths below are shares of the height of a line's digits.
_SPECK = 0.12  # smaller than this in both directions: dirt
_TALL = 0.45  # pieces at least this high can be a digit on their own
_WIDEST = 1.6  # of a candidate
_WIDEST_GAP = 0.2  # between the pieces of one digit
_CUT_FROM = 0.6  # pieces at least this wide, slant removed, may be several digits
_EDGE = 0.1  # no cuts nearer to the sides of a piece
_WINDOW = 0.12  # one cut in each stretch of this width
_MOST_STROKES = 2.5  # that a cut may cross, as a multiple of a stroke's width
_CUT_UPRIGHT = 0.6  # nor pieces that are narrower than this without their slant
_BROKEN = 0.12  # the largest gap between the parts of a digit that lie above each other
_TALLEST = 1.8  # of such a digit
_NEAR = 0.35  # small pieces further from every digit are ignored
_LOWEST = 0.5  # of a candidate that is cut out of a piece
_MOST_PIECES = 14  # of one candidate
# Paths are looked for on pieces of about this many rows.
_PATH_ROWS = 28

# Costs, in units of -log(probability); chosen with benchmarks/pictures/strings.py.
_REFUSED = {"several_digits": 20.0, "not_a_digit": 15.0, "unsure": 8.0, "blank": 20.0}
_PER_DIGIT = 0.1
_PER_CUT = 0.2
_PER_STROKE = 0.1  # for each stroke's width of ink that a cut crosses
_SHORT = 4.0  # for each height by which a candidate is lower than its line
_WIDE = 1.0  # for each height by which it is wider than high


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are outside of it."""

    left: int
    top: int
    right: int
    bottom: int


class Candidate(NamedTuple):
    """Pieces `first` to `last` - 1 of a line as one digit; `cost` is that of its shape."""

    first: int
    last: int
    box: Box
    cost: float


class Candidates(NamedTuple):
    """All candidates of a page, line by line; `pixels`, uint8 [N,28,28], has them in this order."""

    lines: list[list[Candidate]]
    pixels: Pixels


class ReadDigit(NamedTuple):
    """A digit, where it is on the picture, the index of its line, and what the model says."""

    box: Box
    line: int
    prediction: Prediction


class Reading(NamedTuple):
    """What a page says: digits in reading order, and the text of each line.

    A line has one character per digit. It is "?" for a mark that is not accepted because it is not
    a digit, or several; of an unsure one the most probable digit is given.
    """

    digits: list[ReadDigit]
    lines: list[str]

    @property
    def text(self) -> str:
        """The lines, with line breaks between them."""
        return "\n".join(self.lines)


class _Piece(NamedTuple):
    """A connected piece of ink, or a part of one; `ink` has the size of the box."""

    box: Box
    ink: Ink
    cut: float | None  # strokes that the cut on its right side crosses; None if it ends there


def candidates_on(image: Image.Image, most: int) -> Candidates:
    """Decode an opened picture and find what may be its digits.

    Boxes are in pixels of the picture as people see it. Raises InvalidArgument if the data is
    damaged, RequestTooLarge if there are more than `most` digits.
    """
    width, height = image.size
    # A large JPEG is decoded at a fraction of its size.
    reduced, *_ = getattr(image, "decoderconfig", None) or (1,)
    picture = upright(image, _PAGE_SIDE)
    scale = reduced * max(width, height) / max(picture.size)
    lines, pixels = find_digits(without_lines(ink_on(picture)), most)
    in_picture = [
        [
            candidate._replace(box=Box(*(round(edge * scale) for edge in candidate.box)))
            for candidate in line
        ]
        for line in lines
    ]
    return Candidates(in_picture, pixels)


def ink_on(picture: Image.Image) -> Ink:
    """The ink on a picture in L or RGB, uint8 [H,W]: 0 is paper, 255 is full ink.

    `page.ink_of` does the same for one digit. On a page only a few pixels in a hundred are ink. So
    the paper is estimated on a small copy, and the level of ink from how much the paper varies.
    """
    if picture.mode != "L":
        picture = picture.convert("L")
    grey = np.asarray(picture)
    factor = -(-max(grey.shape) // _PAPER_SIDE)
    if ink_is_bright(grey[::3, ::3]):
        grey = 255 - grey
    height, width = grey.shape
    small = np.asarray(Image.fromarray(grey).reduce(factor))
    paper = closed(small[None], max(3, max(small.shape) // 6 | 1))[0]
    dark = np.float32(1) / (paper.astype(np.float32) + 8)
    rows, columns = small.shape
    padded = np.pad(grey, ((0, rows * factor - height), (0, columns * factor - width)), "edge")
    blocks = padded.reshape(rows, factor, columns, factor)
    light = blocks.astype(np.float32)
    light += 8
    light *= dark[:, None, :, None]
    depth = 1 - light.reshape(padded.shape)[:height, :width]
    sample = depth[::3, ::3]
    usual = float(np.median(sample))
    varies = 1.5 * float(np.median(np.abs(sample - usual)))
    least = max(LEAST_CONTRAST, usual + 5 * varies)
    inked = depth[depth > least]
    if not len(inked):
        return np.zeros(grey.shape, np.uint8)
    pen = float(np.percentile(inked, 75))
    depth -= usual
    depth *= 255 / (pen - usual)
    np.clip(depth, 0, 255, out=depth)
    return depth.astype(np.uint8)


def find_digits(ink: Ink, most: int) -> Candidates:
    """Candidates for the digits of a page, uint8 [H,W], 0 is paper and 255 full ink.

    Raises RequestTooLarge if there are more than `most` digits, or twice as many pieces of ink.
    """
    pieces = _pieces(ink, 2 * most)
    lines: list[list[Candidate]] = []
    crops: list[Ink] = []
    count = 0
    for line in _lines(pieces):
        height = _height(line)
        parts = [part for piece in line for part in _cut(piece, height)]
        count += len(parts)
        if count > 4 * most:
            raise _too_many(most)
        candidates, inks = _candidates(parts, height)
        lines.append(candidates)
        crops += inks
    pixels = np.zeros((len(crops), SIDE, SIDE), np.uint8)
    for index, crop in enumerate(crops):
        pixels[index] = fit_digit(crop)
    return Candidates(lines, pixels)


def choose(candidates: Candidates, predictions: Sequence[Prediction]) -> Reading:
    """The digits among the candidates, given the model's prediction for each of them."""
    reading = Reading([], [])
    start = 0
    for number, line in enumerate(candidates.lines):
        count = max((candidate.last for candidate in line), default=0)
        costs = [0.0] + [float("inf")] * count
        chosen: list[tuple[Candidate, Prediction] | None] = [None] * (count + 1)
        for candidate, prediction in zip(line, predictions[start:], strict=False):
            cost = costs[candidate.first] + candidate.cost + _cost(prediction)
            if cost < costs[candidate.last]:
                costs[candidate.last] = cost
                chosen[candidate.last] = candidate, prediction
        digits = []
        while count:
            step = chosen[count]
            assert step is not None  # every whole piece is a candidate
            digits.append(ReadDigit(step[0].box, number, step[1]))
            count = step[0].first
        digits.reverse()
        reading.digits.extend(digits)
        reading.lines.append("".join(map(_character, digits)))
        start += len(line)
    return reading


def _too_many(most: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"image: it has more than {most} digits or other marks (max_read_digits); "
        "send a part of the page at a time."
    )


def _cost(prediction: Prediction) -> float:
    refused = 0.0 if prediction.accepted is not False else _REFUSED.get(prediction.reason, 8.0)
    return refused + _PER_DIGIT - log(max(float(prediction.probabilities[prediction.digit]), 1e-6))


def _character(digit: ReadDigit) -> str:
    is_digit = digit.prediction.reason not in ("not_a_digit", "several_digits")
    return str(digit.prediction.digit) if is_digit else "?"


def _pieces(ink: Ink, most: int) -> list[_Piece]:
    """The connected pieces of ink that are neither specks nor lines between rows of digits."""
    mask = ink >= _STROKE
    labels, count = cc3d.connected_components(
        mask.view(np.uint8), connectivity=8, return_N=True, binary_image=True
    )
    if not count:
        return []
    statistics = cc3d.statistics(labels, no_slice_conversion=True)
    boxes = statistics["bounding_boxes"][1:].astype(np.intp)  # top, bottom, left, right, inclusive
    sizes = statistics["voxel_counts"][1:].astype(np.int64)
    heights, widths = boxes[:, 1] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 2] + 1
    order = np.argsort(heights)
    # Half of all ink is in pieces of at least this height.
    total = np.cumsum(sizes[order])
    typical = heights[order][np.searchsorted(total, total[-1] / 2)]
    large = np.maximum(heights, widths) >= max(3, _SPECK * typical)
    flat = (heights < _TALL * typical) & (widths > typical)
    kept = np.flatnonzero(large & ~flat)
    if len(kept) > most:
        raise _too_many(most // 2)
    pieces = []
    for index in kept.tolist():
        top, bottom, left, right = (int(edge) for edge in boxes[index])
        region = np.s_[top : bottom + 1, left : right + 1]
        own = np.where(labels[region] == index + 1, ink[region], 0).astype(np.uint8)
        pieces.append(_Piece(Box(left, top, right + 1, bottom + 1), own, None))
    return pieces


def _lines(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces sorted into lines from top to bottom, each from left to right.

    A line may rise or fall: each piece is compared with the last two that the line has.
    """
    if not pieces:
        return []
    weights = np.array([int(np.count_nonzero(piece.ink)) for piece in pieces])
    heights = np.array([piece.box.bottom - piece.box.top for piece in pieces])
    order = np.argsort(heights)
    total = np.cumsum(weights[order])
    typical = heights[order][np.searchsorted(total, total[-1] / 2)]
    large = [p for p, h in zip(pieces, heights, strict=True) if h >= _TALL * typical]
    small = [p for p, h in zip(pieces, heights, strict=True) if h < _TALL * typical]
    lines: list[list[_Piece]] = []
    for piece in sorted(large, key=lambda piece: piece.box.left):
        best, most = None, 0.4
        for line in lines:
            top = min(last.box.top for last in line[-2:])
            bottom = max(last.box.bottom for last in line[-2:])
            shared = min(bottom, piece.box.bottom) - max(top, piece.box.top)
            share = shared / min(bottom - top, piece.box.bottom - piece.box.top)
            if share > most:
                best, most = line, share
        if best is None:
            lines.append([piece])
        else:
            best.append(piece)
    owners = [line for line in lines for _ in line]
    boxes = np.array([piece.box for line in lines for piece in line])
    for piece in small:
        own = piece.box
        across = np.maximum(boxes[:, 0] - own.right, own.left - boxes[:, 2])
        along = np.maximum(boxes[:, 1] - own.bottom, own.top - boxes[:, 3])
        distance = np.maximum(across, along)
        nearest = int(distance.argmin())
        if distance[nearest] < _NEAR * typical:
            owners[nearest].append(piece)
    # The parts of a broken digit lie closer together than lines do.
    for line in [line for line in lines if len(line) == 1]:
        own = line[0].box
        for other in lines:
            if other is not line and any(
                min(own.right, box.right) > max(own.left, box.left)
                and max(own.top, box.top) - min(own.bottom, box.bottom) < _BROKEN * typical
                and max(own.bottom, box.bottom) - min(own.top, box.top) < _TALLEST * typical
                for box, _, _ in other
            ):
                other.extend(line)
                line.clear()
                break
    lines = [line for line in lines if line]
    lines.sort(key=lambda line: float(np.mean([p.box.top + p.box.bottom for p in line])))
    for line in lines:
        line.sort(key=lambda piece: piece.box.left + piece.box.right)
    return lines


def _height(line: list[_Piece]) -> float:
    """The height of a line's digits: half of its ink is in pieces of at least this height."""
    heights = np.array([piece.box.bottom - piece.box.top for piece in line])
    order = np.argsort(heights)
    total = np.cumsum([np.count_nonzero(line[index].ink) for index in order.tolist()])
    typical = heights[order][np.searchsorted(total, total[-1] / 2)]
    return float(max(typical, 0.75 * heights[-1 if len(heights) == 1 else order[-1]]))


def _cut(piece: _Piece, height: float) -> list[_Piece]:
    """The piece, or its parts between all promising cuts, from left to right."""
    left, top, right, bottom = piece.box
    if right - left < _CUT_FROM * height or bottom - top < _TALL * height:
        return [piece]
    factor = max(1, round(height / _PATH_ROWS))
    small = np.asarray(Image.fromarray(piece.ink).reduce(factor), np.float32) / np.float32(255)
    small, shifts = _upright(small)
    rows = len(small)
    unit = height / factor  # a digit's height, on the reduced piece
    strokes = 3 * unit / _PATH_ROWS  # the width of a pen's stroke
    down = _least_ink(small)
    up = _least_ink(small[::-1])[::-1]
    middle = rows // 2
    through = down[middle] + up[middle] - small[middle]
    # One cut per window, where its path crosses the least ink.
    inked = np.flatnonzero((small > 0.4).any(axis=0))
    if not len(inked) or inked[-1] + 1 - inked[0] < _CUT_UPRIGHT * unit:
        return [piece]
    first, last = inked[0] + _EDGE * unit, inked[-1] + 1 - _EDGE * unit
    cuts: list[int] = []
    if last - first >= 1:
        windows = np.linspace(first, last, max(1, round((last - first) / (_WINDOW * unit))) + 1)
        for begin, end in pairwise(windows.round().astype(int).tolist()):
            if begin == end:
                continue
            column = begin + int(through[begin:end].argmin())
            if through[column] > _MOST_STROKES * strokes:
                continue
            if cuts and column - cuts[-1] < 0.5 * _WINDOW * unit:
                if through[column] >= through[cuts[-1]]:
                    continue
                cuts.pop()
            cuts.append(column)
    part_of = np.zeros(piece.ink.shape, np.uint8)
    across = np.arange(piece.ink.shape[1])
    row_of = np.minimum(np.arange(piece.ink.shape[0]) // factor, rows - 1)
    for column in cuts:
        path = _path(down, up, middle, column) - shifts
        part_of += across[None] >= (path[row_of] * factor)[:, None]
    parts = []
    for number in range(len(cuts) + 1):
        own = np.where(part_of == number, piece.ink, 0).astype(np.uint8)
        box = Image.fromarray(own).getbbox()
        if box is None:
            continue
        crossed = None
        if number < len(cuts):
            crossed = float(through[cuts[number]]) / strokes
        inner = np.ascontiguousarray(own[box[1] : box[3], box[0] : box[2]])
        where = Box(left + box[0], top + box[1], left + box[2], top + box[3])
        parts.append(_Piece(where, inner, crossed))
    parts[-1] = parts[-1]._replace(cut=None)  # the part behind the last cut may be empty
    return parts


_SIDEWAYS = np.float32(0.05)
_SLANTS = np.linspace(-0.8, 0.8, 17)


def _upright(ink: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Ink with its slant removed, and the columns by which each row moved to the right.

    Of all slants the one whose columns of ink differ most (Vinciarelli and Luettin, "A new
    normalization technique for cursive handwritten words", 2001).
    """
    rows, columns = ink.shape
    ys, xs = np.nonzero(ink > 0.4)
    best, shifts = -1.0, np.zeros(rows, np.intp)
    for slant in _SLANTS:
        moved = np.round(slant * (np.arange(rows) - rows / 2)).astype(np.intp)
        moved -= moved.min()
        counts = np.bincount(xs + moved[ys])
        score = float(counts @ counts)
        if score > best:
            best, shifts = score, moved
    upright = np.zeros((rows, columns + int(shifts.max())), np.float32)
    for row, shift in enumerate(shifts.tolist()):
        upright[row, shift : shift + columns] = ink[row]
    return upright, shifts


def _least_ink(ink: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """For each pixel the least ink on a path from the first row to it, one column per row."""
    total = ink.copy()
    padded = np.full(ink.shape[1] + 2, np.inf, np.float32)
    for row in range(1, len(ink)):
        padded[1:-1] = total[row - 1]
        beside = np.minimum(padded[:-2], padded[2:]) + _SIDEWAYS
        total[row] += np.minimum(padded[1:-1], beside)
    return total


def _path(
    down: npt.NDArray[np.float32], up: npt.NDArray[np.float32], middle: int, column: int
) -> npt.NDArray[np.intp]:
    """The columns, row by row, of the path of least ink through a pixel of the middle row."""
    path = np.full(len(down), column, np.intp)
    for totals, steps in (
        (down, range(middle - 1, -1, -1)),
        (up, range(middle + 1, len(down))),
    ):
        at = column
        for row in steps:
            begin = max(0, at - 1)
            around = totals[row, begin : at + 2].copy()
            around[at - begin] -= _SIDEWAYS
            at = begin + int(around.argmin())
            path[row] = at
    return path


def _shape_cost(cuts: tuple[float | None, ...], height: float, width: float) -> float:
    """The cost of a candidate's shape: the strokes that its cuts cross, and its size."""
    cost = _SHORT * max(0.0, 0.7 - height) + _WIDE * max(0.0, width - 1.0)
    for crossed in cuts:
        if crossed is not None:
            cost += (_PER_CUT + _PER_STROKE * crossed) / 2
    return cost


def _candidates(parts: list[_Piece], height: float) -> tuple[list[Candidate], list[Ink]]:
    """Every run of neighbouring parts that could be one digit, with its ink.

    Whole pieces always are, so there is a way to use all parts once.
    """
    candidates, inks = [], []
    begin = 0  # the first part of the piece that the last part belongs to
    for last, end in enumerate(parts, start=1):
        spans = []
        for first in range(last - 1, max(-1, last - 1 - _MOST_PIECES), -1):
            if first < last - 1 and parts[first].cut is None:
                gap = parts[first + 1].box.left - parts[first].box.right
                if gap > _WIDEST_GAP * height:
                    break
            box = _around(parts[first:last])
            if box.right - box.left > _WIDEST * height:
                break
            is_whole = end.cut is None and (first == 0 or parts[first - 1].cut is None)
            if is_whole or box.bottom - box.top >= _LOWEST * height:
                spans.append(first)
        if end.cut is None and begin not in spans:
            spans.append(begin)
        for first in spans:
            group = parts[first:last]
            box = _around(group)
            wide, high = box.right - box.left, box.bottom - box.top
            cuts = end.cut, parts[first - 1].cut if first else None
            cost = _shape_cost(cuts, high / height, wide / max(high, height))
            ink = group[0].ink
            if len(group) > 1:
                ink = np.zeros((high, wide), np.uint8)
                for part in group:
                    rows = slice(part.box.top - box.top, part.box.bottom - box.top)
                    columns = slice(part.box.left - box.left, part.box.right - box.left)
                    np.maximum(ink[rows, columns], part.ink, out=ink[rows, columns])
            candidates.append(Candidate(first, last, box, cost))
            inks.append(ink)
        if end.cut is None:
            begin = last
    return candidates, inks


def _around(parts: list[_Piece]) -> Box:
    boxes = [part.box for part in parts]
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))
