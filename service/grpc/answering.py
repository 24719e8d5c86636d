"""Answers every gRPC call, whichever server carries it.

A carrier hands over a message as bytes and gets bytes back, or an error is raised. Services are
tables of handlers rather than generated servicers, so that a message is measured before it is
parsed, and a message that cannot be parsed is the client's error (INVALID_ARGUMENT) rather than an
internal one.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
    Set,
)
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.access.gate import Gate, Identity, Need
from service.access.keys import Scope
from service.core.batching import Batcher
from service.core.errors import (
    InvalidArgument,
    Overloaded,
    RequestTooLarge,
    ServiceError,
    Unavailable,
)
from service.core.off_loop import INLINE_BYTES, MAX_JSON_BYTES, off_loop
from service.core.trace import Trace
from service.grpc.wire import SMALL_BYTES, check, shape_of
from service.observe.recorder import Attempt, RequestRecorder


class Call(NamedTuple):
    """What a handler needs to know of a call beside its message."""

    deadline: float | None  # in loop time; None if the client set none
    caller: str = ""  # see core.callers
    identity: Identity | None = None  # None if everyone may do everything
    trace: Trace | None = None  # None for a call, or a message of a stream, that is not traced

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the caller may do what needs this scope."""
        if self.identity is not None:
            self.identity.require(scope)


# Answers a message.
Handler = Callable[[Any, Call], Awaitable[Any]]
# Returns the error for a call to a model, by its name and version, that is overloaded.
Refusal = Callable[[str, str, Call], Overloaded | None]
# Bytes that a message may have beside its tensors before it exceeds max_request_bytes.
MESSAGE_SLACK = 64 * 1024


# The most that the names of a model and its version take at the start of a message.
_NAMES_BYTES = 2 * (2 + 127)


class Unary(NamedTuple):
    """A method with one answer per call; `operation` is its name in metrics and logs.

    `refusal` says whether a call need not be parsed because its model is overloaded. `scope` is
    what a caller needs; None is open to everyone.
    """

    operation: str
    handler: Handler
    refusal: Refusal | None = None
    scope: Scope | None = "admin"


class Pipelined(NamedTuple):
    """A streaming method with one answer per message, in the order of the messages.

    `refuse` makes the answer to a message that failed.
    """

    operation: str
    handler: Handler
    refuse: Callable[[Any, ServiceError], Any]
    scope: Scope | None = "admin"


class Streaming(NamedTuple):
    """Any other streaming method: messages in, messages out."""

    operation: str
    handler: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]
    scope: Scope | None = "admin"


Method = Unary | Pipelined | Streaming


class Rpc(NamedTuple):
    """A method with the classes of its messages."""

    method: Method
    request: Any
    response: Any
    path: str = ""  # /SERVICE/METHOD


def rpcs(descriptor: ServiceDescriptor, methods: Mapping[str, Method]) -> dict[str, Rpc]:
    """The methods of a service by their paths. Raises KeyError if `methods` lacks one."""
    return {
        f"/{descriptor.full_name}/{method.name}": Rpc(
            methods[method.name],
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            f"/{descriptor.full_name}/{method.name}",
        )
        for method in descriptor.methods
    }


