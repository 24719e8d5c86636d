"""Profiles one `POST /predict` with a PNG and prints the walk as JSON.

A program of its own: the messages of `service.stubs` and those of tritonclient, which other tests
import, cannot be in one process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import service
from service.core.callers import Callers
from service.http.flask_app import create_app
from service.http.front import HttpFront
from service.http.http1.connection import RequestScope
from service.http.http1.heads import Head
from service.settings import Settings
from service.worker import Service
from tests.conftest import ROOT, SHIPPED_MODELS

OURS = str(Path(service.__file__).parent)


class Connection:
    """The server's end of a connection: gives the body of a request, takes its response."""

    def __init__(self, body: bytes) -> None:
        self.whole = body
        self.status = 0
        self.answer: Any = None

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.answer = json.loads(body)


def ours(frame: FrameType | None) -> Iterator[CodeType]:
    """The functions of service/ on the stack of a frame, innermost first."""
    while frame is not None:
        code = frame.f_code
        # A comprehension is a frame of its own before Python 3.12, and none after.
        if code.co_filename.startswith(OURS) and not code.co_name.startswith("<"):
            yield code
        frame = frame.f_back


class Walk:
    """The calls of one request: every function of service/ that ran, and the nested ones."""

    def __init__(self) -> None:
        self.functions: set[CodeType] = set()
        self.deepest = 0
        self.to_the_queue: list[str] = []
        self.to_the_model: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            stack = list(ours(frame))
            if not stack or stack[0] is not frame.f_code:
                return
            self.functions.add(frame.f_code)
            self.deepest = max(self.deepest, len(stack))
            names = [code.co_qualname for code in reversed(stack)]
            if names[-1] == "Batcher.submit":
                self.to_the_queue = names
            elif names[-1] in ("WholeRuns.run", "PartedRuns.run"):
                self.to_the_model = names


async def predict(body: bytes) -> Walk:
    """The walk of the second of two requests: the first may do what later ones need not."""
    loop = asyncio.get_running_loop()
    # On a busy machine a run may exceed the default budget, and leave the loop.
    settings = Settings(models=SHIPPED_MODELS, inline_budget=1000)
    parts = Service(settings)
    await parts.repository.refresh()
    front = HttpFront(
        max_request_bytes=settings.max_request_bytes,
        body_timeout=settings.body_timeout,
        fast_lane=settings.fast_lane,
        callers=Callers(),
        reads_ahead=True,
    )
    app = create_app(parts.http_app, loop, settings.max_request_bytes)
    front.start(parts.http_app, app, parts.budget)

    line = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png"
    head = Head(line + b"\r\nContent-Length: %d" % len(body))
    client: Any = SimpleNamespace(client="127.0.0.1:50000", server="", scheme="http")
    client.client_name = ""
    scope = RequestScope(head, client)

    async def ask() -> None:
        connection: Any = Connection(body)
        await asyncio.create_task(front(scope, connection))
        assert connection.status == 200
        assert connection.answer["predictions"][0]["digit"] == 7

    await ask()
    walk = Walk()
    sys.setprofile(walk)
    try:
        await ask()
    finally:
        sys.setprofile(None)
    parts.executor.shutdown()
    return walk


if __name__ == "__main__":
    walk = asyncio.run(predict((ROOT / "docs" / "seven.png").read_bytes()))
    print(
        json.dumps(
            {
                "functions": sorted(code.co_qualname for code in walk.functions),
                "to_the_queue": walk.to_the_queue,
                "to_the_model": walk.to_the_model,
                "deepest": walk.deepest,
            }
        )
    )
