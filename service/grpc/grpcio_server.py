"""gRPC carried by grpcio (`fast_grpc` off): the reference for our own HTTP/2 front."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from service.access.gate import Gate, Identity
from service.access.tls import Tls
from service.core.budget import Budget
from service.core.callers import Callers
from service.core.errors import (
    InternalError,
    NoSuchEndpoint,
    Overloaded,
    ServiceError,
    excerpt,
)
from service.core.trace import Trace
from service.grpc.answering import MESSAGE_SLACK, Calls, Rpc, Unary
from service.settings import Settings

# How long a stop waits for what has no call: half-sent messages, and connections that say nothing.
_LINGER_S = 1.0
_WATCH_S = 0.1  # between two looks whether grpcio still serves
_RETRY_S = 1.0  # between two attempts to start it again
_REMINDER_S = 60.0  # between two log lines that it did not
_HANDSHAKE_S = 0.1  # much more than grpcio takes to begin a handshake
# Longer times are taken for never.
_LONGEST_MS = 2**31 - 1

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class GrpcioServer:
    """A grpc.aio server on the worker's event loop."""

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        calls: Calls,
        settings: Settings,
        budget: Budget,
        callers: Callers,
        tls: Tls | None = None,
    ) -> None:
        self._calls = calls
        self._budget = budget
        self._callers = callers
        self._settings = settings
        self._open: set[_Context] = set()  # the calls that have a handler
        self._handlers: grpc.GenericRpcHandler = _Handlers(rpcs, self._unary, self._stream)
        if calls.gate is not None:
            self._handlers = _GatedHandlers(partial(self._gated, calls.gate), rpcs)
        self._tls = tls
        self._server = self._bound()
        self._watching: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Future[None]] = set()

    def _bound(self) -> grpc.aio.Server:
        """A server of grpcio on the port. Raises RuntimeError."""
        settings = self._settings
        server = grpc.aio.server(
            options=[
                # Every worker binds the port; the kernel spreads connections over them.
                ("grpc.so_reuseport", 1),
                # `Calls` refuses a message above the limit and names the setting. grpcio refuses
                # one above twice the limit before it is received.
                (
                    "grpc.max_receive_message_length",
                    2 * (settings.max_request_bytes + MESSAGE_SLACK),
                ),
                ("grpc.max_send_message_length", -1),
                *_life_of_connections(settings),
            ],
            maximum_concurrent_rpcs=settings.max_open_calls,
        )
        server.add_generic_rpc_handlers((self._handlers,))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        if self._tls is None:
            server.add_insecure_port(address)
        else:
            is_required = settings.tls_client_auth == "required"
            server.add_secure_port(address, _credentials(self._tls, is_required=is_required))
        return server

    async def start(self, listener: socket.socket | None = None) -> None:
        await self._server.start()  # grpcio opens its sockets itself
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """Start grpcio again when it has ended by itself.

        It does so, for good, at a call whose path is not UTF-8 (seen with grpcio 1.85), and anyone
        can make one. The calls that run then are finished.
        """
        loop = asyncio.get_running_loop()
        silent_until = 0.0
        while True:
            still_serves = False
            with contextlib.suppress(Exception):  # it raises what has ended the server
                still_serves = await self._server.wait_for_termination(_WATCH_S)
            if still_serves:
                continue
            if loop.time() >= silent_until:
                silent_until = loop.time() + _REMINDER_S
                log.error(
                    "grpcio ended by itself, as it does at a call whose path is not UTF-8, and is "
                    "started again; the server's own gRPC (fast_grpc true) answers such a call."
                )
            stopping = asyncio.ensure_future(self._server.stop(self._settings.stop_timeout))
            self._ending.add(stopping)
            stopping.add_done_callback(self._ending.discard)
            try:
                self._server = self._bound()
                await self._server.start()
            except Exception as error:  # grpcio's own errors have no common base
                log.error("The gRPC port cannot be opened again: %s.", error)
                await asyncio.sleep(_RETRY_S)

    async def stop(self, timeout: float) -> None:
        """Refuse new calls at once; give those in flight `timeout` seconds to finish.

        grpcio also waits for connections without calls, some for as long as their handshake may
        take. The worker exits without them.
        """
        loop = asyncio.get_running_loop()
        if self._watching is not None:
            self._watching.cancel()
        stopping = asyncio.ensure_future(self._server.stop(timeout))
        least = loop.time() + _LINGER_S
        while not stopping.done() and loop.time() < least + timeout:
            await asyncio.wait([stopping], timeout=0.05)
            if not self._open and loop.time() >= least:
                break

    async def _gated(
        self,
        gate: Gate,
        rpc: Rpc | None,
        path: str,
        contents: AsyncIterator[bytes],
        context: _Context,
    ) -> AsyncIterator[bytes]:
        """Answer a call of any kind whose caller may make it; `rpc` is None if there is no such."""
        metadata = context.invocation_metadata() or ()

        def values(name: str) -> list[str]:
            return [str(value) for key, value in metadata if key == name]

        try:
            identity = self._calls.admit(
                gate,
                rpc,
                self._begin(context),
                authorization=values("authorization"),
                api_keys=values("x-api-key"),
                caller=self._caller(context),
                certificate=self._callers.certificate_of(
                    _peer(context), _client_name(context), values("x-forwarded-client-cert")
                ),
            )
            if rpc is None:
                raise NoSuchEndpoint(f"There is no method {excerpt(path)}.")
        except ServiceError as error:
            await _abort(context, error)
        if isinstance(rpc.method, Unary):
            messages: list[bytes] = []
            async for content in contents:
                messages.append(content)
                if len(messages) > 1:
                    break
            if len(messages) != 1:
                await _abort(
                    context, InternalError("The call ended without exactly one whole message.")
                )
            yield await self._unary(rpc, messages.pop(), context, identity)
        else:
            async for answer in self._stream(rpc, contents, context, identity):
                yield answer

    async def _unary(
        self, rpc: Rpc, content: bytes, context: _Context, identity: Identity | None = None
    ) -> bytes:
        request_id = self._begin(context)
        budget = self._budget
        # grpcio has received the whole message before this: it can only be refused.
        budget.used += len(content)
        try:
            if budget.used > budget.limit:
                raise budget.refusal("grpc")
            caller = self._caller(context) if identity is None else identity.caller
            return await self._calls.answer(
                rpc,
                content,
                _deadline(context),
                request_id,
                caller,
                identity,
                self._trace(context),
            )
        except ServiceError as error:
            await _abort(context, error)
        finally:
            budget.used -= len(content)

    async def _stream(
        self,
        rpc: Rpc,
        contents: AsyncIterator[bytes],
        context: _Context,
        identity: Identity | None = None,
    ) -> AsyncIterator[bytes]:
        request_id = self._begin(context)
        ends_with_error = _metadata(context).get("triton_grpc_error") == "true"
        answers = self._calls.stream(
            rpc,
            contents,
            deadline=_deadline(context),
            request_id=request_id,
            ends_with_error=ends_with_error,
            caller=self._caller(context) if identity is None else identity.caller,
            identity=identity,
            trace=self._trace(context),
        )
        try:
            async for answer in answers:
                yield answer
        except ServiceError as error:
            await _abort(context, error)

    def _caller(self, context: _Context) -> str:
        metadata = context.invocation_metadata() or ()
        return self._callers.of(
            _peer(context), [str(value) for key, value in metadata if key == "x-forwarded-for"]
        )

    def _trace(self, context: _Context) -> Trace | None:
        traces = self._calls.traces
        if traces is None:
            return None
        metadata = context.invocation_metadata() or ()
        parents, states = (
            [str(value) for key, value in metadata if key == name]
            for name in ("traceparent", "tracestate")
        )
        return traces.begin(parents, states)

    def _begin(self, context: _Context) -> str:
        """Count a call, and return the id of its request."""
        if context not in self._open:
            self._open.add(context)
            # The type of a callback in the stubs has no function as a value.
            ended: Any = self._open.discard
            context.add_done_callback(ended)
        request_id = self._calls.request_id(_metadata(context).get("x-request-id"))
        context.set_trailing_metadata((("x-request-id", request_id),))
        return request_id