class Calls:
    """Answers the calls of all gRPC services of one worker."""

    def __init__(
        self,
        recorder: RequestRecorder,
        max_request_bytes: int,
        max_stream_requests: int,
        max_json_bytes: int = MAX_JSON_BYTES,
        overloaded: Set[Batcher] = frozenset(),
        gate: Gate | None = None,
    ) -> None:
        self.gate = gate
        self.overloaded = overloaded
        self.request_id = recorder.request_id
        self._recorder = recorder
        self.traces = recorder.traces
        self._max_request_bytes = max_request_bytes
        self._max_stream_requests = max_stream_requests
        self._max_json_bytes = max_json_bytes
        self._stopping = False
        self._reading: set[asyncio.Task[None]] = set()

    def admit(
        self,
        gate: Gate,
        rpc: Rpc | None,
        request_id: str,
        *,
        authorization: Sequence[str],
        api_keys: Sequence[str],
        caller: str,
        certificate: str = "",
    ) -> Identity:
        """Who makes a call, by its headers; `rpc` is None if no method has its path.

        Raises and records what `Gate.admit` raises.
        """
        need: Need = "any" if rpc is None else rpc.method.scope
        try:
            return gate.admit(need, authorization, api_keys, caller, certificate)
        except ServiceError as error:
            operation = "unmatched" if rpc is None else rpc.method.operation
            self._recorder.refused("grpc", operation, request_id, error)
            raise

    async def answer(
        self,
        rpc: Rpc,
        content: bytes,
        deadline: float | None,
        request_id: str,
        caller: str = "",
        identity: Identity | None = None,
        trace: Trace | None = None,
    ) -> bytes:
        """Answer a unary call. A ServiceError that it raises is the status of the call."""
        method = rpc.method
        assert isinstance(method, Unary)
        if trace is not None:
            trace.handle("", rpc.path[1:], request_id)
        with Attempt(self._recorder, "grpc", method.operation, request_id, trace):
            if len(content) > SMALL_BYTES:
                request = await self._parse_long(rpc, content)
            else:
                request = self._parse(rpc, content)
            del content
            answering = method.handler(request, Call(deadline, caller, identity, trace))
            del request  # so that the handler can free it once it is parsed
            answer = await answering
        serialized: bytes = rpc.response.SerializeToString(answer)
        return serialized

    def early_refusal(
        self, rpc: Rpc, content: bytes, call: Call, request_id: str
    ) -> Overloaded | None:
        """The error for a unary call whose model is overloaded, without parsing its message.

        Call it only while `overloaded` is not empty.
        """
        method = rpc.method
        assert isinstance(method, Unary)
        if method.refusal is None or (names := _model_of(content)) is None:
            return None
        error = method.refusal(*names, call)
        if error is not None:
            self._recorder.refused("grpc", method.operation, request_id, error)
        return error

    async def stream(
        self,
        rpc: Rpc,
        contents: AsyncIterator[bytes],
        deadline: float | None,
        request_id: str,
        ends_with_error: bool,
        caller: str = "",
        identity: Identity | None = None,
        trace: Trace | None = None,
    ) -> AsyncIterator[bytes]:
        """Answer a stream. A ServiceError that it raises is the status of the call.

        If a message of a Pipelined method fails, its answer says so and the stream continues; with
        `ends_with_error` the stream ends. So it does if the caller's key is no longer valid.
        """
        if self.gate is not None and identity is not None:
            counts = isinstance(rpc.method, Streaming) and rpc.method.scope is not None
            contents = _while_valid(self.gate, identity, contents, counts)
        method, serialize = rpc.method, rpc.response.SerializeToString
        if trace is not None:
            trace.handle("", rpc.path[1:], request_id)
        if isinstance(method, Streaming):
            with Attempt(self._recorder, "grpc", method.operation, request_id, trace):
                async for answer in method.handler(self._whole(rpc, contents)):
                    yield serialize(answer)
        else:
            assert isinstance(method, Pipelined)
            refuse = None if ends_with_error else method.refuse
            call = Call(deadline, caller, identity, trace)
            code = "CANCELLED"
            try:
                async for answer in self._pipeline(rpc, contents, call, request_id, refuse):
                    yield serialize(answer)
                code = "OK"
            except Exception as error:
                code = error.grpc_code if isinstance(error, ServiceError) else "UNKNOWN"
                raise
            finally:
                if trace is not None and self.traces is not None:
                    self.traces.end(trace, code)
        if self._stopping:
            raise Unavailable("The server is stopping.")

    def stop(self) -> None:
        """Stop reading streams: each ends once its messages so far are answered."""
        self._stopping = True
        for reading in list(self._reading):
            reading.cancel()

    async def _pipeline(
        self,
        rpc: Rpc,
        contents: AsyncIterator[bytes],
        call: Call,
        request_id: str,
        refuse: Callable[[Any, ServiceError], Any] | None,
    ) -> AsyncIterator[Any]:
        """The answer to each message, in order; several messages are in progress at a time.

        `refuse` makes the answer to a message that failed; without it the error is raised.
        """
        budget = _Budget(self._max_stream_requests)
        answers: asyncio.Queue[tuple[int, asyncio.Task[Any]] | None] = asyncio.Queue()
        method = rpc.method
        assert isinstance(method, Pipelined)

        async def attempt(content: bytes, is_first: bool) -> Any:
            request, trace, its_call = None, None, call
            if call.trace is not None and self.traces is not None:
                trace = self.traces.message(call.trace)
                if trace is not None:
                    trace.handle("", rpc.path[1:], request_id)
                its_call = call._replace(trace=trace)
            try:
                with Attempt(self._recorder, "grpc", method.operation, request_id, trace):
                    # The first was counted when the stream was opened.
                    if self.gate is not None and call.identity is not None and not is_first:
                        self.gate.admit_message(call.identity)
                    if len(content) > SMALL_BYTES:
                        request = await self._parse_long(rpc, content)
                    else:
                        request = self._parse(rpc, content)
                    del content
                    return await method.handler(request, its_call)
            except ServiceError as error:
                if refuse is None:
                    raise
                return refuse(request, error)

        async def read() -> None:
            is_first = True
            async for content in contents:
                # Large messages count as several, so that together they hold one request's limit.
                share = len(content) * self._max_stream_requests // self._max_request_bytes
                size = min(max(share, 1), self._max_stream_requests)
                await budget.acquire(size)
                answers.put_nowait((size, asyncio.ensure_future(attempt(content, is_first))))
                is_first = False

        reading = self._start_reading(read(), answers)
        try:
            while (item := await answers.get()) is not None:
                size, answer = item
                yield await answer
                budget.release(size)
            _raise_failure(reading)
        finally:
            reading.cancel()
            while not answers.empty():
                if (item := answers.get_nowait()) is not None:
                    item[1].cancel()

    async def _whole(self, rpc: Rpc, contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """The messages of a stream, one at a time. Raises what reading or parsing one raises."""
        messages: asyncio.Queue[Any] = asyncio.Queue()
        budget = _Budget(1)

        async def relay() -> None:
            async for content in contents:
                await budget.acquire(1)
                if len(content) > SMALL_BYTES:
                    messages.put_nowait(await self._parse_long(rpc, content))
                else:
                    messages.put_nowait(self._parse(rpc, content))

        reading = self._start_reading(relay(), messages)
        try:
            while (request := await messages.get()) is not None:
                budget.release(1)
                yield request
            _raise_failure(reading)
        finally:
            reading.cancel()

    def _start_reading(
        self, work: Coroutine[Any, Any, None], queue: asyncio.Queue[Any]
    ) -> asyncio.Task[None]:
        """Read a stream into a queue. A final None marks the end, whatever the cause."""
        reading = asyncio.ensure_future(work)
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        # Not in a `finally` of the work: a task cancelled before its first step never reaches it.
        reading.add_done_callback(lambda _: queue.put_nowait(None))
        if self._stopping:
            reading.cancel()
        return reading

    async def _parse_long(self, rpc: Rpc, content: bytes) -> Any:
        """Parse a message whose size says little about the time it takes.

        Raises what `_parse` and `wire.check` raise.
        """
        if len(content) > self._max_request_bytes + MESSAGE_SLACK:
            raise RequestTooLarge.of("message", self._max_request_bytes)
        rest = check(content, shape_of(rpc.request), self._max_json_bytes)
        if rest > INLINE_BYTES:
            return await off_loop(self._parse, rpc, content, size=rest)
        return self._parse(rpc, content)

    def _parse(self, rpc: Rpc, content: bytes) -> Any:
        """Parse a message. Raises RequestTooLarge, and InvalidArgument if it is malformed."""
        if len(content) > self._max_request_bytes + MESSAGE_SLACK:
            raise RequestTooLarge.of("message", self._max_request_bytes)
        try:
            return rpc.request.FromString(content)
        except DecodeError:
            raise InvalidArgument(
                f"The message is not a {rpc.request.DESCRIPTOR.full_name}."
            ) from None


def _model_of(content: bytes) -> tuple[str, str] | None:
    """The model's name and version at the start of a message, empty for fields that do not follow.

    Both messages that run a model have them as fields 1 and 2, and serializers write fields in the
    order of their numbers. None if they are not written so.
    """
    start = content[:_NAMES_BYTES]
    model = version = ""
    try:
        # A size above 127 takes more than a byte: no model has such a name.
        if start.startswith(b"\x0a"):  # field 1, length-delimited
            if (size := start[1]) > 127:
                return None
            model = start[2 : 2 + size].decode("latin-1")
            start = start[2 + size :]
        if start.startswith(b"\x12"):  # field 2
            if (size := start[1]) > 127:
                return None
            version = start[2 : 2 + size].decode("latin-1")
    except IndexError:
        return None
    return model, version


def _raise_failure(reading: asyncio.Task[None]) -> None:
    """Raise the error that ended reading, such as a message that cannot be decompressed."""
    if not reading.cancelled() and (error := reading.exception()):
        raise error


class _Budget:
    """A bound on the work in progress. One task at a time waits for it."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._released = asyncio.Event()

    async def acquire(self, size: int) -> None:
        while self._left < size:
            self._released.clear()
            await self._released.wait()
        self._left -= size

    def release(self, size: int) -> None:
        self._left += size
        self._released.set()


async def _while_valid(
    gate: Gate, identity: Identity, contents: AsyncIterator[bytes], counts: bool
) -> AsyncIterator[bytes]:
    """The messages of a stream, as long as its caller may send them.

    Raises Unauthenticated; with `counts` TooManyRequests, for messages after the first.
    """
    is_first = True
    async for content in contents:
        gate.confirm(identity)
        if counts and not is_first:
            gate.admit_message(identity)
        is_first = False
        yield content
