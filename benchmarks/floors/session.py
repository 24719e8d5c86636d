"""The ONNX Runtime session of every floor, and its answer to a body."""

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
    """A session on one thread, like that of every contender."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Model:
    """The model named by the environment variable MODEL_PATH."""

    def __init__(self) -> None:
        self._session = make_session(Path(os.environ["MODEL_PATH"]))

    def run(self, images: Pixels) -> tuple[Probabilities, Probabilities]:
        """Logits and probabilities [N,10] of images [N,28,28]."""
        logits, probabilities = self._session.run(None, {"image": images})
        return logits, probabilities

    def answer(self, body: bytes, content_type: str) -> bytes:
        """The probabilities, as JSON, for raw pixels or a PNG."""
        if content_type == "image/png":
            images = np.asarray(Image.open(io.BytesIO(body)))[None]
        else:
            images = np.frombuffer(body, np.uint8).reshape(-1, 28, 28)
        _, probabilities = self.run(images)
        return orjson.dumps({"probabilities": probabilities}, option=orjson.OPT_SERIALIZE_NUMPY)
