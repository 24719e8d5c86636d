"""What is no single digit: blanks, noise, letters, signs, clothes and several digits.

Each maker draws one by either half. The halves differ as those of the digits do (`kinds`), and:

| | tune | test |
| --- | --- | --- |
| fonts | DejaVu, all styles | Computer Modern and STIX |
| noise | uniform, Gaussian, blurred Gaussian | exponential, 1/f, rings, cells, moire, lines |
| digits of pictures of several | MNIST's training images | MNIST's test images |
| Fashion-MNIST | never: neither trained nor tuned on | its test images |

Nothing here is used in training: `training/data/outliers.py` makes its own. All fonts come with
matplotlib (DejaVu: Bitstream Vera's licence; Computer Modern in the BaKoMa set: free with notice;
STIX: its own font licence). Fashion-MNIST (Xiao et al. 2017, MIT) comes with Debian's package
dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from benchmarks.paths import ROOT
from benchmarks.pictures.half import Digit, Half, Plane, Shape, as_plane, coordinates
from benchmarks.pictures.kinds import HALVES, HalfName, Page, Picture

# A picture, or pixels as they are sent to the network, uint8 [28,28].
Outlier = Picture | Digit
Maker = Callable[[np.random.Generator, Half], Outlier]

SIDE = 28
# All but those that a digit looks like: B D G I J O Q S Y Z b d g i l o q s y z.
LETTERS = "ACEFHKLMNPRTUVWXacefhjkmnprtuvwx"
# `!`, `/`, `[` and `]` are as good as a 1; they count all the same.
SIGNS = "!#$%&*+/<=>?@[]^{}~§±\N{MULTIPLICATION SIGN}÷"
_FONTS = {
    "tune": ("DejaVuSans*.ttf", "DejaVuSerif*.ttf"),
    "test": ("cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "cmti10.ttf", "cmb10.ttf", "STIXGen*.ttf"),
}
# Computer Modern lacks the last four, and has other glyphs in place of `<` and `{`.
_SIGN_FONTS = {"tune": _FONTS["tune"], "test": ("STIXGen*.ttf",)}


def make(name: str, random: np.random.Generator, half: HalfName) -> Outlier:
    """Draw one outlier. Raises KeyError for an unknown name or half."""
    chosen = HALVES[half]
    return MAKERS[name](chosen.stream(random), chosen)


def blank(random: np.random.Generator, half: Half) -> Outlier:
    """Pixels of one level, or an empty page: plain, textured, in a shadow, ruled or transparent."""
    variant = random.integers(8)
    if variant < 2:
        level = (0, 255, int(random.integers(256)))[random.integers(3)]
        return np.full((SIDE, SIDE), level, np.uint8)
    page = Page(np.zeros((SIDE, SIDE), np.uint8), random, half)
    paper = half.greys(random)[0]
    if variant == 2:
        return Image.new("RGBA", page.shape[::-1])
    if variant == 3:
        return page.finished(np.full(page.shape, random.uniform(0, 255), np.float32), noise=0)
    grey = paper * half.paper(page.shape, random)
    if variant == 4:
        grey = grey * half.shadow(page.shape, random.uniform(0.2, 0.6), random)
    elif variant == 5:
        grey = grey * half.gradient(page.shape, random.uniform(0.2, 0.6), random)
    elif variant == 6:
        grey = page.ruled(grey, paper - 60, tilt=0, squared=bool(random.random() < 0.5))
    return page.finished(grey)


def noise(random: np.random.Generator, half: Half) -> Outlier:
    """Noise as pixels, or as a picture of 60 to 300 pixels a side."""
    side = SIDE if random.random() < 0.5 else int(random.integers(60, 301))
    makers = _TUNE_NOISE if half.name == "tune" else _TEST_NOISE
    values = makers[random.integers(len(makers))](side, random)
    pixels: Digit = np.clip(values, 0, 255).astype(np.uint8)
    return pixels if side == SIDE else Image.fromarray(pixels)


def letter_picture(random: np.random.Generator, half: Half) -> Outlier:
    """A letter by the pen of this half on white paper."""
    return _written(_glyph(LETTERS, _FONTS[half.name], random), random, half)


def letter_pixels(random: np.random.Generator, half: Half) -> Outlier:
    """A letter in MNIST's own geometry."""
    return _glyph(LETTERS, _FONTS[half.name], random)


