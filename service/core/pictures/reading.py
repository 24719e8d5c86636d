"""Numbers on a page: where their digits are, in reading order.

Strategy: connected pieces of ink are sorted into lines, and each is a digit, or a part of one that
is broken. The model sees all of them in one batch. Where it does not accept a piece, or the
piece is wide, neighbours are tried together and the piece is cut (`cuts`): every run of parts that
could be one digit is a candidate. A line is read in the cheapest way to use all ink once: the sum
of the candidates' costs, which is -log of the largest probability, more for a candidate that the
model does not accept, and more for cuts through ink and for odd shapes.

Most candidates need not be seen: the cost of their shape is known, and the model can only add to
it. So `further` asks for those of the way that would be the cheapest if the model were sure of all
that it has not seen, until it has seen all of the cheapest way (the search A*: Hart, Nilsson and
Raphael, "A formal basis for the heuristic determination of minimum cost paths", 1968).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from math import log
from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.digits import Pixels, Prediction
from service.core.errors import RequestTooLarge
from service.core.pictures.components import may_have_lines, without_lines
from service.core.pictures.cuts import LEAST_INK, cuts_through
from service.core.pictures.digit import fit_digits
from service.core.pictures.page import IS_INK, Ink, fine_ink_of, upright

# A page is read at this number of pixels on its longer side, to twice that; at the second one if
# strokes take fewer pixels than _THIN at the first.
_SIDES = 320, 640
_THIN = 4.0
# Lengths below are shares of the height of a line's digits.
_SPECK = 0.12  # smaller than this in both directions: dirt
_TALL = 0.45  # pieces at least this high can be a digit on their own
_WIDEST = 1.6  # of a candidate
_WIDEST_GAP = 0.2  # between the pieces of one digit
_WIDE_PIECE = 1.1  # a piece of this width may be several digits although it is accepted
_NARROWEST_CUT = 0.45  # no narrower piece is cut
_SMALL = 0.6  # a lower piece is a part of a digit rather than one
_BROKEN = 0.12  # the largest gap between the parts of a digit that lie above each other
_TALLEST = 1.8  # of such a digit
_NEAR = 0.35  # small pieces further from every digit are ignored
_LOWEST = 0.5  # of a candidate that is cut out of a piece
_MOST_PIECES = 14  # of one candidate
# The boxes of all pieces, in pages: they overlap where marks lie in each other.
_MOST_INK = 8
# After this many rounds, the model sees all candidates of the lines in doubt.
_ROUNDS = 8

# Costs, in units of -log(probability); chosen with benchmarks/pictures/strings.py.
_REFUSED = {"several_digits": 6.0, "not_a_digit": 3.0, "unsure": 1.3, "blank": 20.0}
_SURE = 0.95  # of a model that does not judge, a lower probability leaves doubt
# In a number, a mark that looks like no digit is one from this probability on.
_LIKELY = 0.7
_NO_DIGIT = ("not_a_digit", "several_digits")
_PER_DIGIT = 0.14
_PER_CUT = 0.18
_PER_STROKE = 1.7  # for each stroke's width of ink that a cut crosses
_SHORT = 8.0  # for each height by which a candidate is lower than _LOW heights
_LOW = 0.8
_WIDE = 3.0  # for each height by which it is wider than _USUAL heights
_USUAL = 0.7
# The width of each digit in heights, and the standard deviation of its logarithm: those of single
# digits that strings.py draws. What is off by more costs _TOO_WIDE or _TOO_NARROW times the square
# of the deviations beyond the first. (A narrow part may lack a stroke that was cut off.)
_WIDTHS = (
    (0.87, 0.21),
    (0.38, 0.53),
    (0.90, 0.18),
    (0.79, 0.21),
    (0.79, 0.22),
    (0.87, 0.22),
    (0.70, 0.22),
    (0.75, 0.22),
    (0.74, 0.22),
    (0.67, 0.22),
)
_TOO_WIDE, _TOO_NARROW = 0.22, 0.11
_MOST_DEVIATIONS = 5.0


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are outside of it."""

    left: int
    top: int
    right: int
    bottom: int


