"""Every error of the client. Its message is a sentence for people, mostly the server's own."""

from __future__ import annotations


class ClientError(Exception):
    """Base of all errors; `request_id` finds the request in the server's log, if it has answered.

    `retryable` is whether the same request may succeed later; `retry_after` is the time in seconds
    after which the server wants to see it again, or None.
    """

    retryable = False
    retry_after: float | None = None
    request_id: str = ""


class InvalidImage(ClientError, ValueError):
    """The image cannot be sent; the server has not been asked."""


class Unreachable(ClientError):
    """The server did not answer: no connection, or one that broke."""

    retryable = True


class DeadlineExceeded(ClientError, TimeoutError):
    """The timeout of the call passed before the answer was there."""


class UnexpectedAnswer(ClientError):
    """The answer is not what the server promises: another server, or a much newer one."""


class ServerError(ClientError):
    """The server answered with an error.

    `code` is the HTTP status (such as "404") or the gRPC code (such as "NOT_FOUND").
    """

    code: str = ""


class InvalidRequest(ServerError):
    """The server refuses the request as wrong or too large; sending it again fails again."""


class NotFound(ServerError):
    """The server does not have the model, the version, or the method."""


class AccessDenied(ServerError):
    """The key or the client certificate is missing or wrong, or the settings forbid the request."""


class Overloaded(ServerError):
    """The server refuses the request for now, and it still did after the last attempt."""


_BY_STATUS: dict[int, type[ServerError]] = {
    400: InvalidRequest,
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    405: NotFound,
    408: InvalidRequest,
    413: InvalidRequest,
    415: InvalidRequest,
    429: Overloaded,
    503: Overloaded,
}
_BY_CODE: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "FAILED_PRECONDITION": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "NOT_FOUND": NotFound,
    "UNIMPLEMENTED": NotFound,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Overloaded,
}


def of_status(status: int, message: str, retry_after: float | None, request_id: str) -> ClientError:
    """The error for an HTTP status. 429 is retryable only if the server says when."""
    if status == 504:
        return _described(DeadlineExceeded(message), None, request_id)
    error = _BY_STATUS.get(status, ServerError)(message)
    error.code = str(status)
    error.retryable = status == 503 or (status == 429 and retry_after is not None)
    return _described(error, retry_after, request_id)


def of_code(code: str, message: str, pushback: float | None, request_id: str) -> ClientError:
    """The error for a gRPC code of a server that answered.

    `pushback` is grpc-retry-pushback-ms in seconds; below 0 it forbids retries. RESOURCE_EXHAUSTED
    is retryable only if the server says when: gRPC itself uses it for messages that are too large.
    """
    if code == "DEADLINE_EXCEEDED":
        return _described(DeadlineExceeded(message), None, request_id)
    error = _BY_CODE.get(code, ServerError)(message)
    error.code = code
    forbidden = pushback is not None and pushback < 0
    error.retryable = not forbidden and (
        code == "UNAVAILABLE" or (code == "RESOURCE_EXHAUSTED" and pushback is not None)
    )
    return _described(error, None if forbidden else pushback, request_id)


def _described(error: ClientError, retry_after: float | None, request_id: str) -> ClientError:
    error.retry_after, error.request_id = retry_after, request_id
    return error