def sign_picture(random: np.random.Generator, half: Half) -> Outlier:
    """A sign by the pen of this half on white paper."""
    return _written(_glyph(SIGNS, _SIGN_FONTS[half.name], random), random, half)


def fashion_picture(clothes: Digit, random: np.random.Generator) -> Picture:
    """An image of Fashion-MNIST in grey on a white page. For the test half only."""
    side = int(random.integers(160, 281))
    dark = Image.fromarray(255 - clothes)
    page = Image.new("L", (side + 40, side + 40), 255)
    page.paste(dark.resize((side, side), Image.Resampling.BICUBIC), (20, 20))
    return page


def separate_digits(random: np.random.Generator, half: Half) -> Outlier:
    """Two to four digits side by side with paper between them."""
    return _several(random, half, lambda: random.uniform(1.5, 8))


def touching_digits(random: np.random.Generator, half: Half) -> Outlier:
    """Two or three digits side by side whose ink meets."""
    return _several(random, half, None)


MAKERS: MappingProxyType[str, Maker] = MappingProxyType(
    {
        maker.__name__: maker
        for maker in (
            blank,
            noise,
            letter_picture,
            letter_pixels,
            sign_picture,
            separate_digits,
            touching_digits,
        )
    }
)


def _uniform(side: int, random: np.random.Generator) -> Plane:
    return random.uniform(0, 255, (side, side)).astype(np.float32)


def _gaussian(side: int, random: np.random.Generator) -> Plane:
    return random.normal(random.uniform(0, 255), random.uniform(20, 90), (side, side)).astype(
        np.float32
    )


def _blurred(side: int, random: np.random.Generator) -> Plane:
    cells = int(random.integers(6, 15))
    grid = random.normal(128, 90, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))


def _exponential(side: int, random: np.random.Generator) -> Plane:
    values = random.exponential(random.uniform(30, 120), (side, side)).astype(np.float32)
    return values if random.random() < 0.5 else 255 - values


def _one_over_f(side: int, random: np.random.Generator) -> Plane:
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    frequency = np.maximum(np.hypot(rows, columns), 1 / side)
    phases = np.exp(2j * np.pi * random.random(frequency.shape))
    field = np.fft.irfft2(phases / frequency ** random.uniform(0.5, 1.2), (side, side))
    return as_plane(128 + 70 * (field - field.mean()) / field.std())


def _rings(side: int, random: np.random.Generator) -> Plane:
    y, x = coordinates((side, side))
    field = np.zeros((side, side), np.float32)
    for _ in range(random.integers(2, 6)):
        at_y, at_x = random.uniform(-0.6, 0.6, 2) * side
        field += np.sin(np.hypot(y - at_y, x - at_x) * random.uniform(8, 50) / side)
    return as_plane(128 + 90 * field / field.std())


def _cells(side: int, random: np.random.Generator) -> Plane:
    y, x = coordinates((side, side))
    points = random.uniform(-0.5, 0.5, (random.integers(8, 60), 2)) * side
    far = np.stack([np.hypot(y - at_y, x - at_x) for at_y, at_x in points])
    return as_plane(random.uniform(0, 255, len(points))[far.argmin(axis=0)])


def _moire(side: int, random: np.random.Generator) -> Plane:
    y, x = coordinates((side, side))
    a, b, c = random.normal(0, 60 / side**2, 3)
    return as_plane(128 + 127 * np.cos(a * y * y + b * x * x + c * x * y))


def _stripes(side: int, random: np.random.Generator) -> Plane:
    rows = random.uniform(0, 255, (side, 1)) + random.normal(0, 15, (side, side))
    return (rows if random.random() < 0.5 else rows.T).astype(np.float32)


_TUNE_NOISE = (_uniform, _gaussian, _blurred)
_TEST_NOISE = (_exponential, _one_over_f, _rings, _cells, _moire, _stripes)


