"""One picture with an example of each kind and outlier, beside what the network sees of it."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont, ImageOps

from benchmarks import served_models
from benchmarks.pictures.kinds import KINDS
from benchmarks.pictures.outliers import MAKERS, Outlier
from benchmarks.pictures.seen import drawn, look_at

_CELL, _GAP, _CAPTION, _COLUMNS = 92, 6, 16, 5
_EXAMPLES = ("touching_digits", "separate_digits", "letter_picture", "sign_picture")
_SEED = 18


def write_sheet(path: Path) -> None:
    """Write a PNG of all kinds: each as it is sent, and the 28x28 pixels made of it."""
    images = served_models.test_images(100)
    names = [*KINDS, *(name for name in _EXAMPLES if name in MAKERS)]
    width, height = 2 * _CELL + 3 * _GAP, _CELL + _CAPTION + 2 * _GAP
    rows = -(-len(names) // _COLUMNS)
    sheet = Image.new("RGB", (width * _COLUMNS, height * rows), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 11)
    for index, name in enumerate(names):
        left, top = index % _COLUMNS * width + _GAP, index // _COLUMNS * height + _GAP
        image = images[index] if name in KINDS else None
        outlier = drawn(name, _SEED, index, image)
        pixels, _ = look_at(outlier)
        before = _as_seen_by_people(outlier)
        before.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        pen.text((left, top), name.replace("_", " "), "black", font)
        sheet.paste(before, (left, top + _CAPTION))
        after = Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.NEAREST)
        sheet.paste(after, (left + _CELL + _GAP, top + _CAPTION))
    sheet.quantize(96, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


def _as_seen_by_people(outlier: Outlier) -> Image.Image:
    """The picture upright, a transparent one on a chequered page as drawing programs show it."""
    if isinstance(outlier, bytes):
        return ImageOps.exif_transpose(Image.open(io.BytesIO(outlier))).convert("RGB")
    assert isinstance(outlier, Image.Image)
    if outlier.mode != "RGBA":
        return outlier.convert("RGB")
    tile = Image.new("L", (2, 2), 170)
    tile.putpixel((0, 0), 140)
    tile.putpixel((1, 1), 140)
    page = Image.new("RGBA", outlier.size)
    large = tile.resize((32, 32), Image.Resampling.NEAREST).convert("RGBA")
    for left in range(0, outlier.width, 32):
        for top in range(0, outlier.height, 32):
            page.paste(large, (left, top))
    return Image.alpha_composite(page, outlier).convert("RGB")
