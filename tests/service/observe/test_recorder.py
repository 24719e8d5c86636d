from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InternalError, InvalidArgument, Overloaded
from service.observe.metrics import Metrics, exposition, flush
from service.observe.recorder import Attempt, RequestRecorder, Transport

Work = Callable[[], Awaitable[None]]


def attempt(
    transport: Transport, operation: str, work: Work, log_requests: str = "all", code: str = ""
) -> None:
    async def main() -> None:
        recorder = RequestRecorder(Metrics(), log_requests)
        async with Attempt(recorder, transport, operation, "the-id") as this:
            await work()
            this.code = code or this.code

    asyncio.run(main())


def count_of(transport: str, operation: str, code: str) -> float:
    flush()
    labels = f'code="{code}",operation="{operation}",transport="{transport}"'
    for line in exposition().decode().splitlines():
        if line.startswith("mnist_request_seconds_count{" + labels):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


async def nothing() -> None:
    pass


def raising(error: BaseException) -> Work:
    async def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("transport", "error", "code"),
    [
        ("http", None, "200"),
        ("grpc", None, "OK"),
        ("http", InvalidArgument("wrong"), "400"),
        ("grpc", InvalidArgument("wrong"), "INVALID_ARGUMENT"),
        ("http", Overloaded("full"), "503"),
        ("grpc", Overloaded("full"), "UNAVAILABLE"),
        ("http", KeyError("oops"), "500"),
        ("grpc", KeyError("oops"), "INTERNAL"),
        ("http", asyncio.CancelledError(), "499"),
        ("grpc", asyncio.CancelledError(), "CANCELLED"),
    ],
)
def test_every_end_is_counted_under_its_code(
    transport: Transport, error: BaseException | None, code: str
) -> None:
    operation = f"end_{transport}_{code}".lower()
    work = nothing if error is None else raising(error)
    expected: Any = (type(error), InternalError) if error is not None else ()
    try:
        attempt(transport, operation, work)
        assert error is None
    except expected:
        pass
    assert count_of(transport, operation, code) == 1


def test_a_handlers_own_status_is_counted() -> None:
    attempt("http", "unready", nothing, code="503")
    assert count_of("http", "unready", "503") == 1


def test_an_unexpected_error_is_hidden_from_the_client_and_kept_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InternalError) as raised:
        attempt("http", "secret", raising(ValueError("the secret")))
    assert "the-id" in raised.value.message
    assert "secret" not in raised.value.message
    assert isinstance(raised.value.__cause__, ValueError)
    assert "the secret" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("log_requests", ["all", "errors", "none"])
def test_an_unexpected_error_is_one_record_whatever_requests_are_logged(
    caplog: pytest.LogCaptureFixture, log_requests: str
) -> None:
    with pytest.raises(InternalError):
        attempt("grpc", "failing", raising(ValueError("why")), log_requests)
    (entry,) = caplog.records
    assert entry.levelname == "ERROR"
    assert entry.exc_info is not None
    assert vars(entry)["fields"]["request_id"] == "the-id"
    assert vars(entry)["fields"]["code"] == "INTERNAL"


def test_a_known_error_passes_unchanged() -> None:
    error = InvalidArgument("image: is wrong.")
    with pytest.raises(InvalidArgument) as raised:
        attempt("grpc", "known", raising(error))
    assert raised.value is error


@pytest.mark.parametrize(
    ("log_requests", "logged"), [("all", [True, True]), ("errors", [False, True]), ("none", [])]
)
def test_the_log_has_the_requests_that_the_settings_ask_for(
    caplog: pytest.LogCaptureFixture, log_requests: str, logged: list[bool]
) -> None:
    caplog.set_level(logging.INFO)
    attempt("http", "logged", nothing, log_requests)
    with pytest.raises(InvalidArgument):
        attempt("http", "logged", raising(InvalidArgument("wrong")), log_requests)
    codes = [record.fields["code"] for record in caplog.records if hasattr(record, "fields")]
    assert codes == [
        code for code, is_logged in zip(("200", "400"), logged, strict=False) if is_logged
    ]


@given(st.text(max_size=200))
def test_only_safe_ids_of_clients_are_kept(proposal: str) -> None:
    request_id = RequestRecorder(Metrics()).request_id(proposal)
    assert request_id.isascii()
    assert request_id.isprintable()
    assert 0 < len(request_id) <= 128
    assert " " not in request_id
    if proposal.isascii() and proposal.isalnum() and len(proposal) <= 128:
        assert request_id == proposal


def test_ids_are_unique_over_recorders() -> None:
    recorders = [RequestRecorder(Metrics()) for _ in range(2)]
    ids = [recorder.request_id(None) for recorder in recorders for _ in range(1000)]
    assert len(set(ids)) == 2000
