"""Answers a matched HTTP route: runs its handler, turns errors into answers, records the end."""

from __future__ import annotations

from service.core.errors import Overloaded, ServiceError
from service.http.compression import Compression
from service.http.message import HttpRequest, HttpResponse, json_response
from service.http.routes import Route
from service.observe.recorder import RequestRecorder
from service.operations.inference import Operations


class Answerer:
    """Answers a matched route: runs the handler, translates errors, records how it ended."""

    def __init__(
        self, operations: Operations, recorder: RequestRecorder, compression: Compression
    ) -> None:
        self._operations = operations
        self._recorder = recorder
        self._compression = compression

    async def answer(
        self, route: Route, request: HttpRequest, parameters: dict[str, str]
    ) -> HttpResponse:
        """Never raises: what a handler raises becomes a JSON body {"error": sentence}."""
        request_id = self._recorder.request_id(request.header("x-request-id"))
        try:
            async with self._recorder.attempt("http", route.operation, request_id) as attempt:
                if request.header("content-encoding"):
                    request = await self._compression.decode(request)
                response = await route.handler(self._operations, request, **parameters)
                if route.compress:
                    response = await self._compression.encode(request, response)
                attempt.code = str(response.status)
        except ServiceError as error:
            response = error_response(error)
        response.headers.append(("x-request-id", request_id))
        return response

    async def refuse(self, route: Route, request: HttpRequest, error: ServiceError) -> HttpResponse:
        """Answer a request whose body could not be had, and record it as any other."""

        async def refused(operations: Operations, request: HttpRequest) -> HttpResponse:
            raise error

        return await self.answer(route._replace(handler=refused), request, {})


def error_response(error: ServiceError) -> HttpResponse:
    """The protocol's error body and the status of the error's kind."""
    response = json_response({"error": error.message}, error.http_status)
    if isinstance(error, Overloaded):
        response.headers.append(("retry-after", str(error.retry_after_s)))
    return response
