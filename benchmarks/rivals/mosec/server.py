"""Mosec: a Rust front end, and a worker process with dynamic batching."""

import io
import os

import numpy as np
import onnxruntime as ort
from mosec import Server, Worker
from PIL import Image


class Mnist(Worker):
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_PATH"], options)

    def deserialize(self, data):
        if data.startswith(b"\x89PNG"):
            return np.asarray(Image.open(io.BytesIO(data)))[None]
        return np.frombuffer(data, np.uint8).reshape(-1, 28, 28)

    def forward(self, data):
        [probabilities] = self.session.run(["probabilities"], {"image": np.concatenate(data)})
        sizes = np.cumsum([len(images) for images in data])[:-1]
        return [part.tolist() for part in np.split(probabilities, sizes)]


if __name__ == "__main__":
    server = Server()
    # One millisecond is the shortest wait for a batch that Mosec accepts.
    server.append_worker(
        Mnist,
        num=int(os.environ["MOSEC_WORKERS"]),
        max_batch_size=64,
        max_wait_time=1,
        route="/predict",
    )
    server.run()
