from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.core.errors import InvalidArgument, ModelNotFound, NotFound, Unimplemented
from service.grpc.administration import AdministrationService
from service.grpc.answering import Call
from service.stubs.inference import inference_pb2 as pb
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations

pytestmark = pytest.mark.usefixtures("root_level")


async def call(operations: Operations, method: str, request: Any) -> Any:
    """The answer of a method, called as a transport calls it."""
    methods = AdministrationService(operations.administration).methods()
    return await methods[method].handler(request, Call(None))


def test_configuration_and_statistics_are_messages(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        await operations.administration.start()
        answer = await call(operations, "ModelConfig", pb.ModelConfigRequest(name="linear"))
        (x,) = answer.config.input
        assert (answer.config.name, x.name, list(x.dims)) == ("linear", "x", [784])
        answer = await call(operations, "ModelStatistics", pb.ModelStatisticsRequest())
        (model,) = answer.model_stats
        assert (model.name, model.version, model.inference_count) == ("linear", "1", 0)
        with pytest.raises(ModelNotFound):
            await call(operations, "ModelConfig", pb.ModelConfigRequest(name="none"))

    run_with_operations(tmp_path, scenario)


def test_models_are_unloaded_and_loaded(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        async def states(ready: bool = False) -> list[tuple[str, str, str]]:
            request = pb.RepositoryIndexRequest(ready=ready)
            answer = await call(operations, "RepositoryIndex", request)
            return [(model.name, model.version, model.state) for model in answer.models]

        await operations.administration.start()
        assert await states() == await states(ready=True) == [("linear", "1", "READY")]
        unload = pb.RepositoryModelUnloadRequest(model_name="linear")
        await call(operations, "RepositoryModelUnload", unload)
        assert await states() == [("linear", "1", "UNAVAILABLE")]
        assert await states(ready=True) == []
        load = pb.RepositoryModelLoadRequest(model_name="linear")
        await call(operations, "RepositoryModelLoad", load)
        assert await states() == [("linear", "1", "READY")]
        load.parameters["config"].string_param = "{}"
        with pytest.raises(Unimplemented, match="config"):
            await call(operations, "RepositoryModelLoad", load)

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="other")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="other")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="other")),
    ],
)
def test_name_of_another_repository_is_rejected(tmp_path: Path, method: str, request_: Any) -> None:
    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="'other'"):
            await call(operations, method, request_)

    run_with_operations(tmp_path, scenario)


def test_log_settings_keep_their_types(tmp_path: Path) -> None:
    async def scenario(operations: Operations) -> None:
        await operations.administration.start()
        request = pb.LogSettingsRequest()
        request.settings["log_verbose_level"].uint32_param = 1
        settings = (await call(operations, "LogSettings", request)).settings
        assert settings["log_verbose_level"].uint32_param == 1
        assert settings["log_info"].bool_param is True
        assert settings["log_file"].WhichOneof("parameter_choice") == "string_param"
        unset = pb.LogSettingsRequest()
        unset.settings["log_verbose_level"].SetInParent()
        unset.settings["log_info"].SetInParent()
        settings = (await call(operations, "LogSettings", unset)).settings
        assert settings["log_verbose_level"].uint32_param == 0

    run_with_operations(tmp_path, scenario)


def test_trace_settings_are_off_and_stay_off(tmp_path: Path) -> None:
    async def scenario(operations: Operations) -> None:
        settings = (await call(operations, "TraceSetting", pb.TraceSettingRequest())).settings
        assert list(settings["trace_level"].value) == ["OFF"]
        assert list(settings["trace_rate"].value) == ["0"]
        request = pb.TraceSettingRequest()
        request.settings["trace_level"].value.append("TIMESTAMPS")
        with pytest.raises(Unimplemented, match="trace_level"):
            await call(operations, "TraceSetting", request)

    run_with_operations(tmp_path, scenario)


def test_cuda_shared_memory_is_empty_and_cannot_be_registered(tmp_path: Path) -> None:
    async def scenario(operations: Operations) -> None:
        status = "CudaSharedMemoryStatus"
        answer = await call(operations, status, pb.CudaSharedMemoryStatusRequest())
        assert not answer.regions
        with pytest.raises(NotFound, match="'r'"):
            await call(operations, status, pb.CudaSharedMemoryStatusRequest(name="r"))
        request = pb.CudaSharedMemoryRegisterRequest(name="r", byte_size=1)
        with pytest.raises(Unimplemented):
            await call(operations, "CudaSharedMemoryRegister", request)
        request = pb.CudaSharedMemoryUnregisterRequest(name="r")
        await call(operations, "CudaSharedMemoryUnregister", request)

    run_with_operations(tmp_path, scenario)
