"""A contender with TLS and an API key: both are needed, and its callers bring both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import served_models
from benchmarks.access import Access
from benchmarks.check import WrongAnswer, ask, check_images, is_ready
from benchmarks.contenders import OURS_SECURED
from benchmarks.server_process import Server
from benchmarks.wire_formats import WIRES


def test_secured_contender_answers_with_tls_and_its_key_only(tmp_path: Path):
    images = served_models.test_images(1)
    expected = served_models.expected("fast", images)
    server = Server(
        OURS_SECURED, models=served_models.repository("fast"), venv=None, scratch=tmp_path
    )

    def call(wire: str, access: Access | None) -> None:
        ask(
            server.port(wire),
            OURS_SECURED.endpoints[wire],
            wire,
            WIRES[wire].encode(images),
            access,
        )

    try:
        server.wait_until(lambda: is_ready(server, "raw"), 120)
        access = server.access
        assert access is not None
        assert server.url("raw") == f"https://127.0.0.1:{server.http_port}/predict"
        assert server.headers == (("authorization", f"Bearer {access.key}"),)
        for wire in ("raw", "grpc"):
            assert check_images(server, wire, images, expected, 1e-4) > 0
            with pytest.raises(WrongAnswer, match=r"401|UNAUTHENTICATED"):
                call(wire, dataclasses.replace(access, key=f"{access.key}x"))
            with pytest.raises((OSError, WrongAnswer)):
                call(wire, None)
    finally:
        server.stop()