class Candidate(NamedTuple):
    """A stretch of a line as one digit: from `first` to `last`, in pieces and parts of them.

    `cost` is that of its shape, whatever digit it is; `width` is in heights of the line's digits.
    `number` identifies it among the candidates of a page.
    """

    first: float
    last: float
    box: Box
    cost: float
    width: float
    group: list[_Piece]
    number: int


class Candidates(NamedTuple):
    """What may be the digits of a page, line by line.

    `pixels`, uint8 [N,28,28], are the N candidates `numbers` that the model is to see now.
    Boxes are in pixels of the page; `scale` makes them those of the picture. `pieces` has the ink
    that each line consists of, from left to right. `rounds` counts the batches that it saw.
    """

    lines: list[list[Candidate]]
    numbers: list[int]
    pixels: Pixels
    pieces: list[list[_Piece]]
    scale: float = 1.0
    rounds: int = 1


# What the model says about the candidates that it has seen, by their numbers.
Predictions = Mapping[int, Prediction]


class ReadDigit(NamedTuple):
    """A digit, where it is on the picture, the index of its line, and what the model says."""

    box: Box
    line: int
    prediction: Prediction


class Reading(NamedTuple):
    """What a page says: digits in reading order, and the text of each line.

    A line has one character per mark: the most probable digit, or "?" if the mark is several digits
    or none. Where at least half of a line are digits, a mark that is likely enough to be one counts
    as one.
    """

    digits: list[ReadDigit]
    lines: list[str]

    @property
    def text(self) -> str:
        """The lines, with line breaks between them."""
        return "\n".join(self.lines)


class _Piece(NamedTuple):
    """A connected piece of ink, or a part of one; `ink` has the size of `edge`.

    `edge` holds the soft edges of the strokes as well. `area` is in pixels, that of a part in
    strokes of a digit's height. `cut` is how many strokes the cut on its right side crosses, None
    if it ends there.
    """

    box: Box
    edge: Box
    ink: Ink
    area: float
    cut: float | None


def candidates_on(image: Image.Image, most: int) -> Candidates:
    """Decode an opened picture and find the pieces of ink that may be its digits.

    Raises InvalidArgument if the data is damaged, RequestTooLarge if there are more than `most`
    digits.
    """
    width, height = image.size
    # A large JPEG is decoded at a fraction of its size.
    reduced, *_ = getattr(image, "decoderconfig", None) or (1,)
    for side in _SIDES:
        picture = upright(image, side)
        ink = fine_ink_of(picture)
        if max(picture.size) == max(image.size) or _stroke(ink) >= _THIN:
            break
    scale = reduced * max(width, height) / max(picture.size)
    if may_have_lines(ink):
        ink = without_lines(ink)
    return find_digits(ink, most)._replace(scale=scale)


def _stroke(ink: Ink) -> float:
    """The mean length in pixels of horizontal runs of ink; 0 without any."""
    mask = ink >= IS_INK
    runs = np.count_nonzero(mask[:, 1:] > mask[:, :-1])
    return np.count_nonzero(mask) / runs if runs else 0.0


def find_digits(ink: Ink, most: int) -> Candidates:
    """The pieces of a page, uint8 [H,W], 0 is paper and 255 full ink, that may be digits.

    Raises RequestTooLarge if there are more than `most` digits, or twice as many pieces of ink.
    """
    pieces = _lines(_pieces(ink, 2 * most))
    lines: list[list[Candidate]] = []
    number = 0
    for line in pieces:
        height = _height(line)
        found = []
        for last in range(1, len(line) + 1):
            for first in range(last - 1, max(-1, last - 1 - _MOST_PIECES), -1):
                group = line[first:last]
                if len(group) > 1 and not _is_broken(group, height):
                    break
                found.append(_candidate(first, last, group, (None, None), height, number))
                number += 1
        lines.append(found)
    seen_first = [candidate for line in lines for candidate in line]
    return Candidates(lines, list(range(number)), _pixels(seen_first), pieces)


