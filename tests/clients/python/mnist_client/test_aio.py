"""The asyncio client: what it has beyond the tests that both clients share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from mnist_client import AsyncClient, InvalidImage, NotFound

from tests.clients.python.scripted import Reply, http
from tests.conftest import ROOT, Mnist

SEVEN = str(ROOT / "docs" / "seven.png")


def test_asynchronous_iterables_are_predicted_in_their_order(address: str, mnist: Mnist) -> None:
    images, labels = mnist.images[:300], mnist.labels[:300]
    taken = 0

    async def camera() -> AsyncIterator[bytes]:
        nonlocal taken
        for image in images:
            await asyncio.sleep(0)
            taken += 1
            yield image.tobytes()

    async def main() -> int:
        right = count = 0
        async with AsyncClient(address) as client:
            async for prediction in client.predict_many(camera(), batch_size=16, concurrency=3):
                right += prediction.digit == labels[count]
                count += 1
                assert taken <= 16 * (count // 16 + 1 + 3)
        assert count == 300
        return right

    assert asyncio.run(main()) > 290


def test_an_error_takes_the_place_of_its_image(address: str) -> None:
    async def main() -> None:
        images = [SEVEN, "missing.png", bytes(784)]
        async with AsyncClient(address) as client:
            outcomes = [each async for each in client.predict_many(images, errors="return")]
            assert [isinstance(each, InvalidImage) for each in outcomes] == [False, True, False]
            read = [each async for each in client.read_many(images, errors="return")]
            assert [isinstance(each, InvalidImage) for each in read] == [False, True, False]
            for call in (client.predict("missing.png"), client.read("missing.png")):
                with pytest.raises(InvalidImage):
                    await call
            with pytest.raises(NotFound):
                await client.predict(SEVEN, model="letters")

    asyncio.run(main())


def test_many_calls_share_a_client(address: str) -> None:
    async def main() -> None:
        async with AsyncClient(address) as client:
            answers = await asyncio.gather(*(client.predict(SEVEN) for _ in range(60)))
            assert {answer.digit for answer in answers} == {7}
            assert (await client.health()).ready
            assert (await client.server_metadata()).name == "mnist-service"
            assert (await client.model_metadata("mnist")).platform == "onnxruntime_onnx"

    asyncio.run(main())


def test_an_iteration_that_is_left_early_leaves_no_task_behind() -> None:
    async def main() -> None:
        with http(Reply(), Reply(delay=1.0)) as server:
            async with AsyncClient(server.address) as client:
                predictions = client.predict_many([SEVEN] * 20, concurrency=4)
                await anext(predictions)
                await predictions.aclose()
                assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_server_that_is_gone_is_not_healthy() -> None:
    with http(Reply()) as server:
        address = server.address

    async def main() -> None:
        async with AsyncClient(address) as client:
            health = await client.health()
            assert (health.live, health.ready) == (False, False)

    asyncio.run(main())
