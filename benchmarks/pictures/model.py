"""A model version as the service runs it: its answers for pixels, and what its judgement costs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.floors.session import make_session
from service.core.datatypes import Array
from service.core.digits import REASONS, DigitLayout, Pixels, Prediction, layout_of
from service.runtime.ort_values import spec_of

# The service runs longer inputs in parts of this many rows (`service.runtime.session`).
ROWS = 64
_JUDGEMENT = ("accepted", "reason", "prediction_set")
_PLAIN = ("logits", "probabilities")


class Answers(NamedTuple):
    """What a model answers to N images."""

    probabilities: npt.NDArray[np.float32]  # [N,10]
    reasons: npt.NDArray[np.uint8]  # [N], indexes into REASONS; 0 is accepted
    sets: npt.NDArray[np.bool_]  # [N,10]

    @property
    def digits(self) -> npt.NDArray[np.int64]:
        """The most probable digits, [N]."""
        digits: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return digits


class Model:
    """One version in a session of one thread. A version without a judgement accepts everything."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "model.onnx"
        self._session = make_session(self.file)
        self._outputs = [spec_of(output) for output in self._session.get_outputs()]
        self.names = [output.name for output in self._outputs]
        self._input = self._session.get_inputs()[0]
        kinds = ["probabilities" if name == "probabilities" else "" for name in self.names]
        self.layout: DigitLayout = layout_of([spec_of(self._input)], self._outputs, kinds)
        self.judges = self.layout.judgement is not None

    def run(self, pixels: Pixels) -> list[Array]:
        """All outputs, for uint8 [N,28,28] of any N from 1."""
        parts = [
            self._session.run(None, {self._input.name: pixels[start : start + ROWS]})
            for start in range(0, len(pixels), ROWS)
        ]
        return [np.concatenate(output) for output in zip(*parts, strict=True)]

    def predictions(self, pixels: Pixels) -> list[Prediction]:
        """The predictions of the service."""
        return self.layout.predictions(self.run(pixels))

    def answers(self, pixels: Pixels) -> Answers:
        """The outputs that the figures need."""
        outputs = dict(zip(self.names, self.run(pixels), strict=True))
        probabilities = outputs["probabilities"]
        rows = np.arange(len(pixels))
        sets = np.zeros((len(pixels), 10), bool)
        sets[rows, probabilities.argmax(axis=1)] = True
        reasons = np.zeros(len(pixels), np.uint8)
        if self.judges:
            sets, reasons = outputs["prediction_set"], outputs["reason"].copy()
            # A row that is not accepted for no known reason is not accepted all the same.
            reasons[~outputs["accepted"] & (reasons == 0)] = REASONS.index("unsure")
        return Answers(probabilities, reasons, sets)


def judgement_us(folder: Path, rounds: int = 60) -> float:
    """Microseconds of CPU time per image, in batches of 64, that the judgement adds to a graph.

    The graph is compared with itself cut down to its logits and probabilities; of many rounds that
    take turns, the least time of each counts.
    """
    import onnx
    from onnx.utils import Extractor

    whole = Model(folder)
    if not whole.judges:
        return 0.0
    graph = onnx.load(str(whole.file))
    plain = Extractor(graph).extract_model([graph.graph.input[0].name], list(_PLAIN))
    with tempfile.TemporaryDirectory(prefix="mnist-plain-") as scratch:
        onnx.save(plain, Path(scratch) / "model.onnx")
        bare = Model(Path(scratch))
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 28, 28), dtype=np.uint8)
    least = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, model in enumerate((whole, bare)):
            began = time.process_time()
            for _ in range(3):
                model.run(pixels)
            least[index] = min(least[index], time.process_time() - began)
    return 1e6 * (least[0] - least[1]) / (3 * ROWS)
