from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from service.core.errors import (
    Forbidden,
    InvalidArgument,
    ModelNotFound,
    NotFound,
    ServiceError,
    Unavailable,
    Unimplemented,
)
from service.http import administration
from service.http.administration import CUDA_MEMORY, SYSTEM_MEMORY
from service.http.message import Handler, HttpRequest
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations

pytestmark = pytest.mark.usefixtures("root_level")


def request_of(body: Any = None, **headers: str) -> HttpRequest:
    return HttpRequest(
        method="POST",
        path="/",
        header=headers.get,
        body=b"" if body is None else orjson.dumps(body),
    )


async def call(
    operations: Operations,
    handler: Handler,
    *path_parameters: str,
    body: Any = None,
    **headers: str,
) -> Any:
    """The JSON that a handler answers with."""
    response = await handler(
        operations.administration, request_of(body, **headers), *path_parameters
    )
    assert response.status == 200
    return orjson.loads(response.body)


def test_configuration_and_statistics_are_json(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        await operations.administration.start()
        config = await call(operations, administration.model_config, "linear")
        assert (config["name"], config["input"][0]["dims"]) == ("linear", [784])
        for path_parameters in ((), ("linear",), ("linear", "1")):
            answer = await call(operations, administration.statistics, *path_parameters)
            (model,) = answer["model_stats"]
            assert (model["name"], model["version"]) == ("linear", "1")
        for handler in (administration.model_config, administration.statistics):
            with pytest.raises(ModelNotFound):
                await call(operations, handler, "none")

    run_with_operations(tmp_path, scenario)


def test_the_card_is_the_model_json_of_the_version(tmp_path: Path) -> None:
    card = {"labels": ["a"], "recipe": {"name": "fast"}}
    path = publish_linear(tmp_path, card=card).with_name("model.json")

    async def scenario(operations: Operations) -> None:
        for names in (("linear",), ("linear", "1")):
            assert await call(operations, administration.model_card, *names) == card
        for names in (("none",), ("linear", "3")):
            with pytest.raises(ModelNotFound):
                await call(operations, administration.model_card, *names)
        path.write_bytes(b" " * (16 * 1024 * 1024 + 1))
        with pytest.raises(Unavailable, match=r"^model\.json of version 1 .* 1048576 bytes"):
            await call(operations, administration.model_card, "linear")
        path.unlink()
        assert await call(operations, administration.model_card, "linear") == {}

    run_with_operations(tmp_path, scenario)


def test_models_are_unloaded_and_loaded(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def scenario(operations: Operations) -> None:
        async def states(**body: bool) -> list[tuple[str, str, str]]:
            index = await call(operations, administration.index, body=body)
            return [(model["name"], model["version"], model["state"]) for model in index]

        await operations.administration.start()
        assert await states() == await states(ready=True) == [("linear", "1", "READY")]
        assert await call(operations, administration.unload, "linear") == {}
        assert await states() == [("linear", "1", "UNAVAILABLE")]
        assert await states(ready=True) == []
        assert await call(operations, administration.load, "linear") == {}
        assert await states() == [("linear", "1", "READY")]
        body = {"parameters": {"config": "{}"}}
        with pytest.raises(Unimplemented, match="config"):
            await call(operations, administration.load, "linear", body=body)

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("handler", "path_parameters", "body", "message"),
    [
        (administration.index, [], {"ready": 1}, "ready: must be of type bool"),
        (administration.load, ["linear"], {"parameters": []}, "parameters: must be of type dict"),
        (administration.unload, ["linear"], {"parameters": []}, "parameters: must be of type dict"),
        (administration.change_log_settings, [], [], "JSON object"),
        (SYSTEM_MEMORY.register, ["r"], {"key": 1}, "key: must be of type str"),
        (SYSTEM_MEMORY.register, ["r"], {"offset": 0.5}, "offset: must be of type int"),
        (SYSTEM_MEMORY.register, ["r"], {"byte_size": True}, "byte_size: must be of type int"),
    ],
)
def test_field_of_the_wrong_type_is_rejected_by_name(
    tmp_path: Path, handler: Handler, path_parameters: list[str], body: Any, message: str
) -> None:
    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match=message):
            await call(operations, handler, *path_parameters, body=body)

    run_with_operations(tmp_path, scenario)


CHANGES = [
    pytest.param(administration.load, ["linear"], id="load"),
    pytest.param(administration.unload, ["linear"], id="unload"),
    pytest.param(administration.change_log_settings, [], id="logging"),
    pytest.param(SYSTEM_MEMORY.register, ["r"], id="register"),
    pytest.param(SYSTEM_MEMORY.unregister, ["r"], id="unregister"),
]


@pytest.mark.parametrize(("handler", "path_parameters"), CHANGES)
def test_change_by_another_name_of_the_server_is_forbidden(
    tmp_path: Path, handler: Handler, path_parameters: list[str]
) -> None:
    async def scenario(operations: Operations) -> None:
        with pytest.raises(Forbidden, match=r"evil\.example"):
            await call(operations, handler, *path_parameters, host="evil.example:8000")

    run_with_operations(tmp_path, scenario)


def test_log_settings_change_one_at_a_time(tmp_path: Path) -> None:
    async def scenario(operations: Operations) -> None:
        await operations.administration.start()
        before = await call(operations, administration.log_settings)
        assert (before["log_verbose_level"], before["log_info"]) == (0, True)
        changed = await call(
            operations, administration.change_log_settings, body={"log_verbose_level": 1}
        )
        assert changed == before | {"log_verbose_level": 1}
        assert await call(operations, administration.log_settings) == changed

    run_with_operations(tmp_path, scenario)


def test_trace_settings_are_off_and_stay_off(tmp_path: Path) -> None:
    async def scenario(operations: Operations) -> None:
        settings = await call(operations, administration.trace_settings)
        assert settings["trace_level"] == ["OFF"]
        change = administration.change_trace_settings
        assert await call(operations, change, body={"trace_level": ["OFF"]}) == settings
        with pytest.raises(Unimplemented, match="trace_level"):
            await call(operations, change, body={"trace_level": ["TIMESTAMPS"]})

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("handler", "path_parameters", "error"),
    [
        (SYSTEM_MEMORY.status, ["r"], NotFound),
        (CUDA_MEMORY.status, ["r"], NotFound),
        (CUDA_MEMORY.register, ["r"], Unimplemented),
    ],
)
def test_memory_that_cannot_be_used_is_an_error(
    tmp_path: Path, handler: Handler, path_parameters: list[str], error: type[ServiceError]
) -> None:
    async def scenario(operations: Operations) -> None:
        with pytest.raises(error):
            await call(operations, handler, *path_parameters)

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize("handlers", [SYSTEM_MEMORY, CUDA_MEMORY], ids=["system", "cuda"])
def test_server_without_shared_memory_has_no_regions(
    tmp_path: Path, handlers: administration.MemoryHandlers
) -> None:
    async def scenario(operations: Operations) -> None:
        await operations.administration.start()
        assert await call(operations, handlers.status) == []
        assert await call(operations, handlers.unregister) == {}
        assert await call(operations, handlers.unregister, "r") == {}

    run_with_operations(tmp_path, scenario)
