"""gRPC against a server that answers as it is told: codes, pushback, deadlines, TLS, keys."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from mnist_client import (
    TLS,
    Client,
    DeadlineExceeded,
    Overloaded,
    Retries,
    ServerError,
    UnexpectedAnswer,
    Unreachable,
)
from mnist_client.stubs.digits.v1 import digits_pb2

from tests.clients.python.calling import Calling
from tests.clients.python.certificates import Certificates
from tests.clients.python.scripted import Reply, Scripted, over_grpc

IMAGE = bytes(784)
FAST = Retries(first_wait=0.01)
MESSAGE = digits_pb2.PredictResponse(
    model_name="m",
    model_version="3",
    predictions=[digits_pb2.Prediction(digit=7, probabilities=[0] * 10)],
).SerializeToString()
GOOD = Reply(body=MESSAGE, headers=(("x-request-id", "id-1"),))


def pushed_back(code: str, pushback: str) -> Reply:
    return Reply(code, headers=(("x-request-id", "id-0"), ("grpc-retry-pushback-ms", pushback)))


def test_what_is_sent_and_what_comes_back(calling: Calling) -> None:
    with over_grpc(GOOD) as server:
        options = {"model": "mnist", "bearer_key": "secret", "timeout": 40.0}
        prediction = calling(server.address, "predict", IMAGE, **options)
    (asked,) = server.asked
    request = digits_pb2.PredictRequest.FromString(asked.body)
    assert (request.model_name, request.pixels) == ("mnist", IMAGE)
    assert asked.headers["authorization"] == "Bearer secret"
    assert (prediction.digit, prediction.request_id) == (7, "id-1")
    # The server did not set them.
    assert (prediction.accepted, prediction.prediction_set) == (None, None)


def test_an_answer_above_the_limit_is_refused(calling: Calling) -> None:
    with over_grpc(Reply(body=bytes(2**20 + 1), headers=(("x-request-id", "id"),))) as server:
        with pytest.raises(UnexpectedAnswer, match="max_answer_bytes") as caught:
            calling(server.address, "predict", IMAGE, max_answer_bytes=2**20, retries=FAST)
        assert not caught.value.retryable
        assert len(server.asked) == 1


def test_the_server_gets_what_is_left_of_the_deadline(calling: Calling) -> None:
    with over_grpc(pushed_back("UNAVAILABLE", "1000"), GOOD) as server:
        calling(server.address, "predict", IMAGE, timeout=9.0)
    first, second = server.asked
    # gRPC rounds deadlines up, by less than a tenth.
    assert 0 < second.left < first.left - 0.5 < 9.5
    assert second.at - first.at >= 1.0


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_pushback_says_when_to_come_back(calling: Calling, code: str) -> None:
    with over_grpc(pushed_back(code, "5"), GOOD) as server:
        assert calling(server.address, "predict", IMAGE, retries=FAST).digit == 7


@pytest.mark.parametrize("pushback", ["-1", "never"])
def test_pushback_can_forbid_another_attempt(calling: Calling, pushback: str) -> None:
    with over_grpc(pushed_back("UNAVAILABLE", pushback), GOOD) as server:
        with pytest.raises(Overloaded):
            calling(server.address, "predict", IMAGE, retries=FAST)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"]
)
def test_errors_that_would_repeat_are_not_repeated(calling: Calling, code: str) -> None:
    with over_grpc(Reply(code, headers=(("x-request-id", "id-0"),)), GOOD) as server:
        with pytest.raises(ServerError, match="scripted") as caught:
            calling(server.address, "predict", IMAGE, retries=FAST)
        assert len(server.asked) == 1
    assert (caught.value.code, caught.value.request_id) == (code, "id-0")


def test_unavailable_of_a_proxy_is_tried_again(calling: Calling) -> None:
    with over_grpc(Reply("UNAVAILABLE"), GOOD) as server:
        assert calling(server.address, "predict", IMAGE, retries=FAST).digit == 7
    with over_grpc(Reply("UNAVAILABLE")) as server, pytest.raises(Unreachable):
        calling(server.address, "predict", IMAGE, retries=FAST)


def test_the_timeout_ends_a_call_to_a_slow_server(calling: Calling) -> None:
    late = Reply(body=MESSAGE, delay=1.0)
    with over_grpc(late) as server, pytest.raises(DeadlineExceeded, match="within"):
        calling(server.address, "predict", IMAGE, timeout=0.4)


@pytest.mark.parametrize("body", [b"", b"\xff\xff", b"seven"])
def test_what_another_server_answers_is_called_so(calling: Calling, body: bytes) -> None:
    with over_grpc(Reply(body=body)) as server, pytest.raises(UnexpectedAnswer):
        calling(server.address, "predict", IMAGE)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[Scripted]:
    certificate, key = certificates.server
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        certificates.ca_file.read_bytes(),
        require_client_auth=True,
    )
    with over_grpc(GOOD, credentials=credentials) as server:
        yield server


def test_tls_checks_the_server_and_shows_the_clients_certificate(
    calling: Calling, secure: Scripted, certificates: Certificates
) -> None:
    tls = TLS(certificates.ca_file, *certificates.client)
    assert calling(secure.address, "predict", IMAGE, tls=tls).digit == 7


def test_a_server_that_nobody_vouches_for_is_refused_at_once(
    calling: Calling, secure: Scripted, certificates: Certificates
) -> None:
    tls = TLS(certificates.other_ca_file, *certificates.client)
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED") as caught:
        calling(secure.address, "predict", IMAGE, tls=tls)
    assert not caught.value.retryable
    assert secure.asked == []


def test_without_grpcio_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)  # what import takes as missing
    with pytest.raises(ImportError, match=r"pip install 'mnist-client\[grpc\]'"):
        Client("grpc://127.0.0.1:8001")


def test_a_file_of_tls_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        Client("grpcs://127.0.0.1:8001", tls=TLS(tmp_path / "missing.pem"))


def test_a_connection_is_tried_as_often_as_calls_are(calling: Calling) -> None:
    with over_grpc(GOOD) as server:
        address = server.address
    began = time.monotonic()
    with pytest.raises(Unreachable, match="No gRPC answer from 127"):
        calling(address, "predict", IMAGE, retries=FAST, timeout=60.0)
    assert time.monotonic() - began < 30
