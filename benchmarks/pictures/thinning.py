"""Skeletons of strokes: the iterative thinning of Zhang and Suen (1984), on whole arrays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def thin(mask: Mask) -> Mask:
    """Strokes, bool [H,W], to lines of one pixel, without breaking or shortening them."""
    ink = np.pad(mask, 1)
    before = 0
    while before != (now := int(ink.sum())):
        before = now
        for first in (True, False):
            # The neighbours p2 to p9 of the paper: clockwise from the north.
            p2, p3, p4 = ink[:-2, 1:-1], ink[:-2, 2:], ink[1:-1, 2:]
            p5, p6, p7 = ink[2:, 2:], ink[2:, 1:-1], ink[2:, :-2]
            p8, p9 = ink[1:-1, :-2], ink[:-2, :-2]
            ring = (p2, p3, p4, p5, p6, p7, p8, p9, p2)
            neighbours = sum(p.astype(np.int8) for p in ring[:-1])
            rises = sum((~a & b).astype(np.int8) for a, b in pairwise(ring))
            either, both = (p2 | p8, p4 & p6) if first else (p4 | p6, p2 & p8)
            inside = ink[1:-1, 1:-1]
            inside &= ~((neighbours >= 2) & (neighbours <= 6) & (rises == 1) & ~(either & both))
    return ink[1:-1, 1:-1]
