"""What the KServe SDK asks of a server. `python -m tests.triton` runs it in its own environment.

Arguments: the HTTP and the gRPC address of a server with the models of tests.triton.repository.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

A, B = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)


def request(use_binary_data: bool) -> Any:
    inputs = [InferInput("INPUT0", [1, 16], "INT32"), InferInput("INPUT1", [1, 16], "INT32")]
    for tensor, values in zip(inputs, (A, B), strict=True):
        tensor.set_data_from_numpy(values, binary_data=use_binary_data)
    return InferRequest(model_name="simple", infer_inputs=inputs, request_id="7")


def check(answer: Any) -> None:
    assert (answer.model_name, answer.id) == ("simple", "7")
    results = {output.name: output.as_numpy() for output in answer.outputs}
    assert np.array_equal(results["OUTPUT0"], A + B), results
    assert np.array_equal(results["OUTPUT1"], A - B), results


async def main(http: str, grpc: str) -> None:
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    url = f"http://{http}"
    assert await rest.is_server_live(url)
    assert await rest.is_server_ready(url)
    assert await rest.is_model_ready(url, "simple")
    async with InferenceGRPCClient(grpc) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("simple")
        for use_binary_data in (False, True):  # typed and raw contents over gRPC
            check(await rest.infer(url, request(use_binary_data), model_name="simple"))
            check(await client.infer(request(use_binary_data)))


asyncio.run(main(*sys.argv[1:]))
