"""What mnist-predict draws: the distribution as bars, the picture, and the boxes of its digits."""

from __future__ import annotations

import io
from itertools import zip_longest
from typing import TYPE_CHECKING

from mnist_client.images import IMAGE_BYTES
from mnist_client.results import Prediction, Reading

if TYPE_CHECKING:
    from PIL.Image import Image

_BAR_WIDTH = 32
_THUMBNAIL = 28
_SHADES = " ░▒▓█"
# What a reason says, for people.
REASONS = {
    "blank": "it is blank",
    "several_digits": "it shows several digits",
    "not_a_digit": "it does not look like a digit",
    "unsure": "the model is not sure",
}
_GREEN, _DIM, _BOLD, _YELLOW = "1;32", "2", "1", "1;33"


def printable(text: str) -> str:
    """Text for a terminal: names and what servers say may have control characters, or no UTF-8."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def styled(text: str, style: str, colour: bool) -> str:
    """The text in a style of ANSI terminals, if `colour` is on."""
    return f"\x1b[{style}m{text}\x1b[0m" if colour and text else text


def drawing(data: bytes, prediction: Prediction, colour: bool) -> str:
    """The picture beside the bars, if Pillow is installed and can decode it."""
    left = thumbnail(data)
    right = bars(prediction, colour).splitlines()
    return "".join(
        f"{picture:{_THUMBNAIL if left else 0}}{'   ' if left else ''}{bar}".rstrip() + "\n"
        for picture, bar in zip_longest(left, right, fillvalue="")
    )


def bars(prediction: Prediction, colour: bool = False) -> str:
    """The distribution as ten bars, with the most probable digit in colour, and what it means."""
    lines = []
    for digit, probability in enumerate(prediction.probabilities):
        filled = round(probability * _BAR_WIDTH)
        bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
        style = _GREEN if digit == prediction.digit else _DIM
        lines.append(styled(f"{digit} {bar} {probability:8.3%}", style, colour))
    ending = (
        f", entropy {prediction.entropy_bits:.3f} bits "
        f"({printable(prediction.model_name)} version {printable(prediction.model_version)})"
    )
    if prediction.accepted is False:
        reason = REASONS.get(prediction.reason, prediction.reason)
        sentences = printable(f"Not accepted: {reason}. {prediction.hint}")
        lines.append(styled(sentences, _YELLOW, colour))
        lines.append(f"The closest digit is {prediction.digit}{ending}")
    else:
        lines.append(styled(f"It is a {prediction.digit}", _BOLD, colour) + ending)
    return "\n".join(lines)


def thumbnail(data: bytes) -> list[str]:
    """The picture in 14 lines of 28 characters; no lines without Pillow, or if it is damaged."""
    try:
        grey = _opened(data).convert("L").resize((_THUMBNAIL, _THUMBNAIL // 2))
    except (ImportError, OSError, ValueError, SyntaxError):
        return []
    pixels = grey.tobytes()
    return [
        "".join(_SHADES[value * len(_SHADES) // 256] for value in pixels[at : at + _THUMBNAIL])
        for at in range(0, len(pixels), _THUMBNAIL)
    ]


def boxes_on(data: bytes, reading: Reading) -> Image:
    """The picture as people see it, with a box around each digit and the digit above it.

    Boxes are green; red for what is not accepted. Raises ImportError without Pillow.
    """
    from PIL import ImageDraw

    picture = _opened(data).convert("RGB")
    pen = ImageDraw.Draw(picture)
    line = max(1, max(picture.size) // 300)
    for digit, character in zip(reading.digits, reading.text.replace("\n", ""), strict=True):
        box = digit.box
        colour = (200, 30, 30) if digit.prediction.accepted is False else (0, 140, 60)
        edges = box.left - line, box.top - line, box.right - 1 + line, box.bottom - 1 + line
        pen.rectangle(edges, outline=colour, width=line)
        size = max(10, (box.bottom - box.top) // 3)
        pen.text((box.left, box.top - line), character, colour, anchor="lb", font_size=size)
    return picture


def in_characters(picture: Image, width: int, colour: bool) -> str:
    """A picture in the terminal: each character shows two pixels, one above the other."""
    width = min(width, picture.width)
    height = max(2, round(picture.height * width / picture.width) // 2 * 2)
    pixels = picture.resize((width, height)).tobytes()
    lines = []
    for row in range(0, height, 2):
        line = ""
        for column in range(width):
            upper, lower = (
                pixels[3 * (at * width + column) : 3 * (at * width + column) + 3]
                for at in (row, row + 1)
            )
            if colour:
                numbers = ";".join(map(str, (*upper, 48, 2, *lower)))
                line += f"\x1b[38;2;{numbers}m▀"
            else:
                line += " ▄▀█"[2 * (sum(upper) > 382) + (sum(lower) > 382)]
        lines.append(line + ("\x1b[0m" if colour else ""))
    return "\n".join(lines) + "\n"


def _opened(data: bytes) -> Image:
    from PIL import Image, ImageOps

    if len(data) == IMAGE_BYTES and not data.startswith((b"\x89PNG", b"GIF8", b"BM", b"RIFF")):
        return Image.frombytes("L", (28, 28), data)
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
