"""LitServe: a FastAPI front end, and a worker process with dynamic batching. Images are base64."""

import base64
import io
import os

import litserve
import numpy as np
import onnxruntime as ort
from PIL import Image


class Mnist(litserve.LitAPI):
    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_PATH"], options)

    def decode_request(self, request):
        data = base64.b64decode(request["image"])
        if data.startswith(b"\x89PNG"):
            return np.asarray(Image.open(io.BytesIO(data)))[None]
        return np.frombuffer(data, np.uint8).reshape(-1, 28, 28)

    def batch(self, inputs):
        return inputs

    def predict(self, inputs):
        [probabilities] = self.session.run(["probabilities"], {"image": np.concatenate(inputs)})
        return np.split(probabilities, np.cumsum([len(images) for images in inputs])[:-1])

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    api = Mnist(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(os.environ["WORKERS"])
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["HTTP_PORT"]),
        num_api_servers=int(os.environ["WORKERS"]),
        generate_client_file=False,
        log_level="warning",
    )
