"""More requests than a model can answer, on a real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import grpc
import pytest

from service.stubs.digits.v1 import digits_pb2
from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.onnx_models import publish_slow_model

PREDICT = "/digits.v1.DigitClassifier/Predict"
AT_ONCE = 200


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def post(server: Server, images: int, times: int = 1) -> list[Answer]:
    """Classify blank images, several times on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    answers = []
    for _ in range(times):
        body = bytes(784 * images)
        writer.write(
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/octet-stream\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(re.split(": ?", line.lower(), maxsplit=1) for line in head[1:] if line)
        content = await reader.readexactly(int(headers["content-length"]))
        answers.append(Answer(int(head[0].split()[1]), headers, content))
    writer.close()
    return answers


def shed(server: Server, reason: str) -> int:
    line = f'mnist_shed_requests_total{{model="mnist",reason="{reason}",version="1"}} '
    (value,) = [
        text.removeprefix(line)
        for text in server.get("/metrics")[1].decode().splitlines()
        if text.startswith(line)
    ]
    return int(float(value))


@pytest.fixture(scope="module")
def slow(start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Some hundred milliseconds per request, and a queue of a tenth of a second."""
    models = tmp_path_factory.mktemp("models")
    publish_slow_model(models, size=256)
    return start_server(models, max_batch_size=1, max_queue_seconds=0.1, fast_grpc=True)


def test_what_would_wait_too_long_is_refused_at_once_over_http(slow: Server) -> None:
    async def flood() -> list[Answer]:
        await post(slow, 1, times=3)  # so that the time of a run is known
        connections = await asyncio.gather(*(post(slow, 1, times=2) for _ in range(AT_ONCE)))
        return [answer for answers in connections for answer in answers]

    before = shed(slow, "time")
    answers = asyncio.run(flood())
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 503}
    refused = [answer for answer in answers if answer.status == 503]
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert "connection" not in answer.headers
        sentence = json.loads(answer.body)["error"]
        assert "(max_queue_seconds)" in sentence
        assert "the expected wait is " in sentence
    assert shed(slow, "time") - before == len(refused)
    lines = [json.loads(line) for line in slow.log.read_text().splitlines()]
    lines = [line for line in lines if line["logger"] == "service.requests"]
    # Ten per second and one more for what was left out; the rest is counted.
    slow.wait_until(lambda: '"left_out": ' in slow.log.read_text())
    assert len(lines) < len(refused)
    assert slow.get("/v2/health/ready")[0] == 200
    slow.wait_until(lambda: asyncio.run(post(slow, 1))[0].status == 200)


def test_what_would_wait_too_long_is_refused_at_once_over_grpc(slow: Server) -> None:
    request = digits_pb2.PredictRequest(pixels=bytes(784)).SerializeToString()

    async def flood() -> list[grpc.aio.AioRpcError | None]:
        async with grpc.aio.insecure_channel(slow.grpc) as channel:
            predict = channel.unary_unary(PREDICT)

            async def once() -> grpc.aio.AioRpcError | None:
                try:
                    await predict(request)
                except grpc.aio.AioRpcError as error:
                    return error
                return None

            for _ in range(3):
                await once()
            return await asyncio.gather(*(once() for _ in range(AT_ONCE)))

    errors = asyncio.run(flood())
    refused = [error for error in errors if error is not None]
    assert 0 < len(refused) < AT_ONCE
    for error in refused:
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "(max_queue_seconds)" in (error.details() or "")
        pushback = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
        assert int(pushback) >= 1000


def test_what_cannot_be_answered_before_its_timeout_is_refused_at_once(slow: Server) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
    body = json.dumps({"inputs": [tensor], "parameters": {"timeout": 1000}}).encode()  # 1 ms
    sentences: set[str] = set()

    async def keep_busy() -> None:
        while True:
            await post(slow, 1)

    async def ask() -> None:
        await post(slow, 1)
        busy = asyncio.create_task(keep_busy())
        async with asyncio.timeout(120):
            while not any(text.startswith("The deadline passes before") for text in sentences):
                status, answer = await asyncio.to_thread(
                    slow.request, "POST", "/v2/models/mnist/infer", body
                )
                # 504 if the model happens to be free.
                assert status in (503, 504)
                sentences.add(json.loads(answer)["error"])
        busy.cancel()

    before = shed(slow, "deadline")
    asyncio.run(ask())
    assert shed(slow, "deadline") > before


def test_a_large_request_neither_turns_others_away_nor_makes_them_wait_for_its_end(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(SHIPPED_MODELS)
    done: list[str] = []

    async def send(name: str, images: int) -> None:
        (answer,) = await post(server, images)
        assert answer.status == 200, answer.body
        assert len(json.loads(answer.body)["predictions"]) == images
        done.append(name)

    async def all_at_once() -> None:
        large = asyncio.create_task(send("large", 10_000))
        while not done:
            await asyncio.gather(*(send("small", 1) for _ in range(8)))
        await large

    asyncio.run(all_at_once())
    # The small ones that were sent during the large one did not wait for it.
    assert done.index("large") > 0
    assert done.count("small") >= 8
