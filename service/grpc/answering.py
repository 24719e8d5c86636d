"""The functions through which every gRPC call is answered, whichever front it came by.

A front hands over a message as bytes and gets bytes or an error back. Services are tables of
handlers rather than generated servicers, so that a message is measured before it is parsed, and
that one that cannot be parsed is the caller's error (INVALID_ARGUMENT) and not ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.core.errors import (
    InvalidArgument,
    RequestTooLarge,
    ServiceError,
    Unavailable,
)
from service.observe.recorder import Attempt, RequestRecorder

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
    ) -> bytes:
        """The answer to a unary call. Raises the ServiceError to end it with."""
        method = rpc.method
        assert isinstance(method, Unary)
        async with Attempt(self._recorder, "grpc", method.operation, request_id):
            answer = await method.handler(self._parse(rpc, content), deadline)
        serialized: bytes = rpc.response.SerializeToString(answer)
        return serialized

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
            async with Attempt(self._recorder, "grpc", method.operation, request_id):
                async for answer in method.handler(self._whole(rpc, contents)):
                    yield serialize(answer)
        else:
            assert isinstance(method, Pipelined)
            refuse = None if ends_with_error else method.refuse
            async for answer in self._pipeline(rpc, contents, deadline, request_id, refuse):
                yield serialize(answer)
        if self._stopping:
            raise Unavailable("The server is stopping.")

    def stop(self) -> None:
        """Read no more messages of streams: each ends once what it has sent is answered."""
        self._stopping = True
        for reading in list(self._reading):
            reading.cancel()

    async def _pipeline(
        self,
        rpc: Rpc,
        contents: AsyncIterator[bytes],
        deadline: float | None,
        request_id: str,
        refuse: Callable[[Any, ServiceError], Any] | None,
    ) -> AsyncIterator[Any]:
        """The answer to each message, in order; several are worked on at a time.

        `refuse` makes the answer to a message that failed; without it the failure is raised.
        """
        room = _Room(self._max_stream_requests)
        answering: asyncio.Queue[tuple[int, asyncio.Task[Any]] | None] = asyncio.Queue()
        method = rpc.method
        assert isinstance(method, Pipelined)

        async def attempt(content: bytes) -> Any:
            request = None
            try:
                async with Attempt(self._recorder, "grpc", method.operation, request_id):
                    request = self._parse(rpc, content)
                    return await method.handler(request, deadline)
            except ServiceError as error:
                if refuse is None:
                    raise
                return refuse(request, error)

        async def read() -> None:
            async for content in contents:
                # Large messages count as several, so that all together hold what one may.
                share = len(content) * self._max_stream_requests // self._max_request_bytes
                size = min(max(share, 1), self._max_stream_requests)
                await room.take(size)
                answering.put_nowait((size, asyncio.ensure_future(attempt(content))))

        reading = self._start_reading(read(), answering)
        try:
            while (item := await answering.get()) is not None:
                size, answer = item
                yield await answer
                room.give(size)
            _raise_failure(reading)
        finally:
            reading.cancel()
            while not answering.empty():
                if (item := answering.get_nowait()) is not None:
                    item[1].cancel()

    async def _whole(self, rpc: Rpc, contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """The messages of a stream, one at a time. Raises what reading or parsing one raises."""
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

    def _parse(self, rpc: Rpc, content: bytes) -> Any:
        """Parse a message. Raises RequestTooLarge, and InvalidArgument if it is malformed."""
        if len(content) > self._max_request_bytes + MESSAGE_SLACK:
            raise RequestTooLarge(
                f"The message is larger than {self._max_request_bytes} bytes (max_request_bytes)."
            )
        try:
            return rpc.request.FromString(content)
        except DecodeError:
            raise InvalidArgument(
                f"The message is not a {rpc.request.DESCRIPTOR.full_name}."
            ) from None


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
