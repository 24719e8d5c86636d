"""What the service can do, once, for every transport.

A transport turns its bytes into the values here, awaits one of these operations, and turns the
answer back into bytes. Everything wrong with a request is raised as one of `errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import log2
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from service.core.errors import InvalidArgument
from service.core.images import SIDE, Pixels, check_pixels, open_image, to_pixels
from service.core.tensors import Array, Tensor, TensorSpec, from_bytes, from_values
from service.repository.card import LOGITS, PROBABILITIES
from service.repository.repository import Repository, ServedModel

# Decoding a picture up to this size costs less than handing it to a thread and back.
_INLINE_IMAGE_PIXELS = 128 * 128


class Classification(NamedTuple):
    """Distributions over the digits: float32 [N,10], rows sum to 1 within 1e-6."""

    model: str
    version: str
    probabilities: npt.NDArray[np.float32]


class Prediction(NamedTuple):
    """One row of a classification, with what people want to know of it."""

    digit: int
    probabilities: npt.NDArray[np.float32]
    entropy_bits: float


class InputTensor(NamedTuple):
    """A tensor as it came: either `raw` little-endian bytes, or `values`, nested or flat."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | None = None
    values: Any = None


class InferRequest(NamedTuple):
    """A request of the Open Inference Protocol; `outputs` empty means all of them."""

    model: str
    version: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[str] = ()
    id: str = ""
    deadline: float | None = None


class InferResponse(NamedTuple):
    """The answer to an InferRequest."""

    model: str
    version: str
    id: str
    outputs: list[Tensor]


class ModelMetadata(NamedTuple):
    """What the protocol tells of a model, and the execution provider that runs it."""

    name: str
    versions: list[str]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    provider: str
    fallback: str


class Readiness(NamedTuple):
    """Whether requests are welcome, and if not why; `failures` may be there all the same."""

    ready: bool
    reason: str
    failures: dict[str, str]


