"""Digits of MNIST as pictures of many kinds, as people draw, scan and photograph them.

Strategy: a digit becomes the coverage by a pen (`strokes`), a paper and a light are drawn for it,
and a kind says which. Everything that could be learnt by heart comes from one of two halves with
different algorithms, not only different seeds: `tuning` and `proof` say what each draws with. The
stroke renderers, paper textures, noise, shadows, falling light, lines, dust, blur, palettes, grey
levels and random bit generators are disjoint; only the arithmetic that puts layers together, the
thinning of strokes and the encoders of Pillow are shared. The digits themselves are to be taken
from MNIST's training images for tuning and from its test images for the proof.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image

from benchmarks.pictures import proof, tuning
from benchmarks.pictures.half import Colour, Digit, Half, Plane, Shape, as_plane, coordinates

HALVES: dict[str, Half] = {"tune": tuning, "test": proof}
HalfName = Literal["tune", "test"]
# A picture, or a file where the encoding is part of the kind.
Picture = Image.Image | bytes
Kind = Callable[[Digit, np.random.Generator, Half], Picture]

_SIDES = (200, 321)  # pixels of the shorter side
_INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_ORIENTATION = 0x0112  # the EXIF tag


def draw(kind: str, digit: Digit, random: np.random.Generator, half: HalfName) -> Picture:
    """Draw a digit, uint8 [28,28] with bright ink, as a picture of this kind.

    Raises KeyError for an unknown kind or half.
    """
    chosen = HALVES[half]
    return KINDS[kind](digit, chosen.stream(random), chosen)


def file_of(picture: Picture) -> bytes:
    """The picture as a file: as it is, or as PNG."""
    if isinstance(picture, bytes):
        return picture
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


class Page:
    """A page of random size with the coverage of a digit at a random place."""

    def __init__(
        self,
        digit: Digit,
        random: np.random.Generator,
        half: Half,
        *,
        width: float | None = None,
        turned: float = 0.0,
        fill: tuple[float, float] = (0.6, 1.0),
    ) -> None:
        side = int(random.integers(*_SIDES))
        longer = round(side * random.uniform(1, 1.3))
        self.shape: Shape = (side, longer) if random.random() < 0.5 else (longer, side)
        self.field = round(side * random.uniform(*fill))  # side of MNIST's 28x28 field
        self.random, self.half = random, half
        strokes = half.strokes(digit, self.field, random, width)
        if turned:
            card = Image.fromarray((255 * strokes).astype(np.uint8))
            turn = card.rotate(turned, Image.Resampling.BICUBIC)
            strokes = as_plane(np.asarray(turn, np.float32) / 255)
        height, wide = self.shape
        self.top = int(random.integers(0, height - self.field + 1))
        self.left = int(random.integers(0, wide - self.field + 1))
        self.strokes = np.zeros(self.shape, np.float32)
        self.strokes[self.top : self.top + self.field, self.left : self.left + self.field] = strokes

    def box(self) -> tuple[float, float, float, float]:
        """Top, left, bottom, right of the ink."""
        rows = np.flatnonzero(self.strokes.max(axis=1) > 0.3)
        columns = np.flatnonzero(self.strokes.max(axis=0) > 0.3)
        if not len(rows):
            return (0, 0, *self.shape)
        return float(rows[0]), float(columns[0]), float(rows[-1]), float(columns[-1])

    def inked(self, paper: float | Plane, pen: float) -> Plane:
        """Grey levels of the strokes on a paper."""
        return as_plane(paper + (pen - paper) * self.strokes)

    def ruled(self, page: Plane, ink: float, *, tilt: float, squared: bool) -> Plane:
        """The page with ruling under the strokes; `tilt` in degrees."""
        random, half = self.random, self.half
        y, x = coordinates(self.shape)
        angle = np.deg2rad(tilt)
        spacing = self.field * (random.uniform(0.18, 0.35) if squared else random.uniform(0.3, 0.6))
        width = max(1.0, self.field * random.uniform(0.004, 0.01))
        lines = np.zeros(self.shape, np.float32)
        across = [y * np.cos(angle) + x * np.sin(angle)]
        if squared:
            across.append(x * np.cos(angle) - y * np.sin(angle))
        for distance in across:
            phase = random.uniform(0, spacing)
            nearest = (distance + phase) % spacing - spacing / 2
            np.maximum(lines, half.line(nearest.astype(np.float32), width, random), out=lines)
        under = lines * (1 - self.strokes)
        return as_plane(page + (np.minimum(page, ink) - page) * under)

    def framed(self, page: Plane, ink: float, frame: Plane, width: float) -> Plane:
        """The page with a line where `frame`, a distance in pixels, is zero."""
        lines = self.half.line(frame, width, self.random)
        return as_plane(page + (np.minimum(page, ink) - page) * lines)

    def finished(self, page: Plane, noise: float = 2.0) -> Image.Image:
        """Grey levels as a picture, with noise."""
        if noise:
            page = page + self.half.noise(self.shape, noise, self.random)
        return Image.fromarray(np.clip(page, 0, 255).astype(np.uint8))


def _rectangle(
    shape: Shape, centre: tuple[float, float], halves: tuple[float, float], tilt: float
) -> Plane:
    """Distances from the outline of a rectangle, negative inside; `tilt` in degrees."""
    y, x = coordinates(shape)
    y, x = y - (centre[0] - (shape[0] - 1) / 2), x - (centre[1] - (shape[1] - 1) / 2)
    angle = np.deg2rad(tilt)
    along = np.abs(x * np.cos(angle) + y * np.sin(angle)) - halves[1]
    across = np.abs(y * np.cos(angle) - x * np.sin(angle)) - halves[0]
    return as_plane(np.maximum(along, across))


def _jpeg(image: Image.Image, quality: int, orientation: int = 0) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[_ORIENTATION] = orientation
    image.save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


def clean(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Dark pen on white paper, evenly lit."""
    page = Page(digit, random, half)
    return page.finished(page.inked(*half.greys(random)), noise=0)


