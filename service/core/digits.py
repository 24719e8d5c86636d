"""A model as a classifier of digits: which tensors to use, pixels in, probabilities out.

Arithmetic only: it knows tensors and arrays, no repository and no session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import compress, repeat
from math import inf, log2, prod
from operator import mul
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from service.core.datatypes import Array
from service.core.errors import InvalidArgument, ModelFault
from service.core.tensors import TensorSpec

Pixels = npt.NDArray[np.uint8]
Judgement = tuple[bool | None, str]  # `accepted` and `reason` of a prediction

SIDE = 28
# The labels in the card of a model of digits, if it has any.
DIGIT_LABELS = tuple("0123456789")
OTHER_LABELS = (
    "classifies something other than digits; send its pictures to POST /predict over HTTP."
)
# What the values of an output are, in the words of the model card.
PROBABILITIES = "probabilities"
LOGITS = "logits"
# The outputs of a model that judges whether an image shows one digit; all three, or none is read.
_JUDGEMENT = (
    TensorSpec("accepted", "BOOL", (-1,)),
    TensorSpec("reason", "UINT8", (-1,)),
    TensorSpec("prediction_set", "BOOL", (-1, 10)),
)
# Why an image is not accepted as one digit; the graph's output `reason` holds an index into them.
REASONS = ("", "blank", "several_digits", "not_a_digit", "unsure")
# For each of them, what is wrong with the image and what would help, for people. The pipeline of
# pictures has sentences of its own for what it sees.
HINTS = (
    "",
    "No ink was found; raw pixels must have ink of 255 on a background of 0, and a picture a pen "
    "that stands out from the paper.",
    "There is more than one digit; send each as an image of its own.",
    "This does not look like a handwritten digit; send one whole digit, upright and alone (as raw "
    "pixels: ink 255, background 0).",
    "The digit is not clear enough to be sure; write it larger and with a darker pen, or take the "
    "photo closer and sharper.",
)
# Up to this many rows plain Python is faster than numpy.
FEW_ROWS = 8
_PART_ROWS = 512
_DIGITS = range(10)
_UNREAD = np.zeros((), np.uint8)
# Reason and hint for every value of an uint8; those of other conventions say nothing.
_WORDS = (*zip(REASONS, HINTS, strict=True), *[("", "")] * (256 - len(REASONS)))


def words_of(code: int) -> tuple[str, str]:
    """The reason and the hint for a value of a graph's output `reason`, an uint8."""
    return _WORDS[code]


class Prediction(NamedTuple):
    """The most probable digit, the distribution over all ten (float32 [10]) and its entropy.

    `prediction_set` holds the truth with the coverage that the model's card states, and is never
    empty. `accepted` says whether the image shows one digit, and is None, like the set, if the
    model does not judge. If it is False, `reason` is one of REASONS and `hint` a sentence.
    """

    digit: int
    probabilities: npt.NDArray[np.float32]
    entropy_bits: float
    prediction_set: tuple[int, ...] | None = None
    accepted: bool | None = None
    reason: str = ""
    hint: str = ""


class Columns(NamedTuple):
    """The predictions for N images, field by field, which is faster where there are many.

    `digits` is int64 [N], `probabilities` float32 [N,10], `entropy_bits` float64 [N]. `judgement`
    is None for a model that does not judge; else it has `accepted`, bool [N]; the indexes of
    reasons into REASONS, uint8 [N]; and `prediction_set`, bool [N,10].
    """

    digits: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    entropy_bits: npt.NDArray[np.float64]
    judgement: tuple[Array, Array, Array] | None = None

    def predictions(self) -> list[Prediction]:
        """One prediction per image."""
        sets: Iterable[tuple[int, ...] | None] = repeat(None)
        accepted: Iterable[bool | None] = repeat(None)
        reasons: Iterable[str] = repeat("")
        hints: Iterable[str] = repeat("")
        if self.judgement is not None:
            accepted, codes, members = [array.tolist() for array in self.judgement]
            sets = [tuple(compress(_DIGITS, included)) for included in members]
            reasons, hints = zip(*map(words_of, codes), strict=True)
        digits, entropies = self.digits.tolist(), self.entropy_bits.tolist()
        columns = digits, self.probabilities, entropies, sets, accepted, reasons, hints
        return list(map(Prediction._make, zip(*columns, strict=False)))

    def judgements(self) -> list[Judgement]:
        """`accepted` and the reason of each row."""
        if self.judgement is None:
            return [(None, "")] * len(self.digits)
        accepted, codes, _ = self.judgement
        pairs = zip(accepted.tolist(), codes.tolist(), strict=True)
        return [(is_accepted, _WORDS[code][0]) for is_accepted, code in pairs]


class NotDigits(Exception):
    """The model does not classify 28x28 images; the message says why, with no subject."""


