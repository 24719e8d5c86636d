"""The synchronous client: many images, many threads, defaults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mnist_client import Client, ClientError, InvalidImage, NotFound, Prediction, Unreachable

from tests.clients.python.calling import Calling
from tests.clients.python.many_threads import run
from tests.clients.python.scripted import BODY, Reply, http
from tests.conftest import ROOT, Mnist

SEVEN = str(ROOT / "docs" / "seven.png")


def test_many_images_are_predicted_in_their_order(address: str, mnist: Mnist) -> None:
    images, labels = mnist.images[:500], mnist.labels[:500]
    with Client(address) as client:
        digits = [each.digit for each in client.predict_many(images, batch_size=64)]
        mixed = list(client.predict_many([SEVEN, images[0], images[1], SEVEN, images[2]]))
    assert (np.array(digits) == labels).mean() > 0.98
    assert [each.digit for each in mixed] == [7, *labels[:2], 7, labels[2]]


def test_no_more_is_taken_from_an_iterable_than_is_under_way(address: str) -> None:
    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield bytes(784)

    with Client(address) as client:
        predictions = client.predict_many(images(), batch_size=8, concurrency=2)
        assert taken == 0
        for count, _ in enumerate(predictions, 1):
            # Two batches are under way beside the one whose predictions are returned.
            assert taken <= 8 * (count // 8 + 1 + 2)
    assert taken == count == 1000


def test_an_error_takes_the_place_of_its_image(address: str) -> None:
    images = [SEVEN, "missing.png", bytes(784), b"no image", SEVEN]
    with Client(address) as client:
        outcomes = list(client.predict_many(images, errors="return"))
        readings = list(client.read_many(images, errors="return"))
        assert [type(each) for each in outcomes] == [
            Prediction,
            InvalidImage,
            Prediction,
            InvalidImage,
            Prediction,
        ]
        assert [isinstance(each, ClientError) for each in readings] == [False, True] * 2 + [False]
        first = client.predict_many(images)
        assert next(first).digit == 7
        with pytest.raises(InvalidImage, match=r"missing\.png"):
            next(first)


def test_pictures_are_under_way_together() -> None:
    both = threading.Barrier(2, timeout=60)

    class Meeting(bytes):
        """A body that is sent only once two requests are there."""

        def __getitem__(self, key: object) -> bytes:
            both.wait()
            return BODY

    with http(Reply(body=Meeting(BODY))) as server, Client(server.address) as client:
        assert len(list(client.predict_many([SEVEN] * 4, concurrency=2))) == 4


def test_the_rest_is_not_asked_after_an_error_that_is_raised() -> None:
    with http(Reply(404, b'{"error":"no such model"}')) as server, Client(server.address) as client:
        with pytest.raises(NotFound):
            list(client.predict_many([SEVEN] * 100, concurrency=2))
        assert len(server.asked) < 10


def test_a_model_of_a_call_replaces_the_clients_and_its_version() -> None:
    with http(Reply()) as server, Client(server.address, model="a", version="3") as client:
        client.predict(bytes(784))
        client.predict(bytes(784), version="4")
        client.predict(bytes(784), model="b")
    paths = [asked.path.partition("&timeout=")[0] for asked in server.asked]
    assert paths == [
        "/predict?model=a&version=3",
        "/predict?model=a&version=4",
        "/predict?model=b",
    ]


def test_health_asks_once_and_says_why_not() -> None:
    body = b'{"ready":false,"reason":"The server is stopping.","failures":{}}'
    with http(Reply(503, body)) as server:
        with Client(server.address) as client:
            health = client.health()
        assert len(server.asked) == 1
        address = server.address
    assert (health.live, health.ready, health.reason) == (True, False, "The server is stopping.")
    with Client(address) as client:
        gone = client.health()
        assert (gone.live, gone.ready) == (False, False)
        assert "No HTTP answer from" in gone.reason
        with pytest.raises(Unreachable):
            client.predict(bytes(784))


def test_arguments_that_make_no_sense_are_refused() -> None:
    for options, problem in (
        ({"bearer_key": "two\nlines"}, "bearer_key"),
        ({"bearer_key": "a space "}, "bearer_key"),
        ({"bearer_key": ""}, "bearer_key"),
        ({"connections": 0}, "connections"),
        ({"max_answer_bytes": 0}, "max_answer_bytes"),
        ({"timeout": 0.0}, "timeout"),
    ):
        with pytest.raises(ValueError, match=problem):
            Client("http://x", **options)  # type: ignore[arg-type]
    with Client("http://x") as client:
        with pytest.raises(ValueError, match="name the model"):
            client.model_metadata()
        with pytest.raises(ValueError, match="concurrency"):
            client.predict_many([], concurrency=0)


def test_32_threads_share_a_client(address: str) -> None:
    outcome = run(address, threads=32, calls=25)
    assert outcome.errors == []
    assert outcome.answers == 32 * 25


def test_threads_predict_many_images_each_with_one_client(address: str) -> None:
    with Client(address) as client, ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(lambda: len(list(client.predict_many([bytes(784)] * 200)))) for _ in "1234"
        ]
        assert [each.result() for each in runs] == [200] * 4


def test_the_key_comes_from_the_environment_if_no_other_is_given(
    calling: Calling, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http(Reply()) as server:
        for value, options, sent in (
            ("", {}, None),
            ("of-the-environment", {}, "Bearer of-the-environment"),
            ("of-the-environment", {"bearer_key": "given"}, "Bearer given"),
        ):
            monkeypatch.setenv("MNIST_KEY", value)
            calling(server.address, "predict", bytes(784), **options)
            assert server.asked[-1].headers.get("authorization") == sent
    monkeypatch.setenv("MNIST_KEY", "secret\n")
    with pytest.raises(ValueError, match=r"^MNIST_KEY: is empty, or has characters") as caught:
        Client("http://x")
    assert "secret" not in str(caught.value)
