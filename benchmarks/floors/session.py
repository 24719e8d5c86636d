"""The ONNX Runtime session of every floor, and its answer to a body."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
from PIL import Image

from benchmarks.served_models import Output, Pixels


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

        self._names = [node.name for node in self._session.get_outputs()]

    def run(self, images: Pixels) -> dict[str, Output]:
        """All outputs for images [N,28,28] by name: `logits` and `probabilities` are [N,10]."""
        return dict(zip(self._names, self._session.run(None, {"image": images}), strict=True))

    def answer(self, body: bytes, content_type: str) -> bytes:
        """The probabilities, as JSON, for raw pixels or a PNG."""
        if content_type == "image/png":
            images = np.asarray(Image.open(io.BytesIO(body)))[None]
        else:
            images = np.frombuffer(body, np.uint8).reshape(-1, 28, 28)
        answer = {"probabilities": self.run(images)["probabilities"]}
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
