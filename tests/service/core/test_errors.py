from __future__ import annotations

import errno
from http import HTTPStatus

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import errors
from service.core.errors import ServiceError

# The HTTP statuses that may stand beside each gRPC code.
HTTP_OF_GRPC = {
    "INTERNAL": {500},
    "INVALID_ARGUMENT": {400, 408, 413, 415},
    "NOT_FOUND": {404},
    "FAILED_PRECONDITION": {400},
    "ALREADY_EXISTS": {409},
    "PERMISSION_DENIED": {403},
    "UNAUTHENTICATED": {401},
    "UNIMPLEMENTED": {404, 405, 501},
    "UNAVAILABLE": {503},
    "RESOURCE_EXHAUSTED": {429, 503},
    "DEADLINE_EXCEEDED": {504},
}
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ServiceError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_both_status_codes_of_an_error_exist_and_agree(kind: type[ServiceError]) -> None:
    assert kind.grpc_code in grpc.StatusCode.__members__
    assert kind.http_status in set(HTTPStatus)
    assert kind.http_status in HTTP_OF_GRPC[kind.grpc_code]


@pytest.mark.parametrize("kind", KINDS)
def test_message_is_the_sentence_of_the_error_or_else_its_name(kind: type[ServiceError]) -> None:
    assert kind("The sentence.").message == "The sentence."
    assert kind().message == kind.__name__


def test_clients_are_asked_to_try_an_overloaded_server_again() -> None:
    assert errors.Overloaded("Full.").retry_after_s == 1
    assert [errors.Overloaded.of("Full", wait).retry_after_s for wait in (0, 0.2, 1, 1.2)] == [
        *[1, 1, 1, 2]
    ]


@given(st.text(max_size=500))
def test_an_excerpt_is_the_beginning_of_a_text(text: str) -> None:
    quoted = errors.excerpt(text)
    assert len(quoted) <= 200
    assert text.startswith(quoted.removesuffix("...")) if len(text) > 200 else quoted == text


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    message = errors.InvalidArgument("a" * 600 + "b" * 5_000_000 + "c" * 600).message
    assert len(message) <= 1000
    assert message.startswith("a" * 498 + "...c")
    assert message.endswith("c" * 498)
    assert errors.InvalidArgument("d" * 1000).message == "d" * 1000


def test_what_passes_is_told_from_what_stays_through_its_causes() -> None:
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        load_error = errors.ModelLoadError("cannot read model.onnx")
        load_error.__cause__ = OSError(number, "")
        assert errors.is_used_up(load_error)
    load_error.__cause__ = OSError(errno.EACCES, "")
    assert not errors.is_used_up(load_error)
    assert not errors.is_used_up(ValueError())
    assert not errors.is_used_up(None)
