"""PyTriton: Triton Inference Server with a Python function as its model, with dynamic batching."""

import os

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL_PATH"], options)


@batch
def infer(image):
    logits, probabilities = session.run(["logits", "probabilities"], {"image": image})
    return {"logits": logits, "probabilities": probabilities}


config = TritonConfig(
    http_address="127.0.0.1",
    grpc_address="127.0.0.1",
    http_port=int(os.environ["HTTP_PORT"]),
    grpc_port=int(os.environ["GRPC_PORT"]),
    allow_metrics=False,
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="mnist",
        infer_func=infer,
        inputs=[Tensor(name="image", dtype=np.uint8, shape=(28, 28))],
        outputs=[
            Tensor(name="logits", dtype=np.float32, shape=(10,)),
            Tensor(name="probabilities", dtype=np.float32, shape=(10,)),
        ],
        config=ModelConfig(max_batch_size=512, batcher=DynamicBatcher()),
    )
    triton.serve()
