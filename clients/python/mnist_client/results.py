"""What the client returns: frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of one call in milliseconds.

    `call` is from sending the request to the whole answer, of the attempt that succeeded.
    `picture` (preparing it) and `model` (with its queue) are the server's; they are None where it
    does not tell: it does over HTTP, for `read`, and for `predict` with `explain`.
    """

    call: float
    picture: float | None = None
    model: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A step from a picture to what the model sees: its name, and its result as a PNG."""

    name: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says about one image.

    `probabilities` are ten, indexed by digit, and sum to 1; `entropy_bits` is from 0 to 3.32.
    `accepted` is whether the image shows one digit that the model is sure of; if it is False,
    `reason` is blank, several_digits, not_a_digit or unsure, and `hint` a sentence for people.
    `prediction_set` holds the right digit with the coverage that the model's card states. Both are
    None if the model does not judge. `steps` are those of `explain`.
    """

    digit: int
    probabilities: tuple[float, ...]
    entropy_bits: float
    prediction_set: tuple[int, ...] | None
    accepted: bool | None
    reason: str
    hint: str
    model_name: str
    model_version: str
    timings: Timings
    request_id: str = ""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the picture as people see it; right and bottom are outside of it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class ReadDigit:
    """One digit on a picture: where it is, the index of its line, and what the model says."""

    box: Box
    line: int
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Reading:
    """What a picture says.

    `text` has one character per digit ("?" for a mark that is none) and a line break between
    `lines`. `hint` says what may be wrong with a picture without digits.
    """

    text: str
    lines: tuple[str, ...]
    digits: tuple[ReadDigit, ...]
    hint: str
    model_name: str
    model_version: str
    timings: Timings
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the server answers, and whether it takes requests; `reason` says why not."""

    live: bool
    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The server's name and version, and the protocol extensions that it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a model; -1 in `shape` is the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model: its loaded versions, its tensors, and how it is served (`properties`)."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    properties: tuple[tuple[str, str], ...]