def further(candidates: Candidates, predictions: Predictions, most: int) -> Candidates:
    """What the model is to see next; nothing once it has seen the cheapest way of each line.

    After the first round, there are more candidates where the model doubts: neighbouring pieces
    together, and parts of one. Raises RequestTooLarge if they are parts of more than `most` digits.
    """
    lines = candidates.lines
    if candidates.rounds == 1:
        lines = _with_parts(candidates, predictions, most)
    chosen: list[Candidate] = []
    for line in lines:
        unseen = [one for one in _cheapest(line, predictions) if one.number not in predictions]
        if unseen and candidates.rounds >= _ROUNDS:
            unseen = [one for one in line if one.number not in predictions]
        chosen += unseen
    numbers = [one.number for one in chosen]
    rounds = candidates.rounds + 1
    return candidates._replace(lines=lines, numbers=numbers, pixels=_pixels(chosen), rounds=rounds)


def choose(candidates: Candidates, predictions: Predictions) -> Reading:
    """The digits among the candidates, by what the model says; it has seen the cheapest way."""
    reading = Reading([], [])
    for number, line in enumerate(candidates.lines):
        digits = []
        for chosen in _cheapest(line, predictions):
            box = Box(*(round(edge * candidates.scale) for edge in chosen.box))
            digits.append(ReadDigit(box, number, predictions[chosen.number]))
        reading.digits.extend(digits)
        reading.lines.append(_text(digits))
    return reading


def _with_parts(
    candidates: Candidates, predictions: Predictions, most: int
) -> list[list[Candidate]]:
    """The candidates of each line, and more of them where the model doubts."""
    lines: list[list[Candidate]] = []
    number, count = len(candidates.numbers), 0
    for known, line in zip(candidates.lines, candidates.pieces, strict=True):
        height = _height(line)
        found = list(known)
        have = {(candidate.first, candidate.last) for candidate in known}
        for chosen in _cheapest(known, predictions):
            first, last = int(chosen.first), int(chosen.last)
            prediction = predictions[chosen.number]
            wide = (chosen.box.right - chosen.box.left) / height
            cost = chosen.cost + _cost(prediction, chosen.width)
            if not _is_doubtful(prediction) and wide < _WIDE_PIECE:
                continue
            for begin, end in ((first - 1, last), (first, last + 1), (first - 1, last + 1)):
                group = line[max(begin, 0) : end]
                if begin < 0 or end > len(line) or (begin, end) in have:
                    continue
                if _are_near(group, height):
                    have.add((begin, end))
                    found.append(_candidate(begin, end, group, (None, None), height, number))
                    number += 1
            if wide < _NARROWEST_CUT:
                continue
            whole = _together(line[first:last])
            edge = _around([piece.edge for piece in line[first:last]])
            parts = _parts(whole, edge, height)
            count += len(parts)
            if count > 4 * most:
                raise _too_many(most)
            for begin, end in _runs(parts, height):
                group = parts[begin:end]
                cuts = group[-1].cut, parts[begin - 1].cut if begin else None
                # No boundary between parts is one between pieces.
                left, right = (
                    last if n == len(parts) else first + n / len(parts) for n in (begin, end)
                )
                candidate = _candidate(left, right, group, cuts, height, number)
                if candidate.cost < cost:  # otherwise the whole piece is cheaper
                    found.append(candidate)
                    number += 1
        lines.append(found)
    return lines


def _pixels(chosen: list[Candidate]) -> Pixels:
    """Candidates as the model sees them, [N,28,28]."""
    return fit_digits((_together(one.group) for one in chosen), len(chosen))


def _cheapest(line: list[Candidate], predictions: Predictions) -> list[Candidate]:
    """The candidates that use each stretch of a line once, at the least cost.

    Those that the model has not seen cost what they do if it is sure.
    """
    costs = {0.0: 0.0}
    chosen: dict[float, Candidate] = {}
    for candidate in sorted(line, key=lambda one: one.last):
        before = costs.get(candidate.first)
        if before is None:
            continue
        seen = predictions.get(candidate.number)
        cost = before + candidate.cost + (_cost(seen, candidate.width) if seen else _PER_DIGIT)
        if cost < costs.get(candidate.last, float("inf")):
            costs[candidate.last], chosen[candidate.last] = cost, candidate
    way = []
    at = max(costs)
    while at:
        way.append(chosen[at])
        at = chosen[at].first
    return way[::-1]


