from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InternalError, InvalidArgument, Overloaded
from service.core.trace import Trace
from service.observe.metrics import Metrics, exposition, flush
from service.observe.recorder import Attempt, RequestRecorder, Transport
from service.observe.traces import Traces

Work = Callable[[], Awaitable[None]]


def attempt(
    transport: Transport, operation: str, work: Work, log_requests: str = "all", code: str = ""
) -> None:
    async def main() -> None:
        recorder = RequestRecorder(Metrics(), log_requests)
        with Attempt(recorder, transport, operation, "the-id") as this:
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


class Body:
    """What a request holds."""


@pytest.mark.parametrize("kind", [Overloaded, ValueError, asyncio.CancelledError])
def test_a_request_that_fails_leaves_nothing_for_the_garbage_collection(
    kind: type[BaseException],
) -> None:
    bodies: list[weakref.ref[Body]] = []

    async def work() -> None:
        body = Body()
        bodies.append(weakref.ref(body))
        try:
            raise KeyError
        except KeyError:
            error = kind("wrong")  # which refers to this function, by its traceback and its context
            raise error from None

    async def main() -> None:
        with (
            contextlib.suppress(Overloaded, InternalError, asyncio.CancelledError),
            Attempt(RequestRecorder(Metrics(), "none"), "http", "cycle", "the-id"),
        ):
            await work()
        assert bodies[0]() is None

    gc.disable()
    logging.disable()  # caplog keeps records, and these keep the exception
    try:
        asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


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


class Flood:
    """Refuses requests at a time that the test sets."""

    def __init__(self, log_requests: str = "errors") -> None:
        self.now = 100.0
        self.recorder = RequestRecorder(Metrics(), log_requests, clock=lambda: self.now)

    def refuse(self, count: int, operation: str = "predict", transport: Transport = "http") -> None:
        for number in range(count):
            self.recorder.refused(transport, operation, f"{number}", Overloaded("Full."))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """Message and number of lines left out, of the log so far, which is emptied."""
    written = [(r.getMessage(), vars(r)["fields"].get("left_out", 0)) for r in caplog.records]
    caplog.clear()
    return written


def test_a_flood_of_errors_of_one_kind_is_ten_lines_per_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flood = Flood()
    flood.refuse(1000)
    assert lines(caplog) == [("Full.", 0)] * 10
    flood.refuse(1, operation="infer")
    flood.refuse(1, transport="grpc")
    assert lines(caplog) == [("Full.", 0)] * 2
    flood.now += 1.0
    flood.refuse(2)
    assert lines(caplog) == [("Full.", 990), ("Full.", 0)]


def test_what_was_left_out_is_logged_after_the_flood(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    flood = Flood()
    flood.refuse(1000)
    flood.recorder.log_left_out()
    assert len(lines(caplog)) == 10  # it is not over
    flood.now += 1.0
    flood.recorder.log_left_out()
    assert lines(caplog) == [("And 990 more in the last second.", 990)]
    flood.now += 1.0
    flood.recorder.log_left_out()
    assert lines(caplog) == []


@pytest.mark.parametrize(("log_requests", "count"), [("all", 1000), ("none", 0)])
def test_the_other_levels_have_no_limit(
    caplog: pytest.LogCaptureFixture, log_requests: str, count: int
) -> None:
    caplog.set_level(logging.INFO)
    Flood(log_requests).refuse(1000)
    assert len(lines(caplog)) == count


@pytest.mark.parametrize(("transport", "code"), [("http", "503"), ("grpc", "UNAVAILABLE")])
def test_requests_that_are_refused_early_are_counted_like_others(
    transport: Transport, code: str
) -> None:
    Flood("none").refuse(7, operation="early", transport=transport)
    assert count_of(transport, "early", code) == 7


def test_tracebacks_have_no_limit(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        recorder = RequestRecorder(Metrics(), "errors")
        for _ in range(30):
            with pytest.raises(InternalError), Attempt(recorder, "http", "buggy", "the-id"):
                raise ValueError("why")

    asyncio.run(main())
    assert len(caplog.records) == 30


def test_a_traced_request_has_its_trace_in_its_line_beside_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    traces = Traces(share=0, per_second=0)
    recorder = RequestRecorder(Metrics(), "all", traces=traces)

    async def main() -> None:
        trace = Trace(0xABC, 0)
        with Attempt(recorder, "http", "traced", "the-id", trace):
            pass
        with (
            pytest.raises(InternalError),
            Attempt(recorder, "grpc", "traced", "the-id", Trace(1, 0)),
        ):
            raise ValueError("why")
        with Attempt(recorder, "http", "traced", "the-id"):
            pass
        assert [trace.code for trace in traces.ended] == ["200", "INTERNAL"]
        assert trace.ended >= trace.began

    asyncio.run(main())
    one, other, neither = [list(vars(record)["fields"].items()) for record in caplog.records]
    assert one[:2] == [("request_id", "the-id"), ("trace_id", f"{0xABC:032x}")]
    assert other[1] == ("trace_id", f"{1:032x}")
    assert "trace_id" not in dict(neither)


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
