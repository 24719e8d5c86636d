"""The control plane of inference.GRPCInferenceService: the same as over HTTP, as messages.

Source: Triton's extensions of the protocol, as in `service.http.administration`.
"""

from __future__ import annotations

from typing import Any, cast

from service.core.errors import InvalidArgument, excerpt
from service.grpc.answering import Call, Method, Unary
from service.grpc.codec import parameters_of
from service.operations.administration import Administration
from service.runtime.shared_memory import SharedRegion
from service.stubs.inference import inference_pb2 as pb
from service.stubs.inference import model_config_pb2


class AdministrationService:
    """The methods of the control plane; `open_inference` has those of the data plane."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    def methods(self) -> dict[str, Method]:
        """The methods by their names in proto/inference/inference.proto."""
        return {
            "ModelConfig": Unary("model_config", self._config, scope="read"),
            "ModelStatistics": Unary("statistics", self._statistics, scope="read"),
            "RepositoryIndex": Unary("repository_index", self._index, scope="read"),
            "RepositoryModelLoad": Unary("load", self._load, scope="admin"),
            "RepositoryModelUnload": Unary("unload", self._unload, scope="admin"),
            "LogSettings": Unary("log_settings", self._log, scope="read"),
            "TraceSetting": Unary("trace_settings", self._trace, scope="read"),
            "SystemSharedMemoryStatus": Unary(
                "system_shared_memory_status", self._status, scope="read"
            ),
            "SystemSharedMemoryRegister": Unary(
                "system_shared_memory_register", self._register, scope="admin"
            ),
            "SystemSharedMemoryUnregister": Unary(
                "system_shared_memory_unregister", self._unregister, scope="admin"
            ),
            "CudaSharedMemoryStatus": Unary(
                "cuda_shared_memory_status", self._cuda_status, scope="read"
            ),
            "CudaSharedMemoryRegister": Unary(
                "cuda_shared_memory_register", self._cuda_register, scope="admin"
            ),
            "CudaSharedMemoryUnregister": Unary(
                "cuda_shared_memory_unregister", self._cuda_unregister, scope="admin"
            ),
        }

    async def _config(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        config = self._administration.configuration(request.name, request.version)
        return pb.ModelConfigResponse(config=model_config_pb2.ModelConfig(**_fields(config)))

    async def _statistics(
        self, request: pb.ModelStatisticsRequest, call: Call
    ) -> pb.ModelStatisticsResponse:
        versions = await self._administration.statistics(request.name, request.version)
        return pb.ModelStatisticsResponse(
            model_stats=[pb.ModelStatistics(**_fields(counters)) for counters in versions]
        )

    async def _index(
        self, request: pb.RepositoryIndexRequest, call: Call
    ) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name,
                    version=entry.version,
                    state="READY" if entry.ready else "UNAVAILABLE",
                    reason=entry.reason,
                )
                for entry in await self._administration.index(request.ready)
            ]
        )

    async def _load(
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        parameters = parameters_of(request.parameters)
        await self._administration.load_model(request.model_name, parameters)
        return pb.RepositoryModelLoadResponse()

    async def _unload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        await self._administration.unload_model(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _log(self, request: pb.LogSettingsRequest, call: Call) -> pb.LogSettingsResponse:
        changes: dict[str, object] = {}
        for name, field in request.settings.items():
            choice = field.WhichOneof("parameter_choice")
            changes[name] = getattr(field, choice) if choice else None
        if changes:
            call.require("admin")
        response = pb.LogSettingsResponse()
        for name, value in (await self._administration.change_log_settings(changes)).items():
            setting = response.settings[name]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return response

    async def _trace(self, request: pb.TraceSettingRequest, call: Call) -> pb.TraceSettingResponse:
        changes = {name: list(setting.value) for name, setting in request.settings.items()}
        if changes:
            call.require("admin")
        response = pb.TraceSettingResponse()
        settings = self._administration.trace_settings(changes, request.model_name)
        for name, value in settings.items():
            response.settings[name].value.extend([value] if isinstance(value, str) else value)
        return response

    async def _status(
        self, request: pb.SystemSharedMemoryStatusRequest, call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        status = pb.SystemSharedMemoryStatusResponse.RegionStatus
        regions = self._administration.regions(request.name)
        return pb.SystemSharedMemoryStatusResponse(
            regions={region.name: status(**region._asdict()) for region in regions}
        )

    async def _register(
        self, request: pb.SystemSharedMemoryRegisterRequest, call: Call
    ) -> pb.SystemSharedMemoryRegisterResponse:
        await self._administration.register_region(
            SharedRegion(
                name=request.name,
                key=request.key,
                offset=request.offset,
                byte_size=request.byte_size,
            )
        )
        return pb.SystemSharedMemoryRegisterResponse()

    async def _unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        await self._administration.unregister_region(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest, call: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        self._administration.cuda_regions(request.name)
        return pb.CudaSharedMemoryStatusResponse()

    async def _cuda_register(
        self, request: pb.CudaSharedMemoryRegisterRequest, call: Call
    ) -> pb.CudaSharedMemoryRegisterResponse:
        self._administration.register_cuda_region()
        return pb.CudaSharedMemoryRegisterResponse()

    async def _cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, call: Call
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()  # no region is ever registered


def _fields(values: object) -> dict[str, Any]:
    """A typed dictionary as the arguments of a message.

    protobuf accepts dictionaries for messages and names for enums, which its stubs do not know.
    """
    return cast(dict[str, Any], values)


def _check_repository(name: str) -> None:
    if name:
        raise InvalidArgument(
            "repository_name: this server has one repository, which is not named "
            f"'{excerpt(name)}'."
        )
