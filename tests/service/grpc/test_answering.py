"""Calls on bytes, without a connection. The messages are those of the health service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from grpc_health.v1 import health_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import (
    InternalError,
    InvalidArgument,
    NotFound,
    Overloaded,
    RequestTooLarge,
    ServiceError,
    Unavailable,
)
from service.core.trace import Trace
from service.grpc.answering import (
    MESSAGE_SLACK,
    Call,
    Calls,
    Method,
    Pipelined,
    Rpc,
    Streaming,
    Unary,
    rpcs,
)
from service.observe.metrics import Metrics
from service.observe.recorder import RequestRecorder
from service.observe.traces import Traces
from service.stubs.digits.v1 import digits_pb2
from service.stubs.inference import inference_pb2

LIMIT = 1000
AT_ONCE = 4
MALFORMED = b"\xff\xff"
HEALTH = pb.DESCRIPTOR.services_by_name["Health"]


def calls() -> Calls:
    return Calls(RequestRecorder(Metrics(), "none"), LIMIT, AT_ONCE)


def rpc(method: Method) -> Rpc:
    return Rpc(method, pb.HealthCheckRequest, pb.HealthCheckResponse)


def message(name: str) -> bytes:
    return pb.HealthCheckRequest(service=name).SerializeToString()


def answer_of(number: int) -> pb.HealthCheckResponse:
    return pb.HealthCheckResponse(status=number)


def status(content: bytes) -> int:
    return int(pb.HealthCheckResponse.FromString(content).status)


async def length_of_name(request: Any, call: Call) -> Any:
    """Answer with the length of the name, at most 3; "none" is not found, "bug" is a bug."""
    if request.service == "none":
        raise NotFound("There is no 'none'.")
    if request.service == "bug":
        raise ZeroDivisionError
    return answer_of(min(len(request.service), 3))


def refuse(request: Any, error: ServiceError) -> Any:
    return answer_of(0)


async def each_of(contents: Iterable[bytes]) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def streamed(
    served: Calls, method: Method, contents: AsyncIterator[bytes], *, ends_with_error: bool = False
) -> list[int]:
    answers = served.stream(rpc(method), contents, None, "id", ends_with_error)
    return [status(answer) async for answer in answers]


def unary(content: bytes, handler: Callable[..., Any] = length_of_name) -> int:
    method = rpc(Unary("test", handler))
    return status(asyncio.run(calls().answer(method, content, 7.0, "id", "caller")))


def test_message_is_answered_by_its_handler() -> None:
    async def handler(request: Any, call: Call) -> Any:
        assert (request.service, call) == ("ab", Call(7.0, "caller"))
        return answer_of(2)

    assert unary(message("ab"), handler) == 2


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (MALFORMED, InvalidArgument, "not a grpc.health.v1.HealthCheckRequest"),
        (bytes(LIMIT + MESSAGE_SLACK + 1), RequestTooLarge, r"1000 bytes \(max_request_bytes\)"),
        (message("none"), NotFound, "no 'none'"),
        (message("bug"), InternalError, "request id id"),
    ],
)
def test_failed_call_raises_one_of_the_services_errors(
    content: bytes, error: type[ServiceError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        unary(content)


def refusal_of(content: bytes, *, can_refuse: bool = True) -> tuple[str, str, Call] | None:
    """What a method is asked before its message is parsed."""
    asked: list[tuple[str, str, Call]] = []

    def refusal(model: str, version: str, call: Call) -> Overloaded | None:
        asked.append((model, version, call))
        return Overloaded.of("Too much", 1.0)

    method = Unary("test", length_of_name, refusal if can_refuse else None)
    error = calls().early_refusal(rpc(method), content, Call(7.0, "caller"), "id")
    assert (error is not None) == bool(asked)
    return asked[0] if asked else None


_NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=127)


@given(_NAMES, _NAMES, st.binary(max_size=300))
def test_the_model_of_a_message_is_known_before_it_is_parsed(
    name: str, version: str, pixels: bytes
) -> None:
    predict = digits_pb2.PredictRequest(model_name=name, model_version=version, pixels=pixels)
    infer = inference_pb2.ModelInferRequest(
        model_name=name, model_version=version, id="id", raw_input_contents=[pixels]
    )
    for request in (predict, infer):
        expected = (name, version, Call(7.0, "caller"))
        assert refusal_of(request.SerializeToString()) == expected


@given(st.binary(max_size=300))
def test_no_message_is_too_malformed_to_be_looked_at(content: bytes) -> None:
    refusal_of(content)


def test_a_model_with_a_long_name_is_not_looked_for() -> None:
    infer = inference_pb2.ModelInferRequest(model_name="m" * 128)
    assert refusal_of(infer.SerializeToString()) is None


def test_other_methods_are_never_refused_early() -> None:
    assert refusal_of(message("a"), can_refuse=False) is None


def test_message_may_exceed_the_request_limit_by_its_overhead() -> None:
    name = "x" * (LIMIT + MESSAGE_SLACK - 10)
    assert LIMIT < len(message(name)) <= LIMIT + MESSAGE_SLACK
    assert unary(message(name)) == 3


def test_failed_message_is_refused_and_the_stream_continues() -> None:
    contents = [message("a"), MALFORMED, message("none"), message("bug"), message("ab")]
    method = Pipelined("test", length_of_name, refuse)
    assert asyncio.run(streamed(calls(), method, each_of(contents))) == [1, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(MALFORMED, InvalidArgument), (message("none"), NotFound), (message("bug"), InternalError)],
)
def test_stream_that_ends_with_errors_raises_the_first_one(
    wrong: bytes, error: type[ServiceError]
) -> None:
    async def scenario() -> None:
        method = Pipelined("test", length_of_name, refuse)
        contents = each_of([message("a"), wrong, message("ab")])
        answers = calls().stream(rpc(method), contents, None, "id", ends_with_error=True)
        assert status(await anext(answers)) == 1
        with pytest.raises(error):
            await anext(answers)

    asyncio.run(scenario())


def test_answers_keep_the_order_of_their_messages() -> None:
    async def scenario() -> None:
        second_done = asyncio.Event()

        async def handler(request: Any, call: Call) -> Any:
            if request.service == "a":
                await second_done.wait()
            else:
                second_done.set()
            return answer_of(len(request.service))

        contents = each_of([message("a"), message("ab")])
        assert await streamed(calls(), Pipelined("test", handler, refuse), contents) == [1, 2]

    asyncio.run(scenario())


@pytest.mark.parametrize(("size", "together"), [(1, AT_ONCE), (LIMIT // 2, 2), (LIMIT, 1)])
def test_stream_works_on_a_bounded_number_of_bytes_and_messages(size: int, together: int) -> None:
    async def scenario() -> None:
        proceed = asyncio.Event()
        running = most = 0

        async def handler(request: Any, call: Call) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await proceed.wait()
            running -= 1
            return answer_of(1)

        contents = each_of([message("x" * size)] * 10)
        method = Pipelined("test", handler, refuse)
        answering = asyncio.ensure_future(streamed(calls(), method, contents))
        for _ in range(100):
            await asyncio.sleep(0)
        assert running == together
        proceed.set()
        assert await answering == [1] * 10
        assert most == together

    asyncio.run(scenario())


def test_closing_a_stream_cancels_the_messages_in_progress() -> None:
    async def scenario() -> None:
        cancelled = 0

        async def handler(request: Any, call: Call) -> Any:
            nonlocal cancelled
            if request.service == "first":
                return answer_of(1)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                raise

        contents = each_of([message("first"), message("second"), message("third")])
        method = Pipelined("test", handler, refuse)
        answers = calls().stream(rpc(method), contents, None, "id", ends_with_error=False)
        assert status(await anext(answers)) == 1
        for _ in range(10):
            await asyncio.sleep(0)
        await answers.aclose()
        for _ in range(10):
            await asyncio.sleep(0)
        assert cancelled == 2

    asyncio.run(scenario())


async def relayed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield answer_of(len(request.service))


METHODS = [Pipelined("test", length_of_name, refuse), Streaming("test", relayed)]


@pytest.mark.parametrize("method", METHODS)
def test_error_in_reading_ends_the_stream_after_the_answers_before_it(method: Method) -> None:
    async def contents() -> AsyncIterator[bytes]:
        yield message("a")
        raise RequestTooLarge("A message is too large.")

    async def scenario() -> None:
        answers = calls().stream(rpc(method), contents(), None, "id", ends_with_error=False)
        assert status(await anext(answers)) == 1
        with pytest.raises(RequestTooLarge, match="too large"):
            await anext(answers)

    asyncio.run(scenario())


@pytest.mark.parametrize("method", METHODS)
def test_stop_ends_an_idle_stream_as_unavailable(method: Method) -> None:
    async def contents() -> AsyncIterator[bytes]:
        yield message("a")
        await asyncio.Event().wait()

    async def scenario() -> None:
        served = calls()
        answers = served.stream(rpc(method), contents(), None, "id", ends_with_error=False)
        assert status(await anext(answers)) == 1
        served.stop()
        with pytest.raises(Unavailable, match="stopping"):
            await anext(answers)

    asyncio.run(scenario())


@pytest.mark.parametrize("method", METHODS)
def test_stream_that_starts_after_stop_reads_nothing(method: Method) -> None:
    async def scenario() -> None:
        served = calls()
        served.stop()
        with pytest.raises(Unavailable):
            await streamed(served, method, each_of([message("a")]))

    asyncio.run(scenario())


def test_malformed_message_ends_a_stream_of_any_other_method() -> None:
    with pytest.raises(InvalidArgument, match="HealthCheckRequest"):
        asyncio.run(streamed(calls(), METHODS[1], each_of([MALFORMED])))


def test_every_method_of_a_service_needs_a_handler() -> None:
    method = Unary("test", length_of_name)
    served = rpcs(HEALTH, dict.fromkeys(HEALTH.methods_by_name, method))
    assert "/grpc.health.v1.Health/Check" in served
    assert served["/grpc.health.v1.Health/Check"].request is pb.HealthCheckRequest
    with pytest.raises(KeyError):
        rpcs(HEALTH, {"Watch": method})


@pytest.mark.parametrize(
    ("names", "code", "codes"),
    [
        (["a", "ab"], "OK", ["OK", "OK"]),
        (["a", "none"], "NOT_FOUND", ["OK", "NOT_FOUND"]),
        (["bug"], "INTERNAL", ["INTERNAL"]),
    ],
)
def test_a_traced_stream_has_a_trace_per_message(
    names: list[str], code: str, codes: list[str]
) -> None:
    async def scenario() -> None:
        traces = Traces(share=0, per_second=10)
        served = Calls(RequestRecorder(Metrics(), "none", traces=traces), LIMIT, AT_ONCE)
        method = rpc(Pipelined("test", length_of_name, refuse))
        contents = each_of([message(name) for name in names])
        trace = Trace(7, 0)
        with contextlib.suppress(ServiceError):
            async for _ in served.stream(method, contents, None, "id", True, trace=trace):
                pass
        *messages, stream = traces.ended
        assert stream is trace
        assert (stream.code, [each.code for each in messages]) == (code, codes)
        assert {each.parent_id for each in messages} == {trace.span_id}

    asyncio.run(scenario())


def test_a_traced_stream_that_is_given_up_has_ended() -> None:
    async def scenario() -> None:
        traces = Traces(share=0, per_second=0)  # no message is traced
        served = Calls(RequestRecorder(Metrics(), "none", traces=traces), LIMIT, AT_ONCE)
        method = rpc(Pipelined("test", length_of_name, refuse))
        answers = served.stream(
            method, each_of([message("a")] * 3), None, "id", False, trace=Trace(7, 0)
        )
        await anext(answers)
        await answers.aclose()  # type: ignore[attr-defined]
        assert [trace.code for trace in traces.ended] == ["CANCELLED"]

    asyncio.run(scenario())
