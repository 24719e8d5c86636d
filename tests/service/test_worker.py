"""Tasks of a worker that tests/e2e cannot make fail. Runs in a process of its own (conftest.py)."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.worker import Service, Worker


class Exit(BaseException):
    """In place of the end of the process."""


def test_the_event_loop_runs_while_the_last_traces_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Collecting:
        """An exporter that waits for the event loop."""

        def stop(self, seconds: float) -> None:
            assert 0 <= seconds <= 31
            ticked = threading.Event()
            loop.call_soon_threadsafe(ticked.set)
            assert ticked.wait(60)
            stopped.append(True)

    def end(status: int) -> None:
        raise Exit(status)

    monkeypatch.setattr(os, "_exit", end)
    stopped: list[bool] = []
    worker: Any = object.__new__(Worker)
    worker._spans, worker._stop_by = Collecting(), time.monotonic() + 30
    loop = asyncio.new_event_loop()
    with pytest.raises(Exit):
        loop.run_until_complete(worker._exit())
    loop.close()
    assert stopped == [True]


def test_the_worker_looks_for_versions_again_after_an_unexpected_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Service(Settings(models=tmp_path, poll_interval=0.01), tmp_path)
        polls, again = 0, asyncio.Event()

        async def refresh() -> None:
            nonlocal polls
            polls += 1
            if polls == 1:
                raise RuntimeError("an unforeseen error")
            again.set()

        monkeypatch.setattr(service.repository, "refresh", refresh)
        watching = asyncio.create_task(service.watch())
        await asyncio.wait_for(again.wait(), 120)
        watching.cancel()
        service.executor.shutdown()

    asyncio.run(main())
    assert "an unforeseen error" in caplog.text
