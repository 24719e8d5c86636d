"""KServe's Python server: a custom model. It has no batching."""

import os
from functools import cached_property

import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid


class Mnist(Model):
    def __init__(self):
        super().__init__("mnist")
        self.ready = True

    @cached_property  # its workers receive the model by pickle, which sessions do not support
    def session(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        return ort.InferenceSession(os.environ["MODEL_PATH"], options)

    def predict(self, payload: InferRequest, headers=None, response_headers=None):
        results = self.session.run(None, {"image": payload.inputs[0].as_numpy()})
        outputs = []
        for name, values in zip(("logits", "probabilities"), results):
            output = InferOutput(name, list(values.shape), "FP32")
            output.set_data_from_numpy(values)
            outputs.append(output)
        return InferResponse(
            payload.id or generate_uuid(),
            "mnist",
            outputs,
            use_binary_outputs=payload.use_binary_outputs,
        )


if __name__ == "__main__":
    ModelServer().start([Mnist()])
