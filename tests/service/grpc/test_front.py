from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from service.access.tls import Tls
from service.core.budget import Budget
from service.core.callers import Callers
from service.core.errors import RequestTooLarge
from service.core.turns import Turns
from service.grpc import front, grpcio_server
from service.grpc.answering import Calls, Rpc, Unary
from service.grpc.front import GrpcFront
from service.observe.metrics import Metrics
from service.observe.recorder import RequestRecorder
from service.settings import Settings
from service.stubs.digits.v1 import digits_pb2
from service.stubs.inference import inference_pb2
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class FakeServer:
    """Takes the place of the server that listens; calls are made on it directly."""

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        calls: Calls,
        settings: Settings,
        budget: Budget,
        callers: Callers,
        tls: Tls | None,
        turns: Turns | None = None,
    ) -> None:
        self.rpcs = rpcs
        self.calls = calls
        self.events: list[str] = []
        FakeServer.newest = self

    newest: FakeServer

    async def start(self, listener: object = None) -> None:
        self.events.append("start")

    async def stop(self, timeout: float) -> None:
        self.events.append(f"stop within {timeout} s")

    async def health(self, service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        rpc = self.rpcs["/grpc.health.v1.Health/Check"]
        answer = await self.calls.answer(rpc, request, None, "id")
        return int(health_pb2.HealthCheckResponse.FromString(answer).status)


@pytest.fixture(params=[True, False], ids=["own front", "grpcio"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that choose either server; that one is replaced by FakeServer."""
    chosen, other = (front, "Http2Server"), (grpcio_server, "GrpcioServer")
    if not request.param:
        chosen, other = other, chosen
    monkeypatch.setattr(*chosen, FakeServer)
    monkeypatch.setattr(*other, None)  # calling it fails
    return Settings(fast_grpc=request.param)


def front_of(operations: Operations, settings: Settings) -> GrpcFront:
    return GrpcFront(
        inference=operations.inference,
        digits=operations.digits,
        administration=operations.administration,
        recorder=RequestRecorder(Metrics(), "none"),
        settings=settings,
        budget=Budget(settings.max_inflight_bytes),
        callers=Callers(),
        turns=Turns(),
    )


def test_every_method_of_the_protos_is_served(tmp_path: Path, settings: Settings) -> None:
    async def scenario(operations: Operations) -> None:
        front_of(operations, settings)
        services: list[Any] = [
            inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
            digits_pb2.DESCRIPTOR.services_by_name["DigitClassifier"],
            health_pb2.DESCRIPTOR.services_by_name["Health"],
        ]
        expected = {f"/{s.full_name}/{method.name}" for s in services for method in s.methods}
        expected |= {
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            for version in ("v1alpha", "v1")
        }
        assert FakeServer.newest.rpcs.keys() == expected

    run_with_operations(tmp_path, scenario)


def test_operation_names_are_unique_to_their_methods(tmp_path: Path, settings: Settings) -> None:
    async def scenario(operations: Operations) -> None:
        front_of(operations, settings)
        names = [rpc.method.operation for rpc in FakeServer.newest.rpcs.values()]
        assert len(names) == len(set(names))

    run_with_operations(tmp_path, scenario)


# What a caller needs for each method: a new one has to be decided on here as well.
_SCOPES: dict[str | None, set[str]] = {
    None: {"ServerLive", "ServerReady", "Check", "Watch"},
    "predict": {"Predict", "Read", "ModelInfer", "ModelStreamInfer"},
    "read": {
        *("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"),
        *("RepositoryIndex", "SystemSharedMemoryStatus", "CudaSharedMemoryStatus"),
        *("LogSettings", "TraceSetting", "ServerReflectionInfo"),
    },
    "admin": {
        *("RepositoryModelLoad", "RepositoryModelUnload"),
        *("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
        *("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    },
}


def test_every_method_has_the_scope_that_was_decided_on(tmp_path: Path, settings: Settings) -> None:
    async def scenario(operations: Operations) -> None:
        front_of(operations, settings)
        scopes: dict[str | None, set[str]] = {}
        for path, rpc in FakeServer.newest.rpcs.items():
            if not path.endswith("Health/List"):  # older releases of the proto lack it
                scopes.setdefault(rpc.method.scope, set()).add(path.rpartition("/")[2])
        assert scopes == _SCOPES

    run_with_operations(tmp_path, scenario)


def test_health_follows_the_models_from_start_to_stop(tmp_path: Path, settings: Settings) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        grpc_front = front_of(operations, settings)
        server = FakeServer.newest
        await grpc_front.start()
        names = ("", "inference.GRPCInferenceService", "digits.v1.DigitClassifier")
        for name in (*names, "linear", "linear/1"):
            assert await server.health(name) == SERVING
        await operations.administration.start()
        await operations.administration.unload_model("linear")
        grpc_front.publish_health()
        for name in ("digits.v1.DigitClassifier", "linear", "linear/1"):
            assert await server.health(name) == NOT_SERVING
        assert await server.health("") == SERVING  # it serves what it was asked to: nothing
        await operations.administration.load_model("linear", {})
        grpc_front.publish_health()
        assert await server.health("linear/1") == SERVING
        await grpc_front.stop(3.0)
        assert await server.health("") == NOT_SERVING
        assert server.events == ["start", "stop within 3.0 s"]

    run_with_operations(tmp_path, scenario)


def test_message_limit_is_the_one_of_the_settings(tmp_path: Path, settings: Settings) -> None:
    async def scenario(operations: Operations) -> None:
        front_of(operations, settings)
        server = FakeServer.newest
        live = server.rpcs["/inference.GRPCInferenceService/ServerLive"]
        assert isinstance(live.method, Unary)
        answer = await server.calls.answer(live, b"", None, "id")
        assert inference_pb2.ServerLiveResponse.FromString(answer).live
        with pytest.raises(RequestTooLarge, match="max_request_bytes"):
            await server.calls.answer(live, bytes(2 * settings.max_request_bytes), None, "id")

    run_with_operations(tmp_path, scenario)
