"""The one function through which every gRPC call is answered: errors, deadline, record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import NoReturn, TypeVar

import grpc

from service.core.errors import InvalidArgument, ServiceError
from service.observe.requests import RequestRecorder

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext
# What a message may have beside its tensor bytes before the limit of the request bites.
MESSAGE_SLACK = 64 * 1024


class Calls:
    """Runs the handlers of unary calls. One for all servicers of a worker."""

    def __init__(self, recorder: RequestRecorder, max_request_bytes: int) -> None:
        self._recorder = recorder
        self._max_request_bytes = max_request_bytes

    async def answer(
        self,
        operation: str,
        handler: Callable[[Request, float | None], Awaitable[Response]],
        request: Request,
        context: Context[Request, Response],
    ) -> Response:
        """Await handler(request, deadline); abort the call with the error's code if it raises.

        The deadline is in loop time, None if the caller set none. The call's id is the caller's
        x-request-id, or made up, and goes back in the trailing metadata.
        """
        start = perf_counter()
        metadata = context.invocation_metadata() or ()
        wanted = next((str(value) for key, value in metadata if key == "x-request-id"), None)
        request_id = self._recorder.request_id(wanted)
        context.set_trailing_metadata((("x-request-id", request_id),))
        code, error = "OK", ""
        try:
            self._check_size(request)
            return await handler(request, _deadline(context))
        except ServiceError as failure:
            code, error = failure.grpc_code, failure.message
            await _abort(context, code, error)
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception:
            log.exception("Request %s failed.", request_id)
            code = "INTERNAL"
            error = f"Internal error; the server's log has it under request id {request_id}."
            await _abort(context, code, error)
        finally:
            self._recorder.finished("grpc", operation, request_id, code, start, error)

    def _check_size(self, request: object) -> None:
        size: int = request.ByteSize()  # type: ignore[attr-defined]
        if size > self._max_request_bytes + MESSAGE_SLACK:
            raise InvalidArgument(
                f"The message is larger than {self._max_request_bytes} bytes (max_request_bytes)."
            )


def _deadline(context: Context[Request, Response]) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


async def _abort(context: Context[Request, Response], code: str, error: str) -> NoReturn:
    await context.abort(grpc.StatusCode[code], error)
    raise AssertionError("abort always raises")