def _too_many(most: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"image: it has more than {most} digits or other marks (max_read_digits); "
        "send a part of the page at a time."
    )


def _is_doubtful(prediction: Prediction) -> bool:
    if prediction.accepted is None:
        return float(prediction.probabilities[prediction.digit]) < _SURE
    return not prediction.accepted


def _cost(prediction: Prediction, width: float) -> float:
    """What it costs to read a candidate of this width as the digit that the model says."""
    refused = 0.0 if prediction.accepted is not False else _REFUSED.get(prediction.reason, 8.0)
    usual, spread = _WIDTHS[prediction.digit]
    deviations = log(max(width, 0.03) / usual) / spread
    odd = min(max(abs(deviations) - 1, 0), _MOST_DEVIATIONS) ** 2
    odd *= _TOO_WIDE if deviations > 0 else _TOO_NARROW
    likely = float(prediction.probabilities[prediction.digit])
    return refused + odd + _PER_DIGIT - log(max(likely, 1e-6))


def _text(line: list[ReadDigit]) -> str:
    marks = [digit.prediction.reason in _NO_DIGIT for digit in line]
    is_number = 2 * sum(marks) <= len(marks)
    return "".join(
        "?"
        if is_mark and not (is_number and _may_be_a_digit(digit.prediction))
        else str(digit.prediction.digit)
        for digit, is_mark in zip(line, marks, strict=True)
    )


def _may_be_a_digit(prediction: Prediction) -> bool:
    likely = float(prediction.probabilities[prediction.digit])
    return prediction.reason == "not_a_digit" and likely >= _LIKELY


def _pieces(ink: Ink, most: int) -> list[_Piece]:
    """The connected pieces of ink that are neither specks nor lines between rows of digits."""
    mask = ink >= IS_INK
    inked = Image.fromarray(mask.view(np.uint8)).getbbox()
    if inked is None:
        return []
    # The paper around all ink takes time as well. One more pixel on every side is for soft edges.
    start, first = max(inked[0] - 1, 0), max(inked[1] - 1, 0)
    mask = np.ascontiguousarray(mask[first : inked[3] + 1, start : inked[2] + 1])
    labels, count = cc3d.connected_components(
        mask.view(np.uint8), connectivity=8, return_N=True, binary_image=True
    )
    boxes, areas = _boxes(mask, labels, count)
    boxes += (start, first, start, first)
    heights, widths = boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]
    typical = _typical(heights, areas)
    large = np.maximum(heights, widths) >= max(3, _SPECK * typical)
    flat = (heights < _TALL * typical) & (widths > typical)
    kept = np.flatnonzero(large & ~flat)
    if len(kept) > most:
        raise _too_many(most // 2)
    bottom_of, right_of = ink.shape
    pieces = []
    if (heights[kept] * widths[kept]).sum() > _MOST_INK * ink.size:
        raise RequestTooLarge(
            "image: its marks lie in each other; send a picture with digits side by side."
        )
    for index in kept.tolist():
        box = Box(*boxes[index].tolist())
        # The edges of strokes are soft: one more pixel on every side belongs to them.
        edge = Box(
            max(box.left - 1, 0),
            max(box.top - 1, 0),
            min(box.right + 1, right_of),
            min(box.bottom + 1, bottom_of),
        )
        region = np.s_[edge.top : edge.bottom, edge.left : edge.right]
        own, area = ink[region], int(areas[index])
        seen = np.s_[edge.top - first : edge.bottom - first, edge.left - start : edge.right - start]
        # cc3d may leave labels on paper (seen in 4.1 with `binary_image`), so only ink counts.
        if np.count_nonzero(mask[seen]) > area:  # others as well
            near = np.zeros((own.shape[0] + 2, own.shape[1] + 2), bool)
            near[1:-1, 1:-1] = mask[seen] & (labels[seen] == index + 1)
            near = near[:-2] | near[1:-1] | near[2:]
            own = own * (near[:, :-2] | near[:, 1:-1] | near[:, 2:])
        pieces.append(_Piece(box, edge, own, area, None))
    return pieces


def _boxes(
    mask: npt.NDArray[np.bool_], labels: npt.NDArray[np.unsignedinteger], count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Box [N,4], as in `Box`, and area [N] of each label of bool [H,W].

    From the runs of ink in all rows: `cc3d.statistics` looks at every pixel, which takes longer.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 1), bool)
    padded[:, :-1] = mask
    flat = padded.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.concatenate([[0], edges])
    starts, ends = edges[::2], edges[1::2]
    rows, lefts = np.divmod(starts, width + 1)
    owners = labels[rows, lefts].astype(np.intp) - 1
    boxes = np.empty((count, 4), np.intp)
    boxes[:, :2], boxes[:, 2:] = max(height, width), 0
    for column, values, of in (
        (0, lefts, np.minimum),
        (1, rows, np.minimum),
        (2, lefts + ends - starts, np.maximum),
        (3, rows + 1, np.maximum),
    ):
        of.at(boxes[:, column], owners, values)
    return boxes, np.bincount(owners, ends - starts, count).astype(np.intp)


