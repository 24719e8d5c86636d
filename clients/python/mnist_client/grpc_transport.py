"""gRPC, synchronous and asyncio, on grpcio (the extra `grpc`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any, TypeVar

from mnist_client.address import TLS, Address
from mnist_client.calls import Call, GrpcAnswer, result_of
from mnist_client.errors import (
    ClientError,
    DeadlineExceeded,
    UnexpectedAnswer,
    Unreachable,
    of_code,
)

T = TypeVar("T")
Metadata = Sequence[tuple[str, str]]
_OPTIONS = [
    ("grpc.primary_user_agent", "mnist-client"),
    # By default a failed connection is tried again after a second, while `Retries` calls earlier.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # `Retries` repeats calls.
    ("grpc.enable_retries", 0),
]


class GrpcTransport:
    """Sends calls over one gRPC connection; any number of threads may."""

    def __init__(self, address: Address, tls: TLS | None, key: str | None, max_answer_bytes: int):
        grpc = _grpcio()
        self._address = address
        self._metadata = _metadata(key)
        self._channel = _channel(grpc, grpc, address, tls, max_answer_bytes)
        self._rpc_error = grpc.RpcError
        self._methods: dict[str, Any] = {}

    def send(self, call: Call[T], timeout: float) -> T:
        """Make one attempt, whose deadline the server gets. Raises ClientError."""
        request = call.grpc_request()
        method = _method(self._methods, self._channel, request.method)
        began = monotonic()
        try:
            message, rpc = method.with_call(
                request.message, timeout=timeout, metadata=self._metadata
            )
        except self._rpc_error as error:
            raise _error_of(error, self._address, timeout) from error
        answer = GrpcAnswer(message, _request_id(rpc.trailing_metadata()), monotonic() - began)
        return result_of(call.from_grpc, answer, self._address.target)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class AsyncGrpcTransport:
    """Sends calls over one gRPC connection, from the event loop of the first call."""

    def __init__(self, address: Address, tls: TLS | None, key: str | None, max_answer_bytes: int):
        grpc = _grpcio()
        self._address = address
        self._metadata = _metadata(key)
        self._rpc_error = grpc.RpcError
        self._methods: dict[str, Any] = {}
        self._channel: Any = None
        # grpc.aio takes the event loop in which a channel is made.
        self._make_channel: Callable[[], Any] = lambda: _channel(
            grpc, grpc.aio, address, tls, max_answer_bytes
        )

    async def send(self, call: Call[T], timeout: float) -> T:
        """Make one attempt, whose deadline the server gets. Raises ClientError."""
        if self._channel is None:
            self._channel = self._make_channel()
        request = call.grpc_request()
        method = _method(self._methods, self._channel, request.method)
        began = monotonic()
        try:
            rpc = method(request.message, timeout=timeout, metadata=self._metadata)
            message = await rpc
            trailers = await rpc.trailing_metadata()
        except self._rpc_error as error:
            raise _error_of(error, self._address, timeout) from error
        answer = GrpcAnswer(message, _request_id(trailers), monotonic() - began)
        return result_of(call.from_grpc, answer, self._address.target)

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()


def _grpcio() -> ModuleType:
    try:
        import google.protobuf.message  # noqa: F401  the stubs need it
        import grpc
        import grpc.aio
    except ImportError as error:
        raise ImportError(
            f"gRPC needs a package that is missing ({error.name}): "
            "pip install 'mnist-client[grpc]'.",
            name=error.name,
        ) from None
    return grpc


def _metadata(key: str | None) -> Metadata:
    return () if key is None else (("authorization", f"Bearer {key}"),)


def _channel(
    grpc: ModuleType, api: ModuleType, address: Address, tls: TLS | None, max_answer_bytes: int
) -> Any:
    """A channel of `api`, which is grpc or grpc.aio. Raises OSError for a file of `tls`."""
    options = [*_OPTIONS, ("grpc.max_receive_message_length", max_answer_bytes)]
    if not address.is_secure:
        return api.insecure_channel(address.target, options=options)
    tls = tls or TLS()
    certificate = tls.certificate_file
    credentials = grpc.ssl_channel_credentials(
        Path(tls.ca_file).read_bytes() if tls.ca_file else None,
        Path(tls.key_file or certificate).read_bytes() if certificate else None,
        Path(certificate).read_bytes() if certificate else None,
    )
    return api.secure_channel(address.target, credentials, options=options)


def _method(methods: dict[str, Any], channel: Any, name: str) -> Any:
    """The channel's callable for a method; it takes and returns bytes."""
    method = methods.get(name)
    if method is None:
        method = methods[name] = channel.unary_unary(name)
    return method


def _request_id(trailers: Iterable[tuple[str, Any]] | None) -> str:
    return next((str(value) for name, value in trailers or () if name == "x-request-id"), "")


def _error_of(error: Any, address: Address, timeout: float) -> ClientError:
    """The client's error for grpcio's; an attempt has all the time that is left."""
    code, details = error.code().name, error.details() or ""
    trailers = error.trailing_metadata()
    request_id = _request_id(trailers)
    pushback: float | None = None
    for name, value in trailers or ():
        if name == "grpc-retry-pushback-ms":
            # A value that is not a number means: do not retry (gRFC A6).
            pushback = int(value) / 1000 if str(value).isascii() and str(value).isdigit() else -1.0
    if request_id or pushback is not None:
        return of_code(code, details, pushback, request_id)
    # Without our server's id, the error is grpcio's own, or that of a proxy.
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"No answer from {address.target} within {timeout:.3g} s.")
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return UnexpectedAnswer(f"The answer is too large (max_answer_bytes): {details}.")
    if code == "UNAVAILABLE":
        unreachable = Unreachable(f"No gRPC answer from {address.target} ({details}).")
        unreachable.retryable = "CERTIFICATE_VERIFY_FAILED" not in details
        return unreachable
    return of_code(code, details or f"{address.target} answers with {code}.", None, "")
