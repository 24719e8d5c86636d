"""BentoML: arrays with adaptive batching, pictures without (it batches arrays only)."""

import os
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime as ort
from bentoml.validators import DType
from PIL.Image import Image


@bentoml.service(workers=int(os.environ["WORKERS"]), logging={"access": {"enabled": False}})
class Mnist:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_PATH"], options)

    @bentoml.api(batchable=True, max_batch_size=1024)
    def predict(self, images: Annotated[np.ndarray, DType("uint8")]) -> np.ndarray:
        return self.session.run(["probabilities"], {"image": images})[0]

    @bentoml.api
    def predict_picture(self, image: Image, /) -> np.ndarray:
        return self.session.run(["probabilities"], {"image": np.asarray(image)[None]})[0]
