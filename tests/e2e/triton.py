"""One interface to tritonclient's four clients: HTTP and gRPC, synchronous and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

from tests.conftest import Server

OVER_HTTP = ("http", "http.aio")
OVER_GRPC = ("grpc", "grpc.aio")


class Triton:
    """One real client of a kind. Calls its methods by name and awaits those that are coroutines."""

    def __init__(self, kind: str, server: Server) -> None:
        self.kind = kind
        self.is_grpc = kind.startswith("grpc")
        self._loop = asyncio.new_event_loop()
        module: Any = {
            "http": tritonclient.http,
            "http.aio": tritonclient.http.aio,
            "grpc": tritonclient.grpc,
            "grpc.aio": tritonclient.grpc.aio,
        }[kind]
        self._parts: Any = tritonclient.grpc if self.is_grpc else tritonclient.http
        self.client = self.run(self._make(module, server.grpc if self.is_grpc else server.http))

    async def _make(self, module: Any, address: str) -> Any:
        # The constructors of the asyncio clients need a running loop.
        return module.InferenceServerClient(address)

    def run(self, answer: Any) -> Any:
        return self._loop.run_until_complete(answer) if asyncio.iscoroutine(answer) else answer

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *arguments, **options: self.run(method(*arguments, **options))

    def close(self) -> None:
        self.run(self.client.close())
        self._loop.close()

    def input(self, name: str, array: np.ndarray, datatype: str, **options: Any) -> Any:
        tensor = self._parts.InferInput(name, list(array.shape), datatype)
        return tensor.set_data_from_numpy(array, **options)

    def empty_input(self, name: str, shape: list[int], datatype: str) -> Any:
        return self._parts.InferInput(name, shape, datatype)

    def output(self, name: str, **options: Any) -> Any:
        return self._parts.InferRequestedOutput(name, **options)

    def answer(self, result: Any) -> dict[str, Any]:
        """The message of an answer as a dictionary, for every client."""
        if self.is_grpc:
            return dict(result.get_response(as_json=True))
        return dict(result.get_response())

    def code(self, error: Any) -> str:
        """The status of an InferenceServerException as the name of a gRPC code."""
        status = str(error.status())
        return status.removeprefix("StatusCode.") if self.is_grpc else _OF_HTTP.get(status, status)


_OF_HTTP = {
    "400": "INVALID_ARGUMENT",
    "403": "PERMISSION_DENIED",
    "404": "NOT_FOUND",
    "409": "ALREADY_EXISTS",
    "413": "INVALID_ARGUMENT",
    "501": "UNIMPLEMENTED",
    "503": "UNAVAILABLE",
    "504": "DEADLINE_EXCEEDED",
}


def fixture_of(
    server_fixture: str,
    kinds: tuple[str, ...] = OVER_HTTP + OVER_GRPC,
    grpcio_fixture: str | None = None,
) -> Any:
    """A pytest fixture: each kind of client in turn, connected to the server of `server_fixture`.

    With `grpcio_fixture` the gRPC clients also connect to that server, which runs grpcio.
    """
    params = [(server_fixture, kind) for kind in kinds]
    if grpcio_fixture:
        params += [(grpcio_fixture, kind) for kind in OVER_GRPC]

    @pytest.fixture(scope="module", params=params, ids=[f"{kind}@{of}" for of, kind in params])
    def triton(request: pytest.FixtureRequest) -> Iterator[Triton]:
        fixture, kind = request.param
        client = Triton(kind, request.getfixturevalue(fixture))
        yield client
        client.close()

    return triton
