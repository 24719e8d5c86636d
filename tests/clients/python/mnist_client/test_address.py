"""Addresses and TLS files."""

from __future__ import annotations

from pathlib import Path

import pytest
from mnist_client import TLS
from mnist_client.address import Address, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address(False, False, "127.0.0.1:8000")),
        ("https://digits.example/api", Address(False, True, "digits.example", "/api/")),
        ("http://[::1]:8000/", Address(False, False, "[::1]:8000")),
        ("grpc://localhost:8001", Address(True, False, "localhost:8001")),
        ("grpcs://[::1]:8001", Address(True, True, "[::1]:8001")),
    ],
)
def test_addresses_are_parsed(text: str, address: Address) -> None:
    assert parse(text) == address


def test_the_url_of_http_ends_with_a_slash() -> None:
    assert parse("https://digits.example/api").url == "https://digits.example/api/"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not an address, such as http://127.0.0.1:8000"),
        ("ftp://x:1", "is not an address"),
        ("http://x:port", "is not an address"),
        ("http://x:99999", "is not an address"),
        ("grpc://x", "has no port"),
        ("grpc://x:1/path", "has a path"),
        ("http://x/?model=y", "a query"),
    ],
)
def test_what_is_wrong_with_an_address_is_named(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="bearer_key") as caught:
        parse("http://me:secret@x:1")
    assert "secret" not in str(caught.value)


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="key_file needs certificate_file"):
        TLS(key_file="key.pem")


def test_a_missing_file_is_an_error_of_the_constructor(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        TLS(ca_file=tmp_path / "missing.pem").context()
