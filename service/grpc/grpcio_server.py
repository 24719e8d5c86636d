"""gRPC carried by grpcio (`fast_grpc` off): the reference for our own HTTP/2 front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from service.core.callers import Callers
from service.core.errors import Overloaded, ServiceError
from service.grpc.answering import MESSAGE_SLACK, Calls, Rpc, Unary
from service.settings import Settings

_Context = grpc.aio.ServicerContext[Any, Any]


class GrpcioServer:
    """A grpc.aio server on the worker's event loop."""

    def __init__(self, rpcs: Mapping[str, Rpc], calls: Calls, settings: Settings) -> None:
        self._calls = calls
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
            ],
            maximum_concurrent_rpcs=settings.max_connections,
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
        try:
            return await self._calls.answer(
                rpc, content, _deadline(context), request_id, self._caller(context)
            )
        except ServiceError as error:
            await _abort(context, error)

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

    def _request_id(self, context: _Context) -> str:
        request_id = self._calls.request_id(_metadata(context).get("x-request-id"))
        context.set_trailing_metadata((("x-request-id", request_id),))
        return request_id


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
