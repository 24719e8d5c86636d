"""Ten digits as a pen draws them: strokes of points on a sheet of 560x420."""

from __future__ import annotations

from math import cos, radians, sin

Point = tuple[float, float]
Stroke = list[Point]


def arc(centre: Point, across: float, down: float, start: float, end: float) -> Stroke:
    """Points on an ellipse of radii `across` and `down`, from angle to angle; 0 is right, 90 up."""
    steps = 10
    angles = [radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(centre[0] + across * cos(a), centre[1] - down * sin(a)) for a in angles]


DIGITS: dict[int, list[Stroke]] = {
    0: [arc((280, 210), 90, 140, 90, 450)],
    1: [[(280, 70), (275, 210), (270, 350)]],
    2: [[*arc((280, 150), 85, 80, 160, -35), (190, 340), (380, 340)]],
    3: [[*arc((270, 145), 80, 70, 150, -90), *arc((270, 280), 95, 75, 90, -150)]],
    4: [[(220, 80), (195, 230), (370, 230)], [(345, 80), (330, 350)]],
    5: [[(365, 80), (225, 80), (212, 190), *arc((275, 255), 95, 85, 120, -150)]],
    6: [[(330, 70), (235, 170), *arc((280, 270), 85, 80, 160, 520)]],
    7: [[(185, 85), (380, 85), (260, 350)]],
    8: [[*arc((280, 145), 65, 65, 300, 630), *arc((280, 280), 80, 72, 90, -270)]],
    9: [[*arc((275, 150), 75, 75, 0, 360), (352, 150), (330, 350)]],
}


def moved(strokes: list[Stroke], right: float, scale: float) -> list[Stroke]:
    """The strokes at a scale, around the middle of the sheet, and `right` of it."""
    return [
        [(280 + right + (x - 280) * scale, 210 + (y - 210) * scale) for x, y in s] for s in strokes
    ]
