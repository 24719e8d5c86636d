"""What a picture becomes for a model that the project did not train: the rule in its card.

Three steps, as in torchvision's transforms: the picture gets the model's size, its pixels become
uint8 [H,W,C], and each of the 256 values of a channel becomes (value * scale - mean) / std. The
last step is a table, made when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, isfinite, isqrt, prod
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from service.core.datatypes import BF16, DTYPES, Array
from service.core.digits import Pixels
from service.core.errors import InvalidArgument
from service.core.pictures.files import decode, orientation
from service.core.pictures.page import upright
from service.core.tensors import TensorSpec

GREY, RGB, BGR = "grey", "RGB", "BGR"
CROP, PAD, STRETCH = "crop", "pad", "stretch"
_CHANNELS = {GREY: 1, RGB: 3, BGR: 3}
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
# A picture is first reduced to this many times the size that the model takes, by averaging whole
# squares of pixels. Pillow's documentation of `reducing_gap` finds no difference from 3 on.
_GAP = 3
# The widest filter (Lanczos) takes pixels within this many pixels of the result.
_SUPPORT = 3
_FOURTH = 0.25  # of a pixel: no rounding error of a position is as large


class PictureRule(NamedTuple):
    """The field `picture` of a card; None or empty is left to the shape of the model's input.

    `size` is height and width. `mean` and `std` have one number for all channels, or one each, in
    the order of `colour`. `shorter_side` is what the shorter side is scaled to before a crop.
    """

    size: tuple[int, int] | None = None
    colour: str = ""
    layout: str = ""
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: str = CROP
    shorter_side: int = 0
    filter: str = "bilinear"
    fill: int = 0


class PictureError(ValueError):
    """The field `picture` of a card is wrong, or contradicts the model; the message names it."""


def rule_of(fields: Mapping[str, Any]) -> PictureRule:
    """The field `picture` of a card that fits its JSON Schema. Raises PictureError."""
    values: dict[str, Any] = dict(fields)
    if "size" in fields:
        height, width = fields["size"]
        values["size"] = int(height), int(width)
    try:
        for name in ("scale", "mean", "std"):
            if name in fields:
                numbers = fields[name] if isinstance(fields[name], list) else [fields[name]]
                values[name] = tuple(map(float, numbers))
    except OverflowError as error:
        raise PictureError(f"picture.{name} has a number that is too large") from error
    if "scale" in fields:
        (values["scale"],) = values["scale"]
    for name in ("shorter_side", "fill"):
        if name in fields:
            values[name] = int(fields[name])
    rule = PictureRule(**values)
    if not all(map(isfinite, (rule.scale or 0.0, *rule.mean, *rule.std))) or 0.0 in rule.std:
        raise PictureError("picture.scale, mean and std must be finite, and std must not be 0")
    if 2 in (len(rule.mean), len(rule.std)):
        raise PictureError("picture.mean and std must have one number per channel, 1 or 3")
    if rule.shorter_side and rule.resize != CROP:
        raise PictureError("picture.shorter_side is for the resize rule 'crop' only")
    return rule


class PictureInput(NamedTuple):
    """An input that takes pictures: `rule`, with everything that it left open, and how to fill it.

    `size` is height and width, `row` the shape of one picture in the input, and `table` has for
    each channel of the input the value of every pixel value ([C,256], of the input's dtype); None
    if the input takes pixels as they are.
    """

    rule: PictureRule
    size: tuple[int, int]
    colour: str
    row: tuple[int, ...]
    table: Array | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pixels of one picture."""
        return (*self.size, _CHANNELS[self.colour])

    def pixels(self, image: Image.Image) -> Pixels:
        """Decode an opened picture and bring it to the model's size: uint8 [1,H,W,C], grey or RGB.

        Raises InvalidArgument if the data is damaged.
        """
        decode(image)
        turned = orientation(image) > 4
        width, height = image.size[::-1] if turned else image.size
        target_height, target_width = self.size
        box = (0.0, 0.0, float(width), float(height))
        inner = (target_width, target_height)
        if self.rule.resize == CROP:
            # As torchvision's Resize and CenterCrop: sizes lose their fractions, offsets round.
            scale = max(target_width / width, target_height / height)
            if self.rule.shorter_side:
                scale = self.rule.shorter_side / min(width, height)
            scaled_width = max(target_width, int(width * scale + 1e-6))
            scaled_height = max(target_height, int(height * scale + 1e-6))
            left = round((scaled_width - target_width) / 2)
            top = round((scaled_height - target_height) / 2)
            x, y = width / scaled_width, height / scaled_height
            box = (left * x, top * y, (left + target_width) * x, (top + target_height) * y)
        elif self.rule.resize == PAD:
            scale = min(target_width / width, target_height / height)
            inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        # Only what the result needs is copied and converted, and that reduced in size.
        margin_x = _SUPPORT * max(1.0, (box[2] - box[0]) / inner[0])
        margin_y = _SUPPORT * max(1.0, (box[3] - box[1]) / inner[1])
        left, right = max(0, floor(box[0] - margin_x)), min(width, ceil(box[2] + margin_x))
        top, bottom = max(0, floor(box[1] - margin_y)), min(height, ceil(box[3] + margin_y))
        part_width, part_height = right - left, bottom - top
        factor = max(1, isqrt(part_width * part_height // (_GAP * _GAP * prod(inner))))
        longer = max(part_width, part_height)
        small = upright(
            image,
            max(1, longer // factor),
            (
                (left + _FOURTH) / width,
                (top + _FOURTH) / height,
                (right - _FOURTH) / width,
                (bottom - _FOURTH) / height,
            ),
        ).convert("L" if self.colour == GREY else "RGB")
        factor = max(1, longer // max(1, longer // factor))
        shrunk = (
            (box[0] - left) / factor,
            (box[1] - top) / factor,
            min((box[2] - left) / factor, small.width),
            min((box[3] - top) / factor, small.height),
        )
        result = small.resize(inner, _FILTERS[self.rule.filter], shrunk)
        if inner != (target_width, target_height):
            whole = Image.new(
                result.mode,
                (target_width, target_height),
                (self.rule.fill,) * len(result.getbands()),
            )
            whole.paste(result, ((target_width - inner[0]) // 2, (target_height - inner[1]) // 2))
            result = whole
        return np.asarray(result).reshape(1, *self.shape)

    def pixels_from_bytes(self, raw: bytes) -> Pixels:
        """View raw pixels as uint8 [N,H,W,C], without a copy. Raises InvalidArgument."""
        one = prod(self.shape)
        if not raw or len(raw) % one:
            raise InvalidArgument(
                f"pixels: {len(raw)} bytes are not a whole number (1 or more) of pictures of "
                f"{'x'.join(map(str, self.shape))} = {one} bytes."
            )
        return np.frombuffer(raw, np.uint8).reshape(-1, *self.shape)

    def pixels_from_values(self, array: Array) -> Pixels:
        """Arrange uint8 [H,W,C], [H,W] of grey, flat ones, or N of either, as [N,H,W,C].

        Raises InvalidArgument for any other shape.
        """
        one = self.shape
        for row in (one, one[:2], (prod(one),)):
            if prod(row) == prod(one) and array.shape in (row, (len(array), *row)):
                return array.reshape(-1, *one)
        raise InvalidArgument(
            f"image: has shape {list(array.shape)}; send {'x'.join(map(str, one))} numbers, nested "
            "or as one flat list, or N of these."
        )

    def array(self, pixels: Pixels) -> Array:
        """The model's input [N, ...] for pixels uint8 [N,H,W,C]."""
        if self.colour == BGR:
            pixels = pixels[..., ::-1]
        channels_first = "CHW" in self.rule.layout
        count, height, width, channels = pixels.shape
        if self.table is None:
            values = pixels.transpose(0, 3, 1, 2) if channels_first else pixels
            return np.ascontiguousarray(values).reshape(count, *self.row)
        shape = (count, channels, height, width) if channels_first else pixels.shape
        values = np.empty(shape, self.table.dtype)
        for channel in range(channels):
            plane = values[:, channel] if channels_first else values[..., channel]
            plane[...] = self.table[channel][pixels[..., channel]]
        return values.reshape(count, *self.row)


def picture_input(rule: PictureRule, inputs: Sequence[TensorSpec]) -> PictureInput:
    """How a model takes pictures by a rule. Raises PictureError if the two do not fit."""
    if len(inputs) != 1:
        raise PictureError(f"picture is for models of one input, but this one has {len(inputs)}")
    (spec,) = inputs
    named = f"the input '{spec.name}' is {spec.datatype} {list(spec.shape)}"
    dtype = DTYPES[spec.datatype]
    if spec.datatype == BF16 or dtype.kind not in "iuf":
        raise PictureError(f"picture needs an input of numbers, but {named}")
    layout, colour, size, row = _completed(rule, spec.shape, named)
    channels = _CHANNELS[colour]
    whole = (channels, *size) if "CHW" in layout else (*size, channels)
    same = {whole, (prod(whole),)}
    if channels == 1:
        same |= {size, (1, *size)}
    fitting = [
        shape
        for shape in same
        if len(shape) == len(row)
        and all(n in (size, -1) for size, n in zip(shape, row, strict=True))
    ]
    if not fitting:
        raise PictureError(f"picture makes {colour} pixels of {list(whole)}, but {named}")
    if 0 < rule.shorter_side < max(size):
        raise PictureError(f"picture.shorter_side must be at least {max(size)}, for the crop")
    if max(len(rule.mean), len(rule.std)) > channels:
        raise PictureError(f"picture.mean and picture.std have 3 numbers, but {colour} has one")
    scale = rule.scale
    if scale is None:
        scale = 1 / 255 if dtype.kind == "f" else 1.0
    mean = np.broadcast_to(rule.mean, channels)[:, None]
    std = np.broadcast_to(rule.std, channels)[:, None]
    values = (np.arange(256) * scale - mean) / std
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    is_same = dtype == np.uint8 and bool((values == np.arange(256)).all())
    return PictureInput(
        rule=rule._replace(layout=layout),
        size=size,
        colour=colour,
        row=fitting[0],
        table=None if is_same else values.astype(dtype),
    )


def _completed(
    rule: PictureRule, shape: tuple[int, ...], named: str
) -> tuple[str, str, tuple[int, int], tuple[int, ...]]:
    """Layout, colour, size, and the shape of one picture in the input.

    What the rule leaves open follows from the input's shape. Raises PictureError if it does not.
    """
    layout, colour, size = rule.layout, rule.colour, rule.size
    if not layout and len(shape) == 4:
        layout = "NCHW" if shape[1] in (1, 3) else "NHWC" if shape[3] in (1, 3) else ""
    row = shape[1:] if layout[:1] in ("", "N") else shape
    if row is not shape and shape[0] not in (-1, 1):
        raise PictureError(
            f"picture.layout must be CHW or HWC, without a dimension for several pictures: {named}"
        )
    sides = dict(zip(layout.removeprefix("N") if len(row) == 3 else "HW", row, strict=False))
    if not colour:
        colour = {1: GREY, 3: RGB}.get(sides.get("C", 1 if len(row) == 2 else 0), "")
    missing = "colour" if not colour else "layout" if not layout and colour != GREY else ""
    if not missing and size is None:
        size = sides.get("H", -1), sides.get("W", -1)
        missing = "size" if min(size) < 1 or len(row) < 2 else ""
    if missing or size is None:
        raise PictureError(
            f"picture.{missing} is missing: it does not follow from the model; {named}"
        )
    return layout, colour, size, row
