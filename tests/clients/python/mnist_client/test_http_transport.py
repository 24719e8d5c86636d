"""HTTP against a server that answers as it is told: errors, Retry-After, deadlines, TLS, keys."""

from __future__ import annotations

import gzip
import re
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest
from mnist_client import (
    TLS,
    AccessDenied,
    Client,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Retries,
    ServerError,
    UnexpectedAnswer,
    Unreachable,
)
from mnist_client.calls import Predict, Read
from mnist_client.images import payload_of

from tests.clients.python.calling import Calling
from tests.clients.python.certificates import Certificates
from tests.clients.python.scripted import BODY, Reply, Scripted, http

IMAGE = bytes(784)
FAST = Retries(first_wait=0.01)
BUSY = Reply(503, b'{"error":"The queue is full."}', (("retry-after", "1"),))


def test_what_is_sent_and_what_comes_back(calling: Calling) -> None:
    headers = ("x-request-id", "id-1"), ("server-timing", "picture;dur=1.5, model;dur=2.25")
    with http(Reply(headers=headers)) as server:
        options = {"model": "mnist", "of_call": {"explain": True}, "bearer_key": "secret"}
        prediction = calling(server.address, "predict", IMAGE, **options)
    (asked,) = server.asked
    assert re.fullmatch(r"/predict\?model=mnist&explain=true&timeout=(30|29\.\d+)", asked.path)
    assert asked.body == IMAGE
    assert asked.headers["content-type"] == "application/octet-stream"
    assert asked.headers["authorization"] == "Bearer secret"
    assert (prediction.digit, prediction.probabilities[7]) == (7, 1)
    assert (prediction.prediction_set, prediction.accepted) == ((7,), True)
    assert (prediction.model_name, prediction.model_version) == ("m", "3")
    assert prediction.request_id == "id-1"
    assert (prediction.timings.picture, prediction.timings.model) == (1.5, 2.25)
    assert prediction.timings.call > 0


def test_a_path_in_the_address_precedes_those_of_the_routes(calling: Calling) -> None:
    with http(Reply()) as server:
        calling(f"{server.address}/digits/", "predict", IMAGE)
    assert server.asked[0].path.startswith("/digits/predict?")


@pytest.mark.parametrize(("timeout", "sent"), [(1_000_000, "86400"), (1e-9, "0.001")])
def test_the_server_is_told_a_timeout_that_it_accepts(timeout: float, sent: str) -> None:
    for call in (Predict((payload_of(IMAGE),), "", ""), Read(payload_of(IMAGE), "", "")):
        assert call.http_request(timeout).path.endswith(f"?timeout={sent}")


def test_a_full_server_is_asked_again_after_the_time_that_it_names(calling: Calling) -> None:
    with http(BUSY, Reply()) as server:
        assert calling(server.address, "predict", IMAGE, retries=FAST).digit == 7
    first, second = server.asked
    assert second.at - first.at >= 1.0


def test_a_date_says_when_as_well(calling: Calling) -> None:
    later = formatdate(time.time() + 3600, usegmt=True)
    busy = Reply(503, b"", (("retry-after", later),))
    with http(busy) as server, pytest.raises(Overloaded) as caught:
        calling(server.address, "predict", IMAGE, retries=FAST)
    assert caught.value.retry_after == pytest.approx(3600, abs=300)
    past = formatdate(0, usegmt=True)
    with http(Reply(503, b"", (("retry-after", past),)), Reply()) as server:
        assert calling(server.address, "predict", IMAGE, retries=FAST).digit == 7


@pytest.mark.parametrize(
    "nonsense", ["soon", "-1", "1e3", "Mon, 99 Foo 2026", f"Mon, 01 Jan 2030 00:00:00 +{'9' * 20}"]
)
def test_a_time_that_is_none_is_ignored(nonsense: str) -> None:
    with http(Reply(503, b"", (("retry-after", nonsense),)), Reply()) as server:
        assert Calling(False)(server.address, "predict", IMAGE, retries=FAST).digit == 7


def test_503_without_a_time_is_asked_again_with_backoff(calling: Calling) -> None:
    with http(Reply(503, b"no json"), Reply()) as server:
        assert calling(server.address, "predict", IMAGE, retries=FAST).digit == 7


def test_429_is_asked_again_only_if_the_server_says_when(calling: Calling) -> None:
    with http(Reply(429, b"", (("retry-after", "0"),)), Reply()) as server:
        assert calling(server.address, "predict", IMAGE, retries=FAST).digit == 7
    with http(Reply(429, b""), Reply()) as server:
        with pytest.raises(Overloaded, match="answers with status 429"):
            calling(server.address, "predict", IMAGE, retries=FAST)
        assert len(server.asked) == 1


def test_a_wait_past_the_deadline_is_not_begun(calling: Calling) -> None:
    with http(Reply(503, b"", (("retry-after", "3600"),)), Reply()) as server:
        began = time.monotonic()
        with pytest.raises(Overloaded) as caught:
            calling(server.address, "predict", IMAGE, timeout=120.0)
        assert time.monotonic() - began < 60
    assert caught.value.retry_after == 3600


