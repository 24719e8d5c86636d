"""Tasks of a worker that tests/e2e cannot make fail. Runs in a process of its own (conftest.py)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.settings import Settings
from service.worker import Service


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