class DigitLayout(NamedTuple):
    """How a model classifies digits: the index of the output to read, and what it holds.

    `image_shape` is the shape of one image in an FP32 input, or None for an input of uint8 pixels.
    `judgement` has the indexes of the outputs `accepted`, `reason` and `prediction_set`; it is None
    for a model without them. `model` is the name, for errors.
    """

    output: int
    is_logits: bool
    image_shape: tuple[int, ...] | None
    judgement: tuple[int, int, int] | None = None
    model: str = ""

    def inputs(self, pixels: Pixels) -> list[Array]:
        """The model's inputs for uint8 [N,28,28]; FP32 inputs get pixels scaled to 0..1."""
        if self.image_shape is None:
            return [pixels]
        # Foreign models: as torchvision's ToTensor scales them.
        images = pixels.reshape((len(pixels), *self.image_shape))
        return [images.astype(np.float32) / np.float32(255)]

    def predictions(self, outputs: Sequence[Array]) -> list[Prediction]:
        """One prediction per row of the model's outputs; distributions sum to 1 within 1e-6.

        Raises ModelFault if the output has NaN or an infinite value. The logit of a digit that the
        model excludes may be minus infinity.
        """
        probabilities = outputs[self.output]
        if self.is_logits or probabilities.ndim != 2:
            probabilities = self._probabilities(outputs)
        if len(probabilities) > FEW_ROWS:
            return self._columns(probabilities, outputs).predictions()
        members: Iterable[Sequence[bool] | None] = repeat(None)
        accepted: Iterable[bool | None] = repeat(None)
        codes: Iterable[int] = repeat(0)
        if self.judgement is not None:
            accepted, codes, members = [outputs[index].tolist() for index in self.judgement]
        predictions = []
        # One loop without a call of ours, since every request runs it.
        for row, values, is_accepted, code, included in zip(
            probabilities, probabilities.tolist(), accepted, codes, members, strict=False
        ):
            try:
                entropy = 0.0 - sum(map(mul, values, map(log2, values)))
            except ValueError:  # of log2; NaN follows from NaN and -inf
                entropy = 0.0 - sum(p * log2(p) if p > 0.0 else p - p for p in values)
            if not entropy > -inf:
                raise ModelFault.not_finite(self.model)
            prediction_set = None if included is None else tuple(compress(_DIGITS, included))
            reason, hint = _WORDS[code]
            predictions.append(
                Prediction(
                    values.index(max(values)),
                    row,
                    entropy,
                    prediction_set,
                    is_accepted,
                    reason,
                    hint,
                )
            )
        return predictions

    def columns(self, outputs: Sequence[Array]) -> Columns:
        """The same, field by field; raises the same."""
        return self._columns(self._probabilities(outputs), outputs)

    def check(self, outputs: Sequence[Array]) -> None:
        """Raise ModelFault where `predictions` would."""
        if not np.isfinite(self._probabilities(outputs)).all():
            raise ModelFault.not_finite(self.model)

    def shared(self, outputs: list[Array]) -> SharedPredictions:
        """What the outputs of a run say, for `Batcher.submit`; it never raises."""
        return SharedPredictions(self, outputs)

    def read(self, outputs: Sequence[Array]) -> list[Array]:
        """These outputs, with a scalar in place of each that is not used here."""
        indexes = (self.output, *(self.judgement or ()))
        return [each if index in indexes else _UNREAD for index, each in enumerate(outputs)]

    def _probabilities(self, outputs: Sequence[Array]) -> npt.NDArray[np.float32]:
        probabilities = outputs[self.output]
        if probabilities.ndim != 2:
            raise ModelFault.of_shape(self.model, probabilities.shape)
        if not self.is_logits:
            return probabilities
        largest = probabilities.max(axis=-1, keepdims=True)
        if not np.isfinite(largest).all():
            raise ModelFault.not_finite(self.model)
        shifted = np.exp(probabilities - largest)
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)

    def _columns(self, probabilities: npt.NDArray[np.float32], outputs: Sequence[Array]) -> Columns:
        exact = probabilities.astype(np.float64)
        if not np.isfinite(exact).all():
            raise ModelFault.not_finite(self.model)
        terms = exact * np.log2(exact, where=exact > 0.0, out=np.zeros_like(exact))
        judgement = None
        if self.judgement is not None:
            accepted, reason, members = self.judgement
            judgement = outputs[accepted], outputs[reason], outputs[members]
        entropy_bits = 0.0 - terms.sum(axis=1)
        return Columns(probabilities.argmax(axis=1), probabilities, entropy_bits, judgement)


class SharedPredictions:
    """The predictions of a run, made once for all of its requests.

    `columns` is None for a run of few rows, where a loop is faster, and for one with a row that is
    not finite, which only its own request may be told of. `json` is for who makes JSON of them.
    """

    __slots__ = ("_judgements", "_layout", "_predictions", "columns", "json", "outputs")

    def __init__(self, layout: DigitLayout, outputs: list[Array]) -> None:
        self.outputs = outputs
        self._layout = layout
        self.columns: Columns | None = None
        self.json: list[bytes] | None = None
        self._judgements: list[Judgement] = []  # of each row, if there are columns
        self._predictions: list[Prediction] | None = None
        if len(outputs[layout.output]) > FEW_ROWS:
            with suppress(ModelFault):
                self.columns = layout.columns(outputs)
                self._judgements = self.columns.judgements()

    def share(self, start: int, stop: int) -> tuple[list[Prediction] | FewRows, list[Judgement]]:
        """The predictions for one request's rows, and how each is judged. Raises ModelFault."""
        if self.columns is not None:
            return FewRows(self, start, stop), self._judgements[start:stop]
        rows = self._layout.predictions([output[start:stop] for output in self.outputs])
        return rows, [row[4:6] for row in rows]

    def predictions(self) -> list[Prediction]:
        """One prediction per row of the run, if there are columns."""
        if self._predictions is None:
            assert self.columns is not None
            self._predictions = self.columns.predictions()
        return self._predictions


