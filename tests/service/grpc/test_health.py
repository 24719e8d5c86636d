"""The health service, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2 as pb

from service.core.errors import NotFound
from service.grpc.answering import Call, Streaming, Unary
from service.grpc.health import DESCRIPTOR, Health

State = pb.HealthCheckResponse


def check(health: Health, name: str) -> int:
    method = health.methods()["Check"]
    assert isinstance(method, Unary)
    answer: Any = asyncio.run(method.handler(pb.HealthCheckRequest(service=name), Call(None)))
    return int(answer.status)


def watch(health: Health, name: str) -> AsyncIterator[Any]:
    async def requests() -> AsyncIterator[pb.HealthCheckRequest]:
        yield pb.HealthCheckRequest(service=name)

    method = health.methods()["Watch"]
    assert isinstance(method, Streaming)
    return method.handler(requests())


def test_every_method_of_the_proto_has_a_handler() -> None:
    assert {method.name for method in DESCRIPTOR.methods} <= Health().methods().keys()


def test_check_reports_the_published_state() -> None:
    health = Health()
    health.publish({"": True, "slow": False})
    assert check(health, "") == State.SERVING
    assert check(health, "slow") == State.NOT_SERVING
    with pytest.raises(NotFound, match="'other'"):
        check(health, "other")


def test_a_service_that_is_missing_from_an_update_is_not_serving() -> None:
    health = Health()
    health.publish({"": True, "model": True})
    health.publish({"": True})
    assert check(health, "model") == State.NOT_SERVING
    health.publish({"": True, "model": True})
    assert check(health, "model") == State.SERVING


def test_watch_reports_every_change_and_ends_when_stopped() -> None:
    async def body() -> list[int]:
        health = Health()
        answers = watch(health, "model")
        states = [(await anext(answers)).status]
        for ready in (True, False, True):
            health.publish({"model": ready})
            states.append((await anext(answers)).status)
        health.stop()
        states += [answer.status async for answer in answers]
        return states

    assert asyncio.run(body()) == [
        State.SERVICE_UNKNOWN,
        State.SERVING,
        State.NOT_SERVING,
        State.SERVING,
        State.NOT_SERVING,
    ]


def test_an_unchanged_state_is_not_reported_again() -> None:
    async def body() -> None:
        health = Health()
        health.publish({"model": True})
        answers = watch(health, "model")
        assert (await anext(answers)).status == State.SERVING
        following = asyncio.ensure_future(anext(answers))
        for _ in range(3):
            health.publish({"model": True})
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not following.done()
        health.publish({"model": False})
        assert (await following).status == State.NOT_SERVING

    asyncio.run(body())
