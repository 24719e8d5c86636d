"""The half that the figures are measured on: nothing may be tuned, trained or chosen on it.

Strokes are the digit scaled up by Lanczos after a Gaussian, with a pressure that varies along the
stroke; other widths come from an elliptic nib that is drawn along the digit's skeleton. Paper is
plane waves and fibres, noise is Laplacian with a tint per row, shadows are blurred polygons, light
falls off around a lamp, lines are drawn as if printed unevenly, dust is hairs and blots, blur is a
lens's disc or a movement, colours are those of real papers, boards and pens.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.pictures.half import Colour, Digit, Plane, Shape, as_plane, contrast, coordinates
from benchmarks.pictures.thinning import thin

name = "test"

_PAPERS: tuple[Colour, ...] = (
    (250, 246, 228),  # ivory
    (196, 164, 124),  # kraft
    (255, 235, 110),  # a yellow note
    (246, 190, 205),  # a pink note
    (170, 215, 240),  # a blue form
    (190, 225, 180),  # a green ledger
    (36, 68, 52),  # a blackboard
    (28, 34, 60),  # navy card
    (20, 20, 20),  # black card
    (120, 30, 38),  # red card
)
_PENS: tuple[Colour, ...] = (
    (24, 36, 140),  # blue ballpoint
    (180, 20, 30),  # red
    (10, 100, 50),  # green
    (90, 30, 120),  # violet
    (30, 30, 34),  # black
    (100, 60, 30),  # brown
    (240, 240, 232),  # chalk
    (250, 220, 90),  # yellow chalk
    (130, 210, 240),  # light blue chalk
    (240, 150, 60),  # orange marker
)


def stream(random: np.random.Generator) -> np.random.Generator:
    """SFC64, seeded from `random` under a key of its own."""
    seed = np.random.SeedSequence(int(random.integers(2**62)), spawn_key=(0x7E57,))
    return np.random.Generator(np.random.SFC64(seed))


def strokes(digit: Digit, side: int, random: np.random.Generator, width: float | None) -> Plane:
    """The digit's shape with varying pressure, or its skeleton under a nib of `width`."""
    if width is None:
        soft = Image.fromarray(digit).resize((112, 112), Image.Resampling.LANCZOS)
        large = soft.filter(ImageFilter.GaussianBlur(1.6)).resize((side, side), _LINEAR)
        edge = random.uniform(95, 135)
        mask = np.clip((np.asarray(large, np.float32) - edge) * (side / 9000) + 0.5, 0, 1)
    else:
        scale = 5
        work = Image.fromarray(digit).resize((28 * scale, 28 * scale), Image.Resampling.LANCZOS)
        ink = np.asarray(work.filter(ImageFilter.GaussianBlur(2))) > 105
        # Twice the size of the answer, so that halving it smooths the edges.
        step = 2 * side / (28 * scale)
        page = Image.new("L", (2 * side, 2 * side))
        pen = ImageDraw.Draw(page)
        across = width * 2 * side / 28 / 2 * random.uniform(0.9, 1.1)
        along = across * random.uniform(0.8, 1)
        for y, x in np.argwhere(thin(ink)):
            at_y, at_x = (y + 0.5) * step, (x + 0.5) * step
            pen.ellipse((at_x - across, at_y - along, at_x + across, at_y + along), fill=255)
        mask = np.asarray(page.resize((side, side), Image.Resampling.BOX), np.float32) / 255
    grid = random.uniform(0.82, 1, (5, 5)).astype(np.float32)
    return as_plane(mask * np.asarray(Image.fromarray(grid).resize((side, side), _LINEAR)))


def paper(shape: Shape, random: np.random.Generator) -> Plane:
    """Five plane waves, and fibres along one direction."""
    y, x = coordinates(shape)
    texture = np.ones(shape, np.float32)
    for _ in range(5):
        a, b = random.normal(0, 12 / min(shape), 2)
        texture += 0.006 * np.sin(a * y + b * x + random.uniform(0, 6.28)).astype(np.float32)
    thin_, long_ = (2, 24) if random.random() < 0.5 else (24, 2)
    rows, columns = shape[0] // thin_ + 1, shape[1] // long_ + 1
    fibres = random.uniform(-0.02, 0.02, (rows, columns)).astype(np.float32)
    return as_plane(texture + np.asarray(Image.fromarray(fibres).resize(shape[::-1], _LINEAR)))


def noise(shape: Shape, sigma: float, random: np.random.Generator) -> Plane:
    """Laplacian noise, with a fifth of it shared by each row."""
    scale = sigma / np.sqrt(2)
    own = random.laplace(0, scale, shape).astype(np.float32)
    return as_plane(own + random.laplace(0, scale / 5, (shape[0], 1)))


