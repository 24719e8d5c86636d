"""The gRPC floor: a bare grpc.aio servicer, with one process per worker on one port."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.floors.session import Model
from service.stubs.inference import inference_pb2, inference_pb2_grpc

_DATATYPES = {"float32": "FP32", "bool": "BOOL", "uint8": "UINT8"}
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 1)]


class Servicer(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Only ModelInfer with raw contents."""

    def __init__(self) -> None:
        self._model = Model()

    async def ModelInfer(  # noqa: N802 - the name in the protocol
        self, request: inference_pb2.ModelInferRequest, context: Any
    ) -> inference_pb2.ModelInferResponse:
        """Answer with every output of the model."""
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(-1, 28, 28)
        answer = inference_pb2.ModelInferResponse(model_name=request.model_name)
        for name, values in self._model.run(images).items():
            answer.outputs.add(
                name=name, datatype=_DATATYPES[values.dtype.name], shape=values.shape
            )
            answer.raw_output_contents.append(values.tobytes())
        return answer


async def _serve() -> None:
    server = grpc.aio.server(options=_UNLIMITED)
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        Servicer(), server
    )
    server.add_insecure_port(f"127.0.0.1:{os.environ['GRPC_PORT']}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Start WORKERS - 1 further processes on the same port, then serve."""
    workers = int(os.environ.pop("WORKERS", "1"))
    for _ in range(workers - 1):
        subprocess.Popen([sys.executable, "-m", "benchmarks.floors.grpc_aio"])
    uvloop.run(_serve())


if __name__ == "__main__":
    main()
