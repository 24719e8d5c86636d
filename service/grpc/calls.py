"""The two functions through which every gRPC call is answered: errors, deadline, limits, record.

Services are tables of handlers rather than generated servicers, so that a message is measured
before it is parsed, and that one that cannot be parsed is the caller's error (INVALID_ARGUMENT)
and not ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.core.errors import InternalError, InvalidArgument, RequestTooLarge, ServiceError
from service.observe.requests import RequestRecorder

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
# Answers a message, given its deadline in loop time (None if the caller set none).
Handler = Callable[[Any, float | None], Awaitable[Any]]
# What a message may have beside its tensor bytes before the limit of the request bites.
MESSAGE_SLACK = 64 * 1024


class Method(NamedTuple):
    """How a method is answered; `operation` is its name in metrics and logs.

    A method that streams has `refuse`, which makes the answer to a message that failed.
    """

    operation: str
    handler: Handler
    refuse: Callable[[Any, ServiceError], Any] | None = None


class Calls:
    """Answers calls by tables of methods. One for all services of a worker."""

    def __init__(
        self, recorder: RequestRecorder, max_request_bytes: int, max_stream_requests: int
    ) -> None:
        self._recorder = recorder
        self._max_request_bytes = max_request_bytes
        self._max_stream_requests = max_stream_requests

    def service(
        self, descriptor: ServiceDescriptor, methods: Mapping[str, Method]
    ) -> grpc.GenericRpcHandler:
        """The handler of a whole service; there must be a method for each that it has."""
        return grpc.method_handlers_generic_handler(
            descriptor.full_name,
            {
                method.name: self._rpc(
                    methods[method.name],
                    self._parser(GetMessageClass(method.input_type)),
                    GetMessageClass(method.output_type).SerializeToString,
                )
                for method in descriptor.methods
            },
        )

    def _rpc(
        self, method: Method, parse: Callable[[bytes], Any], serialize: Callable[[Any], bytes]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        if method.refuse is None:

            async def answer(request: Any, context: Context) -> Any:
                return await self._answer(method, request, context)

            return grpc.unary_unary_rpc_method_handler(answer, parse, serialize)

        async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async for response in self._stream(method, requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(stream, parse, serialize)

    def _parser(self, message: type[Any]) -> Callable[[bytes], Any]:
        most = self._max_request_bytes + MESSAGE_SLACK

        def parse(content: bytes) -> Any:
            """The message, or the error to answer: gRPC would call whatever is raised its own."""
            if len(content) > most:
                return RequestTooLarge(
                    f"The message is larger than {self._max_request_bytes} bytes "
                    "(max_request_bytes)."
                )
            try:
                return message.FromString(content)
            except DecodeError:
                return InvalidArgument(f"The message is not a {message.DESCRIPTOR.full_name}.")

        return parse

    async def _answer(self, method: Method, request: Any, context: Context) -> Any:
        """The answer to a unary call; abort it with the error's code if there is none.

        The call's id is the caller's x-request-id, or made up, and goes back in the trailing
        metadata.
        """
        request_id = self._request_id(context)
        answer = await self._attempt(method, request, context, request_id)
        if isinstance(answer, ServiceError):
            await _abort(context, answer)
        return answer

    async def _stream(
        self, method: Method, requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        """Answers in the order of the requests, several of which are worked on at a time.

        A request that fails has an answer that says so, and the stream goes on; a caller who sends
        the metadata `triton_grpc_error: true` has it end with the error's code instead.
        """
        request_id = self._request_id(context)
        ends = ("triton_grpc_error", "true") in ((k, v) for k, v in _metadata(context))
        room = asyncio.Semaphore(self._max_stream_requests)
        answering: asyncio.Queue[tuple[Any, asyncio.Task[Any]] | None] = asyncio.Queue()

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    attempt = self._attempt(method, request, context, request_id)
                    answering.put_nowait((request, asyncio.ensure_future(attempt)))
            finally:
                answering.put_nowait(None)

        reading = asyncio.ensure_future(read())
        try:
            while (item := await answering.get()) is not None:
                request, attempt = item
                answer = await attempt
                room.release()
                if isinstance(answer, ServiceError):
                    if ends:
                        await _abort(context, answer)
                    assert method.refuse is not None
                    answer = method.refuse(request, answer)
                yield answer
        finally:
            reading.cancel()
            while not answering.empty():
                if (item := answering.get_nowait()) is not None:
                    item[1].cancel()

    async def _attempt(
        self, method: Method, request: Any, context: Context, request_id: str
    ) -> Any:
        """The handler's answer, or the error to answer with; recorded either way."""
        start = perf_counter()
        code, message = "OK", ""
        try:
            if isinstance(request, ServiceError):
                raise request
            return await method.handler(request, _deadline(context))
        except ServiceError as error:
            code, message = error.grpc_code, error.message
            return error
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception:
            log.exception("Request %s failed.", request_id)
            code = "INTERNAL"
            message = f"Internal error; the server's log has it under request id {request_id}."
            return InternalError(message)
        finally:
            self._recorder.finished("grpc", method.operation, request_id, code, start, message)

    def _request_id(self, context: Context) -> str:
        wanted = next((str(v) for k, v in _metadata(context) if k == "x-request-id"), None)
        request_id = self._recorder.request_id(wanted)
        context.set_trailing_metadata((("x-request-id", request_id),))
        return request_id


def _metadata(context: Context) -> Any:
    return context.invocation_metadata() or ()


def _deadline(context: Context) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


async def _abort(context: Context, error: ServiceError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.grpc_code], error.message)
    raise AssertionError("abort always raises")