@cache
def _fonts(patterns: tuple[str, ...]) -> list[Path]:
    import matplotlib as mpl

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _glyph(characters: str, patterns: tuple[str, ...], random: np.random.Generator) -> Digit:
    """A character in MNIST's geometry: a 20x20 box, its centre of mass in the centre of 28x28."""
    fonts = _fonts(patterns)
    font = ImageFont.truetype(fonts[random.integers(len(fonts))], 160)
    character = characters[random.integers(len(characters))]
    card = Image.new("L", (400, 400))
    ImageDraw.Draw(card).text((200, 200), character, 255, font, anchor="mm")
    card = card.rotate(random.uniform(-10, 10), Image.Resampling.BILINEAR)
    shape = card.crop(card.getbbox())
    scale = 20 / max(shape.size)
    size = (max(1, round(shape.width * scale)), max(1, round(shape.height * scale)))
    small = np.asarray(shape.resize(size, Image.Resampling.BOX))
    mass = small.sum(dtype=np.float64)
    field = np.zeros((SIDE, SIDE), np.uint8)
    centre_y = small.sum(axis=1) @ np.arange(size[1]) / mass
    centre_x = small.sum(axis=0) @ np.arange(size[0]) / mass
    top = int(np.clip(round(14 - centre_y), 0, 28 - size[1]))
    left = int(np.clip(round(14 - centre_x), 0, 28 - size[0]))
    field[top : top + size[1], left : left + size[0]] = small
    return field


def _written(glyph: Digit, random: np.random.Generator, half: Half) -> Picture:
    # Half of them as printed, half as if written with a pen of one width.
    width = None if random.random() < 0.5 else random.uniform(1.2, 3.2)
    page = Page(glyph, random, half, width=width)
    return page.finished(page.inked(*half.greys(random)), noise=1)


@cache
def _digits(half: str) -> npt.NDArray[np.uint8]:
    name = "train" if half == "tune" else "t10k"
    content = (ROOT / "training/data/bundled" / f"{name}-images-idx3-ubyte.gz").read_bytes()
    return np.frombuffer(gzip.decompress(content), np.uint8, offset=16).reshape(-1, SIDE, SIDE)


def _several(random: np.random.Generator, half: Half, gap: Callable[[], float] | None) -> Picture:
    """Digits side by side; `gap` gives pixels of MNIST between their ink, None: they touch."""
    images = _digits(half.name)
    side = int(random.integers(100, 181))
    row = np.zeros((side, 0), np.float32)
    for _ in range(random.choice([2, 2, 2, 3, 3, 4]) if gap else random.choice([2, 2, 3])):
        strokes = half.strokes(images[random.integers(len(images))], side, random, None)
        columns = np.flatnonzero(strokes.max(axis=0) > 0.3)
        ink = strokes[:, columns[0] : columns[-1] + 1]
        if gap:
            space = np.zeros((side, round(gap() * side / 28)), np.float32)
            row = np.hstack([row, space, ink]) if row.size else ink
        elif not row.size:
            row = ink
        else:
            row = _pushed_together(row, ink)
    margins = random.integers(10, 60, 4)
    shape: Shape = (side + margins[0] + margins[1], row.shape[1] + margins[2] + margins[3])
    strokes = np.zeros(shape, np.float32)
    strokes[margins[0] : margins[0] + side, margins[2] : margins[2] + row.shape[1]] = row
    paper, pen = half.greys(random)
    grey = paper + (pen - paper) * strokes + half.noise(shape, 1, random)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def _pushed_together(row: Plane, ink: Plane) -> Plane:
    """Two strips of ink, moved towards each other until their ink overlaps a little."""
    height, width = ink.shape
    ends = np.where(row > 0.3, np.arange(row.shape[1]), -1).max(axis=1)
    starts = np.where(ink > 0.3, np.arange(width), 10 * width).min(axis=1)
    # The gap of each line of pixels if the strips stood side by side.
    gaps = np.where((ends >= 0) & (starts < width), row.shape[1] - 1 - ends + starts, 10 * width)
    overlap = min(int(gaps.min()) + height // 30, width, row.shape[1])
    joined = np.zeros((height, row.shape[1] + width - overlap), np.float32)
    joined[:, : row.shape[1]] = row
    right = joined[:, row.shape[1] - overlap :]
    np.maximum(right, ink, out=right)
    return joined
