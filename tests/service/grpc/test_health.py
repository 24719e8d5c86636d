from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2 as pb

from service.core.errors import NotFound
from service.grpc.health import Health

SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


def check(health: Health, service: str) -> int:
    handler: Any = health.methods()["Check"].handler
    return int(asyncio.run(handler(pb.HealthCheckRequest(service=service), None)).status)


def watch(health: Health, service: str) -> AsyncIterator[Any]:
    async def requests() -> AsyncIterator[Any]:
        yield pb.HealthCheckRequest(service=service)

    handler: Any = health.methods()["Watch"].handler
    return handler(requests())


def test_published_services_are_checked_by_name() -> None:
    health = Health()
    health.publish({"": True, "m": False})
    assert (check(health, ""), check(health, "m")) == (SERVING, NOT_SERVING)
    with pytest.raises(NotFound, match="'none'"):
        check(health, "none")


def test_service_that_is_no_longer_published_is_not_serving() -> None:
    health = Health()
    health.publish({"m": True})
    health.publish({})
    assert check(health, "m") == NOT_SERVING


def test_watch_reports_changes_only_and_ends_at_stop() -> None:
    async def scenario() -> None:
        health = Health()
        states = watch(health, "m")
        assert (await anext(states)).status == UNKNOWN
        following = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)
        health.publish({"other": True})
        for _ in range(5):
            await asyncio.sleep(0)
        assert not following.done()
        health.publish({"m": True})
        assert (await following).status == SERVING
        following = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)
        health.stop()
        assert (await following).status == NOT_SERVING
        assert [state async for state in states] == []

    asyncio.run(scenario())
