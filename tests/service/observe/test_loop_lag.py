from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from pathlib import Path

import pytest

from service.observe import loop_lag
from service.observe.loop_lag import LONG_S, LagMonitor

HERE = Path(__file__).parent


def messages(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def hold_until_it_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    before = len(messages(caplog, "has not run for"))
    while len(messages(caplog, "has not run for")) == before:
        time.sleep(0.01)


def test_what_holds_the_loop_is_named_while_and_after_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lags: list[float] = []

    async def hold() -> None:
        monitor = LagMonitor(lags.append, HERE, reminder_s=0)
        while not lags:
            await asyncio.sleep(0.01)
        hold_until_it_is_noticed(caplog)
        while max(lags, default=0) < LONG_S:
            await asyncio.sleep(0.01)
        monitor.stop()

    asyncio.run(hold())
    (while_held,) = messages(caplog, "has not run for")
    assert "hold_until_it_is_noticed (test_loop_lag.py:" in while_held
    after = messages(caplog, "was held for")
    assert any("hold_until_it_is_noticed (test_loop_lag.py:" in line for line in after)
    assert max(lags) >= 1


def test_the_code_that_runs_the_loop_is_not_what_holds_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stack of this loop begins in this file. Only what a callback adds to it counts."""
    lags: list[float] = []
    noticed = threading.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has not run for" in record.getMessage():
                noticed.set()

    async def hold() -> None:
        monitor = LagMonitor(lags.append, HERE, reminder_s=0)
        while not lags:
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_soon(noticed.wait)
        await asyncio.sleep(0.1)
        monitor.stop()

    handler = Notice()
    loop_lag.log.addHandler(handler)
    try:
        asyncio.run(hold())
    finally:
        loop_lag.log.removeHandler(handler)
    (line,) = messages(caplog, "has not run for")
    assert line.endswith("s: ?.")


def test_a_look_at_the_loop_keeps_nothing_of_what_it_saw(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lags: list[float] = []
    others = set(threading.enumerate())
    seen: list[weakref.ref[threading.Event]] = []

    def hold() -> None:
        local = threading.Event()
        seen.append(weakref.ref(local))
        hold_until_it_is_noticed(caplog)

    async def hold_once() -> None:
        monitor = LagMonitor(lags.append, HERE, reminder_s=0)
        while not lags:
            await asyncio.sleep(0.01)
        hold()
        monitor.stop()
        for thread in set(threading.enumerate()) - others:
            thread.join()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(hold_once())
        assert [reference() for reference in seen] == [None]
    finally:
        gc.enable()


def test_lines_are_rate_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lags: list[float] = []

    async def hold_twice() -> None:
        monitor = LagMonitor(lags.append, HERE, reminder_s=3600)
        await asyncio.sleep(0)
        for count in (1, 2):
            hold_until_it_is_noticed(caplog)
            while len([lag for lag in lags if lag >= 1]) < count:
                await asyncio.sleep(0.01)
        monitor.stop()

    asyncio.run(hold_twice())
    assert len(messages(caplog, "was held for")) == 1


def test_an_idle_loop_is_measured_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    lags: list[float] = []

    async def idle() -> None:
        monitor = LagMonitor(lags.append, HERE)
        while len(lags) < 3:
            await asyncio.sleep(0.01)
        monitor.stop()

    asyncio.run(idle())
    assert all(lag >= 0 for lag in lags)
    assert not messages(caplog, "has not run for")
