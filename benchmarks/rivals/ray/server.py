"""Ray Serve: an HTTP proxy, and a replica with dynamic batching."""

import io
import os
import time

import numpy as np
import onnxruntime as ort
import ray
from PIL import Image
from ray import serve
from starlette.requests import Request


@serve.deployment(
    num_replicas=int(os.environ["WORKERS"]),
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0.5},
)
class Mnist:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_PATH"], options)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def run(self, batch):
        [probabilities] = self.session.run(["probabilities"], {"image": np.concatenate(batch)})
        sizes = np.cumsum([len(images) for images in batch])[:-1]
        return [part.tolist() for part in np.split(probabilities, sizes)]

    async def __call__(self, request: Request):
        data = await request.body()
        if data.startswith(b"\x89PNG"):
            images = np.asarray(Image.open(io.BytesIO(data)))[None]
        else:
            images = np.frombuffer(data, np.uint8).reshape(-1, 28, 28)
        return {"probabilities": await self.run(images)}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["HTTP_PORT"])})
    serve.run(Mnist.bind(), route_prefix="/predict")
    while True:
        time.sleep(3600)
