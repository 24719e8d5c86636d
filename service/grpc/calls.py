"""The functions through which every gRPC call is answered, whichever front it came by.

A front hands over a message as bytes and gets bytes or an error back. Services are tables of
handlers rather than generated servicers, so that a message is measured before it is parsed, and
that one that cannot be parsed is the caller's error (INVALID_ARGUMENT) and not ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from time import perf_counter
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.core.errors import (
    InternalError,
    InvalidArgument,
    RequestTooLarge,
    ServiceError,
    Unavailable,
)
from service.observe.requests import RequestRecorder

log = logging.getLogger(__name__)

# Answers a message, given its deadline in loop time (None if the caller set none).
Handler = Callable[[Any, float | None], Awaitable[Any]]
# What a message may have beside its tensor bytes before the limit of the request bites.
MESSAGE_SLACK = 64 * 1024


class Unary(NamedTuple):
    """A method with one answer to one message; `operation` is its name in metrics and logs."""

    operation: str
    handler: Handler


class Pipelined(NamedTuple):
    """A method of streams with one answer to each message, in their order.

    `refuse` makes the answer to a message that failed.
    """

    operation: str
    handler: Handler
    refuse: Callable[[Any, ServiceError], Any]


class Streaming(NamedTuple):
    """Any other method of streams: messages in, messages out."""

    operation: str
    handler: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]


Method = Unary | Pipelined | Streaming


class Rpc(NamedTuple):
    """A method with the classes of its messages."""

    method: Method
    request: Any
    response: Any


def rpcs(descriptor: ServiceDescriptor, methods: Mapping[str, Method]) -> dict[str, Rpc]:
    """The methods of a service by their paths; there must be one for each that it has."""
    return {
        f"/{descriptor.full_name}/{method.name}": Rpc(
            methods[method.name],
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
        )
        for method in descriptor.methods
    }


class Calls:
    """Answers calls. One for all fronts and services of a worker."""

    def __init__(
        self, recorder: RequestRecorder, max_request_bytes: int, max_stream_requests: int
    ) -> None:
        self.request_id = recorder.request_id
        self._recorder = recorder
        self._max_request_bytes = max_request_bytes
        self._max_stream_requests = max_stream_requests
        self._stopping = False
        self._reading: set[asyncio.Task[None]] = set()

    async def answer(
        self, rpc: Rpc, content: bytes, deadline: float | None, request_id: str
    ) -> bytes | ServiceError:
        """The answer to a unary call, or the error to end it with."""
        assert isinstance(rpc.method, Unary)
        request = self._parse(rpc, content)
        answer = await self._attempt(rpc.method, request, deadline, request_id)
        return (
            answer if isinstance(answer, ServiceError) else rpc.response.SerializeToString(answer)
        )

    async def stream(
        self,
        rpc: Rpc,
        contents: AsyncIterator[bytes],
        deadline: float | None,
        request_id: str,
        ends_with_error: bool,
    ) -> AsyncIterator[bytes]:
        """The answers to a stream. Raises the ServiceError to end it with.

        A message of a Pipelined method that fails has an answer that says so, and the stream goes
        on; with `ends_with_error` it ends instead.
        """
        method, serialize = rpc.method, rpc.response.SerializeToString
        if isinstance(method, Streaming):
            start, code, message = perf_counter(), "OK", ""
            try:
                async for answer in method.handler(self._whole(rpc, contents)):
                    yield serialize(answer)
            except ServiceError as error:
                code, message = error.grpc_code, error.message
                raise
            finally:
                self._recorder.finished("grpc", method.operation, request_id, code, start, message)
        else:
            assert isinstance(method, Pipelined)
            async for request, answer in self._pipeline(rpc, contents, deadline, request_id):
                if not isinstance(answer, ServiceError):
                    yield serialize(answer)
                elif ends_with_error:
                    raise answer
                else:
                    yield serialize(method.refuse(request, answer))
        if self._stopping:
            raise Unavailable("The server is stopping.")

    def stop(self) -> None:
        """Read no more messages of streams: each ends once what it has sent is answered."""
        self._stopping = True
        for reading in list(self._reading):
            reading.cancel()

    async def _pipeline(
        self, rpc: Rpc, contents: AsyncIterator[bytes], deadline: float | None, request_id: str
    ) -> AsyncIterator[tuple[Any, Any]]:
        """Each request with its answer, in order; several are worked on at a time."""
        room = _Room(self._max_stream_requests)
        answering: asyncio.Queue[tuple[Any, int, asyncio.Task[Any]] | None] = asyncio.Queue()
        assert isinstance(rpc.method, Pipelined)
        method = rpc.method

        async def read() -> None:
            async for content in contents:
                # Large messages count as several, so that all together hold what one may.
                share = len(content) * self._max_stream_requests // self._max_request_bytes
                size = min(max(share, 1), self._max_stream_requests)
                await room.take(size)
                request = self._parse(rpc, content)
                attempt = self._attempt(method, request, deadline, request_id)
                answering.put_nowait((request, size, asyncio.ensure_future(attempt)))

        reading = self._start_reading(read(), answering)
        try:
            while (item := await answering.get()) is not None:
                request, size, attempt = item
                answer = await attempt
                yield request, answer
                room.give(size)
            _raise_failure(reading)
        finally:
            reading.cancel()
            while not answering.empty():
                if (item := answering.get_nowait()) is not None:
                    item[2].cancel()

    async def _whole(self, rpc: Rpc, contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """The messages of a stream. Raises the error that is in the place of one."""
        read: asyncio.Queue[Any] = asyncio.Queue()
        room = _Room(1)

        async def relay() -> None:
            async for content in contents:
                await room.take(1)
                read.put_nowait(self._parse(rpc, content))

        reading = self._start_reading(relay(), read)
        try:
            while (request := await read.get()) is not None:
                room.give(1)
                if isinstance(request, ServiceError):
                    raise request
                yield request
            _raise_failure(reading)
        finally:
            reading.cancel()

    def _start_reading(
        self, work: Coroutine[Any, Any, None], read: asyncio.Queue[Any]
    ) -> asyncio.Task[None]:
        """Read a stream into a queue; None in it says that no more will come, whyever."""
        reading = asyncio.ensure_future(work)
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        # Not in a `finally` of the work: cancelled before its first step, it would never get there.
        reading.add_done_callback(lambda _: read.put_nowait(None))
        if self._stopping:
            reading.cancel()
        return reading

    async def _attempt(
        self, method: Unary | Pipelined, request: Any, deadline: float | None, request_id: str
    ) -> Any:
        """The handler's answer, or the error to answer with; recorded either way."""
        start = perf_counter()
        code, message = "OK", ""
        try:
            if isinstance(request, ServiceError):
                raise request
            return await method.handler(request, deadline)
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

    def _parse(self, rpc: Rpc, content: bytes) -> Any:
        """The message, or the error to answer."""
        if len(content) > self._max_request_bytes + MESSAGE_SLACK:
            return RequestTooLarge(
                f"The message is larger than {self._max_request_bytes} bytes (max_request_bytes)."
            )
        try:
            return rpc.request.FromString(content)
        except DecodeError:
            return InvalidArgument(f"The message is not a {rpc.request.DESCRIPTOR.full_name}.")


def _raise_failure(reading: asyncio.Task[None]) -> None:
    """Raise what ended the reading of a stream, such as a message that cannot be decompressed."""
    if not reading.cancelled() and (error := reading.exception()):
        raise error


class _Room:
    """How much more may be taken on; one waits for it at a time."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._given = asyncio.Event()

    async def take(self, size: int) -> None:
        while self._left < size:
            self._given.clear()
            await self._given.wait()
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size
        self._given.set()
