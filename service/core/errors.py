"""Every error that a client can receive, each with its HTTP status and gRPC code.

HTTP and gRPC only look the codes up; no handler writes a status number. Sentences that several
places need are written here as well, by the constructors named `of`.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from typing import ClassVar

# The most characters of a client's text in an error, a header or a log line.
EXCERPT = 200
_LONGEST_MESSAGE = 1000
_CUT = "..."


class ServiceError(Exception):
    """A failure that is reported to the client; the message is one sentence for people.

    The gRPC codes are the names of https://grpc.io/docs/guides/status-codes/.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"

    @property
    def message(self) -> str:
        """The sentence; one that is too long for a header loses its middle."""
        text = str(self.args[0]) if self.args else type(self).__name__
        if len(text) <= _LONGEST_MESSAGE:
            return text
        half = (_LONGEST_MESSAGE - len(_CUT)) // 2
        return text[:half] + _CUT + text[-half:]

    @property
    def log_message(self) -> str:
        """The sentence for the log, which may say more than the client is told."""
        return self.message


# The process or the machine has no descriptor, no memory or no process left. That passes.
_USED_UP = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


def is_used_up(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that descriptors, memory or processes are used up.

    Then nothing is wrong with the thing itself: it is kept, and tried again later.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _USED_UP:
            return True
        error = error.__cause__
    return False


def excerpt(value: object) -> str:
    """What an error quotes of a client's text: its first characters, EXCERPT of them with the dots.

    Unlike a cut of the whole sentence, this keeps what the sentence says after the quotation.
    """
    text = str(value)
    return text if len(text) <= EXCERPT else text[: EXCERPT - len(_CUT)] + _CUT


class InternalError(ServiceError):
    """An error in the server itself. Its log has the details, under the request id."""

    @classmethod
    def of(cls, request_id: str) -> InternalError:
        """The error of a request that failed unexpectedly and is in the log."""
        return cls(f"Internal error; the server's log has it under request id {request_id}.")


class ModelFault(ServiceError):
    """The model's answer cannot be used; its publisher has to correct the model."""

    @classmethod
    def not_finite(cls, model: str, thing: str = "image", answer: str = "digit") -> ModelFault:
        """The error for a classifier whose output has NaN or an infinite value for a `thing`."""
        return cls(
            f"Model '{model}' is at fault: it answered this {thing} with NaN or an infinite value, "
            f"so no {answer} is the most probable; publish a version that does not, or choose "
            "another model."
        )

    @classmethod
    def of_shape(cls, model: str, shape: Sequence[int]) -> ModelFault:
        """The error for a classifier of digits whose output has another shape than [N,10]."""
        return cls(
            f"Model '{model}' is at fault: its probabilities or logits have the shape "
            f"{list(shape)} instead of [N,10]; publish a version that has it, or choose another "
            "model."
        )


class InvalidArgument(ServiceError):
    """The request is wrong; sending it again will fail again."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class RequestTooLarge(InvalidArgument):
    """The body, the image or the batch exceeds a limit."""

    http_status = 413

    @classmethod
    def of(cls, thing: str, limit: int, setting: str = "max_request_bytes") -> RequestTooLarge:
        """The error for a `thing` of more than `limit` bytes, the value of `setting` if given."""
        budget = "; raise max_inflight_bytes with it" if setting == "max_request_bytes" else ""
        name = f" ({setting}){budget}" if setting else ""
        return cls(f"The {thing} is larger than {limit} bytes{name}.")


class UnsupportedMediaType(InvalidArgument):
    """The endpoint does not read this content type."""

    http_status = 415


class RequestTimeout(InvalidArgument):
    """The body did not arrive in time."""

    http_status = 408

    @classmethod
    def of(cls, thing: str, seconds: float) -> RequestTimeout:
        """The error for a `thing` that takes longer than the setting body_timeout."""
        return cls(f"The {thing} did not arrive within {seconds:g} seconds (body_timeout).")


class NotFound(ServiceError):
    """The thing that the request names does not exist."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class ModelNotFound(NotFound):
    """The model, or this version of it, is not loaded."""


class ModelLoadError(ServiceError):
    """A model cannot be loaded. Versions of it that were loaded before stay loaded."""

    http_status = 400
    grpc_code = "FAILED_PRECONDITION"


class AlreadyExists(ServiceError):
    """The name is taken."""

    http_status = 409
    grpc_code = "ALREADY_EXISTS"

    @classmethod
    def region(cls, name: str) -> AlreadyExists:
        """The error for a second shared memory region of this name."""
        return cls(
            f"shared memory region '{excerpt(name)}' already in manager; unregister it first."
        )


class Unauthenticated(ServiceError):
    """The caller shows no valid credential. `kind` says why, in the log and the metric alone."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"
    kind = "missing"

    @classmethod
    def of(cls, kind: str) -> Unauthenticated:
        """The error for a credential that is `missing`, `malformed`, `unknown` or `expired`.

        It is one sentence for all of them, so that it does not tell what exists.
        """
        error = cls(
            "A valid key is needed: send one key, in the header Authorization (Bearer KEY) or "
            "x-api-key."
        )
        error.kind = kind
        return error

    @property
    def log_message(self) -> str:
        """The sentence, and why."""
        return f"{self.message} ({self.kind})"


class Forbidden(ServiceError):
    """The settings of this server do not allow the request."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class Unimplemented(ServiceError):
    """The protocol defines it, but this server does not implement it."""

    http_status = 501
    grpc_code = "UNIMPLEMENTED"


class Unavailable(ServiceError):
    """A part of the server does not respond; try again."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class Overloaded(ServiceError):
    """The queue is full; try again a little later, or on another server.

    `expected_wait` is the time in seconds that the request would have waited.
    """

    http_status = 503
    grpc_code = "UNAVAILABLE"
    expected_wait = 0.0

    @classmethod
    def of(cls, reason: str, wait: float) -> Overloaded:
        """The error for a request that would wait for `wait` seconds; `reason` has no full stop."""
        error = cls(f"{reason}; the expected wait is {wait:.3g} seconds.")
        error.expected_wait = wait
        return error

    @classmethod
    def slow_body(cls) -> Overloaded:
        """The error for a request whose body arrives while others wait for its connection."""
        return cls(
            "The body arrives too slowly while others wait for a connection (max_connections); try "
            "again later."
        )

    @property
    def retry_after_s(self) -> int:
        """The header Retry-After: the expected wait in whole seconds, at least 1."""
        return max(1, math.ceil(self.expected_wait))


class InFlightLimit(Overloaded):
    """The requests in flight hold all the bytes that they may; try again a little later."""

    grpc_code = "RESOURCE_EXHAUSTED"

    @classmethod
    def full(cls, limit: int) -> InFlightLimit:
        """The error for a request for which there is no room within `limit` bytes."""
        return cls(
            f"The requests in flight hold {limit} bytes (max_inflight_bytes); try again later."
        )

    @classmethod
    def slow(cls) -> InFlightLimit:
        """The error for a request whose bytes arrive slowly while others wait for room."""
        return cls(
            "The request arrives too slowly while others wait for room (max_inflight_bytes); try "
            "again later."
        )


class TooManyRequests(Overloaded):
    """The caller has used up what the limits allow it; try again after `expected_wait` seconds."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(ServiceError):
    """The client's deadline or timeout, or the server's own limit, passed before the answer."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"

    @classmethod
    def of(cls, limit: str = "deadline") -> DeadlineExceeded:
        """The error for a `deadline` of the call or a `timeout` in its parameters."""
        return cls(f"Request timeout expired: the {limit} passed before the answer was ready.")

    @classmethod
    def of_run(cls, seconds: float) -> DeadlineExceeded:
        """The error for requests whose run of the model was ended after this time."""
        return cls(f"The run of the model was ended after {seconds:g} seconds (max_run_seconds).")


class NoSuchEndpoint(ServiceError):
    """No endpoint has this path."""

    http_status = 404
    grpc_code = "UNIMPLEMENTED"

    @classmethod
    def of(cls, path: str) -> NoSuchEndpoint:
        """The error for a path of HTTP."""
        return cls(f"Nothing is at {excerpt(path)}; GET / lists all endpoints.")


class MethodNotAllowed(ServiceError):
    """The path exists, but does not accept this method."""

    http_status = 405
    grpc_code = "UNIMPLEMENTED"


class ProviderUnavailable(Exception):
    """The execution provider that the settings require does not work on this machine.

    Not a ServiceError: it is for the operator. A server that starts stops with it.
    """
