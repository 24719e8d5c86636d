"""Everything that can go wrong for a caller, each kind with both its status codes, once.

HTTP and gRPC only look the codes up; no handler writes a status number.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """A failure that the caller is told about; the message is one sentence for people.

    The gRPC codes are the names of https://grpc.io/docs/guides/status-codes/.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InternalError(ServiceError):
    """The server's own fault; details are in its log, under the request id."""


class InvalidArgument(ServiceError):
    """The request itself is wrong: sending it again will fail again."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class RequestTooLarge(InvalidArgument):
    """The body, the image or the batch is over a limit."""

    http_status = 413


class UnsupportedMediaType(InvalidArgument):
    """The content type is not one that this endpoint reads."""

    http_status = 415


class RequestTimeout(InvalidArgument):
    """The body did not arrive in time."""

    http_status = 408


class NotFound(ServiceError):
    """What the caller names is not there."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No such model, or no such version of it, is loaded."""


class LoadFailed(ServiceError):
    """A model that was to be loaded cannot be; what was loaded of it before still is."""

    http_status = 400
    grpc_code = "FAILED_PRECONDITION"


class AlreadyExists(ServiceError):
    """The name is taken."""

    http_status = 409
    grpc_code = "ALREADY_EXISTS"


class Forbidden(ServiceError):
    """The settings of this server do not allow it."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class Unimplemented(ServiceError):
    """The protocol has it, this server does not."""

    http_status = 501
    grpc_code = "UNIMPLEMENTED"


class Unavailable(ServiceError):
    """Something that is needed does not answer: try again."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class Overloaded(ServiceError):
    """The queue is full: try again a little later, or elsewhere."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    retry_after_s: ClassVar[int] = 1


class DeadlineExceeded(ServiceError):
    """The caller's deadline or timeout passed before the answer was there."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class NoSuchEndpoint(ServiceError):
    """Nothing is at this path."""

    http_status = 404
    grpc_code = "UNIMPLEMENTED"


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    http_status = 405
    grpc_code = "UNIMPLEMENTED"