def test_attempts_end_with_the_servers_own_words(calling: Calling) -> None:
    busy = Reply(503, b'{"error":"The queue is full."}', (("x-request-id", "id-1"),))
    with http(busy) as server, pytest.raises(Overloaded, match=r"The queue is full\.") as caught:
        calling(server.address, "predict", IMAGE, retries=Retries(3, first_wait=0.01))
    assert (caught.value.code, caught.value.request_id) == ("503", "id-1")
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [301, 400, 404, 500, 502])
def test_errors_that_would_repeat_are_not_repeated(calling: Calling, status: int) -> None:
    with http(Reply(status, b'{"error":"no"}', (("retry-after", "0"),)), Reply()) as server:
        with pytest.raises(ServerError, match="no"):
            calling(server.address, "predict", IMAGE, retries=FAST)
        assert len(server.asked) == 1


def test_a_connection_that_breaks_is_tried_again(calling: Calling) -> None:
    with http(Reply(drop=True), Reply()) as server:
        assert calling(server.address, "predict", IMAGE, retries=FAST).digit == 7
    with http(Reply(drop=True)) as server, pytest.raises(Unreachable, match="No HTTP answer from"):
        calling(server.address, "predict", IMAGE, retries=FAST)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    "slow", [Reply(delay=1.0), Reply(trickle=0.05)], ids=["late", "byte by byte"]
)
def test_the_timeout_ends_a_call_to_a_slow_server(calling: Calling, slow: Reply) -> None:
    with http(slow) as server, pytest.raises(DeadlineExceeded, match="within"):
        calling(server.address, "predict", IMAGE, timeout=0.4)


def test_waiting_for_a_connection_is_part_of_the_timeout() -> None:
    with (
        http(Reply(delay=2.0)) as server,
        Client(server.address, connections=1) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.predict, IMAGE)
        while not server.asked:
            time.sleep(0.01)
        with pytest.raises(DeadlineExceeded):
            client.predict(IMAGE, timeout=0.1)
        assert first.result().digit == 7
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"predictions":[{}]}', BODY.replace(b'"digit":7,', b"")]
)
def test_what_another_server_answers_is_called_so(calling: Calling, body: bytes) -> None:
    with http(Reply(body=body)) as server, pytest.raises(UnexpectedAnswer):
        calling(server.address, "predict", IMAGE)


def test_an_answer_above_the_limit_is_refused(calling: Calling) -> None:
    reply = Reply(body=gzip.compress(BODY), headers=(("content-encoding", "gzip"),))
    with http(reply) as server:
        limit = len(BODY)
        assert calling(server.address, "predict", IMAGE, max_answer_bytes=limit).digit == 7
        with pytest.raises(UnexpectedAnswer, match=r"more than \d+ bytes \(max_answer_bytes\)"):
            calling(server.address, "predict", IMAGE, max_answer_bytes=limit - 1)


def test_a_damaged_encoding_is_an_unexpected_answer(calling: Calling) -> None:
    damaged = Reply(headers=(("content-encoding", "gzip"),))
    with http(damaged) as server, pytest.raises(UnexpectedAnswer, match="cannot be read"):
        calling(server.address, "predict", IMAGE)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[Scripted]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca_file)
    context.load_cert_chain(*certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED
    with http(Reply(), tls=context) as server:
        yield server


def test_tls_checks_the_server_and_shows_the_clients_certificate(
    calling: Calling, secure: Scripted, certificates: Certificates
) -> None:
    tls = TLS(certificates.ca_file, *certificates.client)
    assert calling(secure.address, "predict", IMAGE, tls=tls).digit == 7


def test_a_server_that_nobody_vouches_for_is_refused_at_once(
    calling: Calling, secure: Scripted, certificates: Certificates
) -> None:
    for tls in (None, TLS(certificates.other_ca_file, *certificates.client)):
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            calling(secure.address, "predict", IMAGE, tls=tls)
        assert not caught.value.retryable
    assert secure.asked == []


def test_without_the_clients_certificate_the_server_refuses(
    calling: Calling, secure: Scripted, certificates: Certificates
) -> None:
    with pytest.raises(ClientError):
        calling(secure.address, "predict", IMAGE, tls=TLS(certificates.ca_file), retries=FAST)
    assert secure.asked == []


def test_a_key_that_the_server_refuses_is_not_sent_again(calling: Calling) -> None:
    with http(Reply(401, b'{"error":"The key is wrong."}')) as server:
        with pytest.raises(AccessDenied, match="The key is wrong"):
            calling(server.address, "predict", IMAGE, bearer_key="wrong")
        assert len(server.asked) == 1


def test_files_of_tls_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for file in ("empty.pem", "missing.pem"):
        with pytest.raises(OSError, match=r"X509|No such file"):
            Calling(False)("https://x", "health", tls=TLS(ca_file=tmp_path / file))


def test_an_error_nested_beyond_reason_is_one_of_a_proxy(calling: Calling) -> None:
    reply = Reply(400, b"[" * 200_000)
    with http(reply) as server, pytest.raises(InvalidRequest, match="answers with status 400"):
        calling(server.address, "predict", IMAGE)