def canvas(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A drawing program: dark on white, white on black, or either ink on a transparent page."""
    page = Page(digit, random, half)
    paper, pen = half.greys(random)
    variant = random.integers(4)
    if variant < 2:
        grey = page.inked(paper, pen)
        return page.finished(255 - grey if variant else grey, noise=0)
    ink = pen if variant == 2 else 255 - pen
    layers = np.zeros((*page.shape, 4), np.uint8)
    layers[..., :3] = np.where(page.strokes[..., None] > 0, ink, 0)
    layers[..., 3] = 255 * page.strokes
    return Image.fromarray(layers)


def shadow(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A shadow on paper that takes 20 to 60 % of the light."""
    page = Page(digit, random, half)
    paper, pen = half.greys(random)
    light = half.shadow(page.shape, random.uniform(0.2, 0.6), random)
    return page.finished(page.inked(paper * half.paper(page.shape, random), pen) * light)


def gradient(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Light that falls off over the page by 20 to 60 %."""
    page = Page(digit, random, half)
    paper, pen = half.greys(random)
    light = half.gradient(page.shape, random.uniform(0.2, 0.6), random)
    return page.finished(page.inked(paper * half.paper(page.shape, random), pen) * light)


def _on_ruling(
    digit: Digit, random: np.random.Generator, half: Half, *, tilt: float, squared: bool
) -> Picture:
    page = Page(digit, random, half)
    paper, pen = half.greys(random)
    grey = page.inked(paper * half.paper(page.shape, random), pen)
    ink = paper - random.uniform(30, 100)
    return page.finished(page.ruled(grey, ink, tilt=tilt, squared=squared))


def lined(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Lined paper, upright."""
    return _on_ruling(digit, random, half, tilt=0, squared=False)


def squared(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Squared paper, upright."""
    return _on_ruling(digit, random, half, tilt=0, squared=True)


def tilted_ruling(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Lined or squared paper, tilted by 1 to 4 degrees."""
    tilt = random.uniform(1, 4) * random.choice([-1, 1])
    return _on_ruling(digit, random, half, tilt=tilt, squared=bool(random.random() < 0.5))


def frame(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A dark frame along the edge of the picture."""
    page = Page(digit, random, half, fill=(0.6, 0.95))
    paper, pen = half.greys(random)
    height, width = page.shape
    line = min(page.shape) * random.uniform(0.01, 0.03)
    outline = _rectangle(
        page.shape,
        ((height - 1) / 2, (width - 1) / 2),
        ((height - line) / 2, (width - line) / 2),
        0,
    )
    return page.finished(page.framed(page.inked(paper, pen), pen, outline, line))


def inner_frame(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A frame inside the picture, well around the digit."""
    page = Page(digit, random, half, fill=(0.55, 0.75))
    paper, pen = half.greys(random)
    height, width = page.shape
    line = min(page.shape) * random.uniform(0.008, 0.02)
    top, left, bottom, right = page.box()
    room = min(top, left, height - 1 - bottom, width - 1 - right)
    margin = line / 2 + max(0.0, room - 2 * line) * random.uniform(0.1, 0.6)
    outline = _rectangle(
        page.shape,
        ((height - 1) / 2, (width - 1) / 2),
        ((height - 1) / 2 - margin, (width - 1) / 2 - margin),
        0,
    )
    return page.finished(page.framed(page.inked(paper, pen), pen, outline, line))


def specks(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Dust as dark as the pen."""
    page = Page(digit, random, half)
    paper, pen = half.greys(random)
    grey = page.inked(paper * half.paper(page.shape, random), pen)
    return page.finished(grey + (pen - grey) * half.specks(page.shape, random))


def blur(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Out of focus by a third to one pixel of MNIST."""
    page = Page(digit, random, half)
    grey = page.inked(*half.greys(random))
    return page.finished(half.blur(grey, page.field / 28 * random.uniform(0.33, 1), random))


def jpeg(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """JPEG of quality 10 to 30."""
    page = Page(digit, random, half)
    paper, pen = half.greys(random)
    image = page.finished(page.inked(paper * half.paper(page.shape, random), pen))
    return _jpeg(image, int(random.integers(10, 31)))


def _in_box(digit: Digit, random: np.random.Generator, half: Half, tilt: float) -> Picture:
    page = Page(digit, random, half, fill=(0.55, 0.8))
    paper, pen = half.greys(random)
    grey = page.inked(paper * half.paper(page.shape, random), pen)
    top, left, bottom, right = page.box()
    height = (bottom - top) / 2 + page.field * random.uniform(0.06, 0.14)
    width = max((right - left) / 2 + page.field * random.uniform(0.06, 0.14), 0.6 * height)
    centre_y, centre_x = (top + bottom) / 2, (left + right) / 2
    line = max(1.5, page.field * random.uniform(0.006, 0.015))
    ink = random.uniform(pen, paper - 60)
    # Forms have rows of boxes; the empty neighbours are seen in a third of the pictures.
    boxes = (-1, 0, 1) if random.random() < 1 / 3 else (0,)
    angle = np.deg2rad(tilt)
    for box in boxes:
        step = 2 * width * box
        centre = (centre_y - step * np.sin(angle), centre_x + step * np.cos(angle))
        outline = _rectangle(page.shape, centre, (height, width), -tilt)
        grey = page.framed(grey, ink, outline, line)
    return page.finished(grey)


def form_box(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """The box of a form close around the digit, upright."""
    return _in_box(digit, random, half, 0)


def tilted_box(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """The box of a form close around the digit, tilted by 1 to 4 degrees."""
    return _in_box(digit, random, half, random.uniform(1, 4) * random.choice([-1, 1]))


def rotated(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """The digit turned by up to 25 degrees."""
    page = Page(digit, random, half, turned=random.uniform(-25, 25))
    return page.finished(page.inked(*half.greys(random)))


def thin_pen(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Strokes of 0.6 to 1.1 pixels of MNIST: 3 to 5 % of the digit's height."""
    page = Page(digit, random, half, width=random.uniform(0.6, 1.1))
    return page.finished(page.inked(*half.greys(random)))


def thick_pen(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """Strokes of 3.6 to 4.6 pixels of MNIST: up to a quarter of the digit's height."""
    page = Page(digit, random, half, width=random.uniform(3.6, 4.6))
    return page.finished(page.inked(*half.greys(random)))


def exif(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A JPEG stored turned or mirrored, with its EXIF orientation, 1 to 8."""
    page = Page(digit, random, half)
    image = page.finished(page.inked(*half.greys(random)))
    orientation = int(random.integers(1, 9))
    if orientation in _INVERSE:
        image = image.transpose(_INVERSE[orientation])
    return _jpeg(image, int(random.integers(75, 96)), orientation)


def colour(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A pen of any colour on paper of any other, dark on light or light on dark."""
    page = Page(digit, random, half)
    paper, pen = half.colours(random)
    return _coloured(page, paper, pen, half.paper(page.shape, random))


def low_contrast(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A pen 30 to 60 grey levels below its paper."""
    page = Page(digit, random, half)
    paper = half.greys(random)[0] - random.uniform(0, 80)
    return page.finished(page.inked(paper, paper - random.uniform(30, 60)), noise=1.5)


def phone(digit: Digit, random: np.random.Generator, half: Half) -> Picture:
    """A photo by a phone: perspective, shadow, tinted light, noise and JPEG of 50 to 90."""
    page = Page(digit, random, half, fill=(0.55, 0.8))
    height, width = page.shape
    paper, pen = half.greys(random)
    # Each corner of the picture shows a place of the page up to 8 % off, but never cuts the digit.
    top, left, bottom, right = page.box()
    near = 0.08 * min(page.shape)
    off = random.uniform(-near, near, 8)
    inner_y, inner_x = min(top, height - bottom), min(left, width - right)
    off_x, off_y = np.minimum(off[:4], 0.8 * inner_x), np.minimum(off[4:], 0.8 * inner_y)
    corners = [
        (float(off_x[0]), float(off_y[0])),
        (float(off_x[1]), float(height - off_y[1])),
        (float(width - off_x[2]), float(height - off_y[2])),
        (float(width - off_x[3]), float(off_y[3])),
    ]
    quad = tuple(value for corner in corners for value in corner)
    ink = Image.fromarray((255 * page.strokes).astype(np.uint8))
    ink = ink.transform((width, height), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    page.strokes = as_plane(np.asarray(ink, np.float32) / 255)
    light = half.shadow(page.shape, random.uniform(0.1, 0.5), random)
    light = light * half.gradient(page.shape, random.uniform(0, 0.25), random)
    tint = np.array([1, random.uniform(0.9, 1), random.uniform(0.75, 1)]) * random.uniform(0.75, 1)
    image = _coloured(
        page,
        (float(paper * tint[0]), float(paper * tint[1]), float(paper * tint[2])),
        (float(pen * tint[0]), float(pen * tint[1]), float(min(255, pen * tint[2] + 40))),
        half.paper(page.shape, random) * light,
        noise=random.uniform(2, 6),
    )
    return _jpeg(image, int(random.integers(50, 91)))


def _coloured(
    page: Page, paper: Colour, pen: Colour, light: Plane, noise: float = 2.0
) -> Image.Image:
    grain = page.half.noise(page.shape, noise, page.random)
    layers = [
        np.clip(page.inked(below, above) * light + grain, 0, 255).astype(np.uint8)
        for below, above in zip(paper, pen, strict=True)
    ]
    return Image.fromarray(np.stack(layers, axis=-1))


KINDS: MappingProxyType[str, Kind] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            clean,
            canvas,
            shadow,
            gradient,
            lined,
            squared,
            frame,
            inner_frame,
            specks,
            blur,
            jpeg,
            tilted_ruling,
            form_box,
            tilted_box,
            rotated,
            thin_pen,
            thick_pen,
            exif,
            colour,
            low_contrast,
            phone,
        )
    }
)