def _credentials(tls: Tls, *, is_required: bool) -> grpc.ServerCredentials:
    """Those of the files that `tls` has read last, for each new connection."""

    def configuration() -> Any:
        pair = served.key.content, served.certificate.content
        return grpc.ssl_server_certificate_configuration([pair], served.client_ca.content or None)

    served = tls.files

    def renewed() -> Any:
        """What grpcio asks for before each handshake, in a thread of its own; None if as before."""
        nonlocal served
        if served is tls.files:
            return None
        # grpcio frees what a handshake beside this one may be about to use (seen with 1.85: the
        # process ends). It asks under a lock: no other begins, and that one has time to end.
        time.sleep(_HANDSHAKE_S)
        served = tls.files
        return configuration()

    return grpc.dynamic_ssl_server_credentials(configuration(), renewed, is_required)


def _life_of_connections(settings: Settings) -> list[tuple[str, int]]:
    """What our own front does by its own rules; grpcio has no limit of connections."""

    def milliseconds(seconds: float) -> int:
        # 0 is never in our settings.
        return min(round(seconds * 1000), _LONGEST_MS) if seconds else _LONGEST_MS

    return [
        ("grpc.server_handshake_timeout_ms", milliseconds(settings.header_timeout)),
        ("grpc.max_connection_idle_ms", milliseconds(settings.idle_timeout)),
        ("grpc.keepalive_time_ms", milliseconds(settings.keepalive_interval)),
        ("grpc.keepalive_timeout_ms", milliseconds(settings.keepalive_timeout)),
        ("grpc.http2.ping_timeout_ms", milliseconds(settings.keepalive_timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # grpcio adds or takes off 10 % by itself.
        ("grpc.max_connection_age_ms", milliseconds(settings.max_connection_age)),
        ("grpc.max_connection_age_grace_ms", milliseconds(settings.stop_timeout or 0.001)),
        # Clients may send PINGs as often as on our own front, almost.
        ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ]


class _Handlers(grpc.GenericRpcHandler):
    """Handlers that pass messages as bytes: `Calls` parses them."""

    def __init__(self, rpcs: Mapping[str, Rpc], unary: Any, stream: Any) -> None:
        self._handlers = {path: self._handler(rpc, unary, stream) for path, rpc in rpcs.items()}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)

    @staticmethod
    def _handler(rpc: Rpc, unary: Any, stream: Any) -> grpc.RpcMethodHandler[Any, Any]:
        if isinstance(rpc.method, Unary):

            async def answer(content: bytes, context: _Context) -> Any:
                return await unary(rpc, content, context)

            return grpc.unary_unary_rpc_method_handler(answer)

        async def answers(contents: AsyncIterator[bytes], context: _Context) -> Any:
            async for content in stream(rpc, contents, context):
                yield content

        return grpc.stream_stream_rpc_method_handler(answers)


class _GatedHandlers(grpc.GenericRpcHandler):
    """Handlers that decide before they read a message: every call is carried as a stream."""

    def __init__(self, answer: Any, rpcs: Mapping[str, Rpc]) -> None:
        self._answer = answer
        self._rpcs = rpcs

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = str(handler_call_details.method)
        answer = partial(self._answer, self._rpcs.get(path), path)

        # grpcio tells kinds of functions apart, which it cannot for a `partial`.
        async def answers(contents: AsyncIterator[bytes], context: _Context) -> Any:
            async for content in answer(contents, context):
                yield content

        return grpc.stream_stream_rpc_method_handler(answers)


def _peer(context: _Context) -> str:
    """The address of a client; empty for a Unix socket."""
    # ipv4:HOST:PORT, ipv6:%5BHOST%5D:PORT or unix:PATH
    kind, _, address = unquote(context.peer()).partition(":")
    return address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""


def _client_name(context: _Context) -> str:
    """What `service.access.tls.client_name` returns, from grpcio's properties of a connection."""
    properties = context.auth_context()
    for kind in ("peer_uri", "peer_dns", "x509_common_name"):
        for value in properties.get(kind, ()):
            return bytes(value).decode("utf-8", "replace")
    return ""


def _metadata(context: _Context) -> dict[str, str]:
    return {key: str(value) for key, value in context.invocation_metadata() or ()}


def _deadline(context: _Context) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


async def _abort(context: _Context, error: ServiceError) -> NoReturn:
    if isinstance(error, Overloaded):
        pushback = str(error.retry_after_s * 1000)
        trailers = tuple(context.trailing_metadata())
        context.set_trailing_metadata((*trailers, ("grpc-retry-pushback-ms", pushback)))
    await context.abort(grpc.StatusCode[error.grpc_code], error.message)
    raise AssertionError("abort always raises")