class Operations:
    """All operations on the models of one repository. Lives on one event loop."""

    def __init__(
        self, repository: Repository, default_model: str, max_image_pixels: int = 16_000_000
    ) -> None:
        self.repository = repository
        self.default_model = default_model
        self._max_image_pixels = max_image_pixels
        self.stopping = False

    async def classify(
        self, pixels: Pixels, model: str = "", version: str = "", deadline: float | None = None
    ) -> Classification:
        """Classify uint8 [N,28,28], bright ink (255) on a dark background (0).

        Raises ModelNotFound, InvalidArgument if the model does not classify 28x28 images, and
        what `Batcher.submit` raises.
        """
        served = self.repository.get(model or self.default_model, version)
        inputs, index, is_logits = _as_classifier(served, pixels)
        outputs = await served.batcher.submit(inputs, len(pixels), deadline)
        distribution = _softmax(outputs[index]) if is_logits else outputs[index]
        return Classification(served.name, served.version, distribution)

    async def classify_image(
        self, body: bytes, model: str = "", version: str = "", deadline: float | None = None
    ) -> Classification:
        """Classify one PNG or JPEG of any size. Raises InvalidArgument if it is not one."""
        image = open_image(body, self._max_image_pixels)
        return await self.classify(await _decode(image), model, version, deadline)

    async def classify_pixels(
        self, raw: bytes, model: str = "", version: str = "", deadline: float | None = None
    ) -> Classification:
        """Classify raw pixels, 784 bytes an image. Raises InvalidArgument for other lengths."""
        return await self.classify(check_pixels(raw), model, version, deadline)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a model on the tensors of a request of the Open Inference Protocol.

        Raises ModelNotFound; InvalidArgument naming the tensor that is missing, unknown, given
        twice or not of the model's datatype and shape; and what `Batcher.submit` raises.
        """
        served = self.repository.get(request.model, request.version)
        wanted = _wanted_outputs(served, request.outputs)
        arrays = _arrays(served, request.inputs)
        rows = arrays[0].shape[0] if served.session.batchable else 1
        if any(array.shape[0] != rows for array in arrays if served.session.batchable):
            raise InvalidArgument("The inputs have different batch sizes.")
        outputs = await served.batcher.submit(arrays, rows, request.deadline)
        specs = served.session.outputs
        return InferResponse(
            served.name,
            served.version,
            request.id,
            [Tensor(specs[index].name, outputs[index]) for index in wanted],
        )

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """What is known of a loaded model. Raises ModelNotFound."""
        served = self.repository.get(name, version)
        session = served.session
        return ModelMetadata(
            served.name,
            [version] if version else self.repository.versions(name),
            "onnxruntime_onnx",
            session.inputs,
            session.outputs,
            session.provider,
            session.fallback,
        )

    def readiness(self) -> Readiness:
        """Ready means: not stopping, and the default model is loaded."""
        failures = dict(self.repository.failures)
        if self.stopping:
            return Readiness(False, "The server is stopping.", failures)
        if not self.repository.versions(self.default_model):
            return Readiness(False, f"Model '{self.default_model}' is not loaded.", failures)
        return Readiness(True, "", failures)


def predictions(classification: Classification) -> list[Prediction]:
    """The rows of a classification: the most probable digit and the entropy in bits of each."""
    made = []
    for row, values in zip(
        classification.probabilities, classification.probabilities.tolist(), strict=True
    ):
        entropy = -sum(p * log2(p) for p in values if p > 0.0)
        made.append(Prediction(values.index(max(values)), row, entropy + 0.0))
    return made


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


async def _decode(image: Image) -> Pixels:
    if image.width * image.height <= _INLINE_IMAGE_PIXELS:
        return to_pixels(image)
    return await asyncio.get_running_loop().run_in_executor(None, to_pixels, image)


def _as_classifier(served: ServedModel, pixels: Pixels) -> tuple[list[Array], int, bool]:
    """Inputs for a model of digits, the index of the output to read, and whether it is logits."""
    inputs, outputs = served.session.inputs, served.session.outputs
    kinds = [served.card.kind(output.name) for output in outputs]
    if PROBABILITIES in kinds:
        index = kinds.index(PROBABILITIES)
    elif LOGITS in kinds:
        index = kinds.index(LOGITS)
    else:
        raise InvalidArgument(
            f"Model '{served.name}' has no output known to be logits or probabilities; "
            "its model.json can say so in output_kinds."
        )
    spec = inputs[0]
    if len(inputs) == 1 and spec.datatype == "UINT8" and spec.shape == (-1, SIDE, SIDE):
        return [pixels], index, kinds[index] == LOGITS
    size = int(np.prod(spec.shape[1:]))
    if len(inputs) != 1 or spec.datatype != "FP32" or size != SIDE * SIDE or spec.shape[0] != -1:
        raise InvalidArgument(
            f"Model '{served.name}' does not take images of 28x28; use the infer endpoint."
        )
    # Foreign models: pixels in 0..1, as torchvision's ToTensor makes them.
    scaled = pixels.reshape((len(pixels), *spec.shape[1:])).astype(np.float32) / np.float32(255)
    return [scaled], index, kinds[index] == LOGITS


def _softmax(logits: Array) -> npt.NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)


def _wanted_outputs(served: ServedModel, names: Sequence[str]) -> list[int]:
    known = [spec.name for spec in served.session.outputs]
    if not names:
        return list(range(len(known)))
    for name in names:
        if name not in known:
            raise InvalidArgument(
                f"Output '{name}' is not one of model '{served.name}', which gives: "
                f"{', '.join(known)}."
            )
    return [known.index(name) for name in names]


def _arrays(served: ServedModel, tensors: Sequence[InputTensor]) -> list[Array]:
    """The arrays of a request in the model's order, each checked."""
    specs = served.session.inputs
    given = {tensor.name: tensor for tensor in tensors}
    if len(given) != len(tensors):
        raise InvalidArgument("An input is given twice.")
    known = [spec.name for spec in specs]
    for name in given:
        if name not in known:
            raise InvalidArgument(
                f"Input '{name}' is not one of model '{served.name}', which takes: "
                f"{', '.join(known)}."
            )
    arrays = []
    for spec in specs:
        if spec.name not in given:
            raise InvalidArgument(f"Input '{spec.name}' is missing.")
        _, datatype, shape, raw, values = given[spec.name]
        if raw is not None:
            arrays.append(from_bytes(spec, datatype, shape, raw))
        else:
            arrays.append(from_values(spec, datatype, shape, values))
    return arrays
