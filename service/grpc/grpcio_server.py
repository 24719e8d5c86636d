"""gRPC carried by grpcio (`fast_grpc` off): the reference for our own HTTP/2 front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from service.core.budget import Budget
from service.core.callers import Callers
from service.core.errors import Overloaded, ServiceError
from service.core.trace import Trace
from service.grpc.answering import MESSAGE_SLACK, Calls, Rpc, Unary
from service.settings import Settings

# Longer times are taken for never.
_LONGEST_MS = 2**31 - 1

_Context = grpc.aio.ServicerContext[Any, Any]


class GrpcioServer:
    """A grpc.aio server on the worker's event loop."""

    def __init__(
        self, rpcs: Mapping[str, Rpc], calls: Calls, settings: Settings, budget: Budget
    ) -> None:
        self._calls = calls
        self._budget = budget
        self._callers = Callers(settings.trusted_proxies)
        self._server = grpc.aio.server(
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
        self._server.add_generic_rpc_handlers((_Handlers(rpcs, self._unary, self._stream),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._server.add_insecure_port(f"{host}:{settings.grpc_port}")

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, timeout: float) -> None:
        """Refuse new calls at once; give those in flight `timeout` seconds to finish."""
        await self._server.stop(timeout)

    async def _unary(self, rpc: Rpc, content: bytes, context: _Context) -> bytes:
        request_id = self._request_id(context)
        budget = self._budget
        # grpcio has received the whole message before this: it can only be refused.
        budget.used += len(content)
        try:
            if budget.used > budget.limit:
                raise budget.refusal("grpc")
            return await self._calls.answer(
                rpc,
                content,
                _deadline(context),
                request_id,
                self._caller(context),
                self._trace(context),
            )
        except ServiceError as error:
            await _abort(context, error)
        finally:
            budget.used -= len(content)

    async def _stream(
        self, rpc: Rpc, contents: AsyncIterator[bytes], context: _Context
    ) -> AsyncIterator[bytes]:
        request_id = self._request_id(context)
        ends_with_error = _metadata(context).get("triton_grpc_error") == "true"
        answers = self._calls.stream(
            rpc,
            contents,
            deadline=_deadline(context),
            request_id=request_id,
            ends_with_error=ends_with_error,
            caller=self._caller(context),
            trace=self._trace(context),
        )
        try:
            async for answer in answers:
                yield answer
        except ServiceError as error:
            await _abort(context, error)

    def _caller(self, context: _Context) -> str:
        # ipv4:HOST:PORT, ipv6:%5BHOST%5D:PORT or unix:PATH
        kind, _, address = unquote(context.peer()).partition(":")
        peer = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
        metadata = context.invocation_metadata() or ()
        return self._callers.of(
            peer, [str(value) for key, value in metadata if key == "x-forwarded-for"]
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

    def _request_id(self, context: _Context) -> str:
        request_id = self._calls.request_id(_metadata(context).get("x-request-id"))
        context.set_trailing_metadata((("x-request-id", request_id),))
        return request_id


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