def _typical(heights: npt.NDArray[np.intp], areas: npt.NDArray[np.int64]) -> int:
    """Half of all ink is in pieces of at least this height."""
    order = np.argsort(heights)
    total = np.cumsum(areas[order])
    return int(heights[order][np.searchsorted(total, total[-1] / 2)])


def _lines(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces sorted into lines from top to bottom, each from left to right.

    A line may rise or fall: each piece is compared with the last two that the line has.
    """
    if not pieces:
        return []
    heights = [piece.box.bottom - piece.box.top for piece in pieces]
    typical = _typical(np.array(heights), np.array([piece.area for piece in pieces]))
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
    boxes = np.array([piece.box for line in lines for piece in line] if small else [])
    for piece in small:
        own = piece.box
        across = np.maximum(boxes[:, 0] - own.right, own.left - boxes[:, 2])
        along = np.maximum(boxes[:, 1] - own.bottom, own.top - boxes[:, 3])
        distance = np.maximum(across, along)
        nearest = int(distance.argmin())
        if distance[nearest] < _NEAR * typical:
            owners[nearest].append(piece)
    _join_broken(lines, typical)
    lines = [line for line in lines if line]
    if len(lines) > 1:
        lines.sort(key=lambda line: float(np.mean([p.box.top + p.box.bottom for p in line])))
    for line in lines:
        line.sort(key=lambda piece: piece.box.left + piece.box.right)
    return lines


def _join_broken(lines: list[list[_Piece]], typical: int) -> None:
    """Empty lines of one piece into those whose digit it is a part of."""
    # The parts of a broken digit lie closer together than lines do.
    for line in [line for line in lines if len(line) == 1]:
        own = line[0].box
        for other in lines:
            if other is not line and any(
                min(own.right, box.right) > max(own.left, box.left)
                and max(own.top, box.top) - min(own.bottom, box.bottom) < _BROKEN * typical
                and max(own.bottom, box.bottom) - min(own.top, box.top) < _TALLEST * typical
                for box, *_ in other
            ):
                other.extend(line)
                line.clear()
                break


def _height(line: list[_Piece]) -> float:
    """The height of a line's digits: half of its ink is in pieces of at least this height."""
    sizes = sorted((piece.box.bottom - piece.box.top, piece.area) for piece in line)
    below = list(accumulate(area for _, area in sizes))
    typical = sizes[bisect_left(below, below[-1] / 2)][0]
    return max(typical, 0.75 * sizes[-1][0])


def _are_near(group: list[_Piece], height: float) -> bool:
    """Whether neighbouring pieces may be parts of one digit."""
    box = _around([piece.box for piece in group])
    gap = max(after.box.left - before.box.right for before, after in pairwise(group))
    return box.right - box.left <= _WIDEST * height and gap <= _WIDEST_GAP * height


def _is_broken(group: list[_Piece], height: float) -> bool:
    """Whether neighbouring pieces look like parts of one digit: small, or above each other."""
    if not _are_near(group, height):
        return False
    one, other = group[-2].box, group[-1].box
    low = min(one.bottom - one.top, other.bottom - other.top) < _SMALL * height
    shared = min(one.right, other.right) - max(one.left, other.left)
    return low or shared > 0.3 * min(one.right - one.left, other.right - other.left)


def _parts(ink: Ink, box: Box, height: float) -> list[_Piece]:
    """The parts of a piece between all promising cuts, from left to right."""
    cuts, total = cuts_through(ink, height, max(4, round(4 * (box.right - box.left) / height)))
    # Cuts may cross. As many of them are to the left of a pixel as the number of its part says.
    rows, width = ink.shape
    edges = np.full((len(cuts) + 2, rows, 1), width, np.int16)
    edges[0] = 0
    for number, cut in enumerate(cuts):
        edges[number + 1, :, 0] = cut.columns
    edges[1:-1].sort(axis=0)
    starts, stops = edges.min(axis=(1, 2)).tolist(), edges.max(axis=(1, 2)).tolist()
    across = np.arange(width, dtype=np.int16)
    parts = []
    ends = [cut.left for cut in cuts]
    for number, (begin, end) in enumerate(pairwise((0.0, *ends, total))):
        start, stop = starts[number], stops[number + 1]
        inside = across[start:stop] >= edges[number]
        inside &= across[start:stop] < edges[number + 1]
        own = ink[:, start:stop] * inside
        around = Image.fromarray(own).getbbox()
        if around is None:
            continue
        crossed = cuts[number].strokes if number < len(cuts) else None
        left, top, right, bottom = around
        own = np.ascontiguousarray(own[top:bottom, left:right])
        left, right = box.left + start + left, box.left + start + right
        where = Box(left, box.top + top, right, box.top + bottom)
        parts.append(_Piece(where, where, own, end - begin, crossed))
    if parts:
        parts[-1] = parts[-1]._replace(cut=None)  # the part behind the last cut may be empty
    return parts


def _runs(parts: list[_Piece], height: float) -> Iterator[tuple[int, int]]:
    """The first and the last, excluded, of neighbouring parts, but not all, that may be a digit."""
    for end in range(1, len(parts) + 1):
        for begin in range(end - 1, max(-1, end - 1 - _MOST_PIECES), -1):
            group = parts[begin:end]
            box = _around([part.box for part in group])
            if end - begin == len(parts) or box.right - box.left > _WIDEST * height:
                break
            area = sum(part.area for part in group)
            if box.bottom - box.top >= _LOWEST * height and area >= LEAST_INK:
                yield begin, end


def _candidate(
    first: float,
    last: float,
    group: list[_Piece],
    cuts: tuple[float | None, ...],
    height: float,
    number: int,
) -> Candidate:
    """A group of pieces or parts as one digit, with the strokes that the cuts beside it cross."""
    box = _around([piece.box for piece in group])
    high, wide = (box.bottom - box.top) / height, (box.right - box.left) / height
    cost = _SHORT * max(0.0, _LOW - high) + _WIDE * max(0.0, wide / max(high, 1.0) - _USUAL)
    cost += sum((_PER_CUT + _PER_STROKE * crossed) / 2 for crossed in cuts if crossed is not None)
    return Candidate(first, last, box, cost, wide, group, number)


def _together(group: list[_Piece]) -> Ink:
    """The ink of all pieces of a group, of the size of `_around` their edges."""
    if len(group) == 1:
        return group[0].ink
    left, top, right, bottom = _around([piece.edge for piece in group])
    ink = np.zeros((bottom - top, right - left), np.uint8)
    for _, edge, own, *_ in group:
        region = ink[edge.top - top : edge.bottom - top, edge.left - left : edge.right - left]
        np.maximum(region, own, out=region)
    return ink


def _around(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))