class FewRows(Sequence[Prediction]):
    """The predictions of one request: rows `start` to `stop` of shared ones with columns."""

    __slots__ = ("shared", "start", "stop")

    def __init__(self, shared: SharedPredictions, start: int, stop: int) -> None:
        self.shared = shared
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prediction]: ...

    def __getitem__(self, index: int | slice) -> Prediction | list[Prediction]:
        return self.shared.predictions()[self.start : self.stop][index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self[:])


class Rows:
    """The predictions for many images, made while they are read: 10,000 objects take 7 MB.

    `outputs` are those of one run of a model with `layout`, or of several for parts of the images.
    """

    def __init__(self, layout: DigitLayout, runs: Sequence[Sequence[Array]]) -> None:
        self._layout = layout
        self._runs = runs

    def __len__(self) -> int:
        return sum(len(outputs[self._layout.output]) for outputs in self._runs)

    def __iter__(self) -> Iterator[Prediction]:
        for part in self.parts():
            yield from part.predictions()

    def parts(self) -> Iterator[Columns]:
        """The predictions in parts of at most 512. Raises ModelFault, as their layout does."""
        for outputs in self._runs:
            for start in range(0, len(outputs[self._layout.output]), _PART_ROWS):
                end = start + _PART_ROWS
                # A scalar is an output that is not read.
                part = [output[start:end] if output.ndim else output for output in outputs]
                yield self._layout.columns(part)

    def judgements(self) -> Counter[Judgement]:
        """How many of the predictions have each pair of `accepted` and reason.

        Raises ModelFault if a prediction would.
        """
        for outputs in self._runs:
            self._layout.check(outputs)
        if self._layout.judgement is None:
            return Counter({(None, ""): len(self)})
        counts: Counter[Judgement] = Counter()
        accepted, reason, _ = self._layout.judgement
        for outputs in self._runs:
            pairs = zip(outputs[accepted].tolist(), outputs[reason].tolist(), strict=True)
            for (is_accepted, code), count in Counter(pairs).items():
                counts[is_accepted, _WORDS[code][0]] += count
        return counts


def layout_of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    kinds: Sequence[str],
    model: str = "",
) -> DigitLayout:
    """How the model of this name, with these tensors, classifies digits.

    `kinds` says of each output whether it holds probabilities or logits; empty if that is unknown.
    Raises NotDigits.
    """
    if PROBABILITIES in kinds:
        output = kinds.index(PROBABILITIES)
    elif LOGITS in kinds:
        output = kinds.index(LOGITS)
    else:
        raise NotDigits(
            "has no output known to be logits or probabilities; its model.json can say so in "
            "output_kinds."
        )
    is_logits = kinds[output] == LOGITS
    judgement = None
    if all(spec in outputs for spec in _JUDGEMENT):
        accepted, reason, members = (outputs.index(spec) for spec in _JUDGEMENT)
        judgement = accepted, reason, members
    if len(inputs) == 1:
        datatype, shape = inputs[0].datatype, inputs[0].shape
        if datatype == "UINT8" and shape == (-1, SIDE, SIDE):
            return DigitLayout(output, is_logits, None, judgement, model)
        if datatype == "FP32" and shape[:1] == (-1,) and prod(shape[1:]) == SIDE * SIDE:
            return DigitLayout(output, is_logits, shape[1:], judgement, model)
    raise NotDigits("does not take images of 28x28; use the infer endpoint.")


def pixels_from_values(array: Array) -> Pixels:
    """Arrange uint8 [28,28], [784], [N,28,28] or [N,784] as [N,28,28].

    Raises InvalidArgument for any other shape.
    """
    if array.shape[-2:] == (SIDE, SIDE) and array.ndim in (2, 3):
        return array.reshape(-1, SIDE, SIDE)
    if array.shape[-1:] == (SIDE * SIDE,) and array.ndim in (1, 2):
        return array.reshape(-1, SIDE, SIDE)
    raise InvalidArgument(
        f"image: has shape {list(array.shape)}; send 28x28, Nx28x28 or 784 numbers."
    )


def pixels_from_bytes(raw: bytes) -> Pixels:
    """View raw pixels as uint8 [N,28,28], without a copy.

    Raises InvalidArgument unless there is at least one whole image of 784 bytes.
    """
    if not raw or len(raw) % (SIDE * SIDE):
        raise InvalidArgument(
            f"pixels: {len(raw)} bytes are not a whole number (1 or more) of 28x28 = 784 byte "
            "images."
        )
    return np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE)
