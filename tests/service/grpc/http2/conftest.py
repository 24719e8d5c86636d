"""How long clients may take to confirm the end of a connection, in tests of stops."""

from __future__ import annotations

import pytest

from service.grpc.http2 import listener


@pytest.fixture
def no_time_to_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_LINGER_S", 0.0)


@pytest.fixture
def an_hour_to_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_LINGER_S", 3600.0)
