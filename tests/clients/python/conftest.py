"""Both kinds of client, and both transports of one real server."""

from __future__ import annotations

import pytest

from tests.clients.python.calling import Calling
from tests.conftest import Server


@pytest.fixture(params=[False, True], ids=["sync", "asyncio"])
def calling(request: pytest.FixtureRequest) -> Calling:
    """Calls a method of a synchronous or an asyncio client."""
    return Calling(request.param)


@pytest.fixture(params=["http", "grpc"])
def address(request: pytest.FixtureRequest, server: Server) -> str:
    """The address of a real server over one of the transports."""
    return f"grpc://{server.grpc}" if request.param == "grpc" else f"http://{server.http}"
