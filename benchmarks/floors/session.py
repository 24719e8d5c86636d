"""The ONNX Runtime session of every floor, and the answer to one body of raw pixels."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
from PIL import Image

from benchmarks.served_models import Pixels, Probabilities


def make_session(path: Path) -> ort.InferenceSession:
    """A session on one thread, as every contender has it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Model:
    """The model named by the environment variable MODEL_PATH."""

    def __init__(self) -> None:
        self._session = make_session(Path(os.environ["MODEL_PATH"]))

    def run(self, images: Pixels) -> tuple[Probabilities, Probabilities]:
        """Logits and probabilities."""
        logits, probabilities = self._session.run(None, {"image": images})
        return logits, probabilities

    def answer(self, body: bytes, content_type: str) -> bytes:
        """Raw pixels or a PNG in, the probabilities as JSON out."""
        if content_type == "image/png":
            images = np.asarray(Image.open(io.BytesIO(body)))[None]
        else:
            images = np.frombuffer(body, np.uint8).reshape(-1, 28, 28)
        _, probabilities = self.run(images)
        return orjson.dumps({"probabilities": probabilities}, option=orjson.OPT_SERIALIZE_NUMPY)