def shadow(shape: Shape, depth: float, random: np.random.Generator) -> Plane:
    """A polygon like that of a hand or a phone, reaching in from one side, blurred."""
    height, width = shape
    size = min(shape)
    card = Image.new("L", (width // 2, height // 2), 0)
    corners = random.integers(5, 9)
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    side = random.uniform(0, 2 * np.pi)
    centre = np.array([width / 4, height / 4]) + 0.22 * size * np.array(
        [np.cos(side), np.sin(side)]
    )
    radii = random.uniform(0.18, 0.4, corners) * size
    points = [
        (float(centre[0] + r * np.cos(a)), float(centre[1] + r * np.sin(a)))
        for r, a in zip(radii, angles, strict=True)
    ]
    ImageDraw.Draw(card).polygon(points, fill=255)
    soft = card.filter(ImageFilter.BoxBlur(random.uniform(0.01, 0.06) * size))
    large = soft.filter(ImageFilter.BoxBlur(1)).resize((width, height), _LINEAR)
    return as_plane(1 - np.float32(depth / 255) * np.asarray(large, np.float32))


def gradient(shape: Shape, depth: float, random: np.random.Generator) -> Plane:
    """Light of a lamp near a point of the border, by a law near the inverse square."""
    y, x = coordinates(shape)
    angle, size = random.uniform(0, 2 * np.pi), max(shape)
    far = np.hypot(y - np.sin(angle) * size / 2, x - np.cos(angle) * size / 2) / size
    light = 1 / (1 + 1.5 * far**2)
    light = (light - light.min()) / np.ptp(light)
    return as_plane(1 - depth * (1 - light))


def line(distance: Plane, width: float, random: np.random.Generator) -> Plane:
    """A line with soft edges and uneven ink."""
    core = np.exp(-((2 * np.abs(distance) / max(width, 1.0)) ** 4))
    grain = random.uniform(0.8, 1, (distance.shape[0], 1)).astype(np.float32)
    return as_plane(core * grain)


def specks(shape: Shape, random: np.random.Generator) -> Plane:
    """4 to 12 hairs and blots."""
    card = Image.new("L", (2 * shape[1], 2 * shape[0]), 0)
    pen = ImageDraw.Draw(card)
    size = 2 * min(shape)
    for _ in range(random.integers(4, 13)):
        x, y = random.uniform(0, 1, 2) * card.size
        if random.random() < 0.4:
            turn, length = random.uniform(0, 6.28), random.uniform(0.01, 0.035) * size
            end = (x + length * np.cos(turn), y + length * np.sin(turn))
            pen.line([(x, y), end], fill=255, width=max(2, round(0.006 * size)))
        else:
            reach = random.uniform(0.004, 0.016, 5) * size
            angles = np.arange(5) * 1.2566
            blot = zip(x + reach * np.cos(angles), y + reach * np.sin(angles), strict=True)
            pen.polygon([(float(a), float(b)) for a, b in blot], fill=255)
    return as_plane(np.asarray(card.resize(shape[::-1], Image.Resampling.BOX), np.float32) / 255)


def blur(page: Plane, sigma: float, random: np.random.Generator) -> Plane:
    """The disc of a lens out of focus, or a movement along a line."""
    # A disc of radius r spreads as a Gaussian of r / 2; a line of length l as one of l / 3.5.
    radius = max(1, round(2 * sigma))
    y, x = coordinates((2 * radius + 1, 2 * radius + 1))
    if random.random() < 0.6:
        kernel = (np.hypot(y, x) <= radius + 0.3).astype(np.float32)
    else:
        angle = random.uniform(0, np.pi)
        across = np.abs(x * np.sin(angle) - y * np.cos(angle))
        kernel = ((across < 0.8) & (np.hypot(y, x) <= 1.5 * sigma)).astype(np.float32)
    kernel /= kernel.sum()
    padded = np.pad(page, radius, mode="edge")
    spectrum = np.fft.rfft2(padded) * np.fft.rfft2(kernel, padded.shape)
    blurred = np.fft.irfft2(spectrum, padded.shape)[2 * radius :, 2 * radius :]
    return as_plane(blurred)


def colours(random: np.random.Generator) -> tuple[Colour, Colour]:
    """A paper and a pen of the lists, each a little off."""
    while True:
        paper_ = _PAPERS[random.integers(len(_PAPERS))]
        pen = _PENS[random.integers(len(_PENS))]
        if contrast(paper_, pen) >= 2:
            return paper_, pen


def greys(random: np.random.Generator) -> tuple[float, float]:
    """Copying paper, and a pencil, ballpoint or marker."""
    return float(random.triangular(215, 245, 255)), float(random.choice([85, 50, 15]))


_LINEAR = Image.Resampling.BILINEAR
