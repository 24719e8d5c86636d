"""The priority of the threads of models, which the event loop has to share cores with."""

from __future__ import annotations

import os
import threading
import time

from service.runtime.run_thread import RunThread


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def compute() -> None:
    """Take 11 ms of a core, however long that is."""
    start = time.thread_time()
    while time.thread_time() < start + 0.011:
        pass


def test_a_thread_gives_way_after_a_long_run_and_stays_the_only_one() -> None:
    thread = RunThread("run")
    before = thread.submit(niceness).result()
    first = thread.submit(threading.get_native_id).result()
    assert before == niceness()
    assert thread.submit(niceness).result() == before
    thread.submit(compute).result()
    assert thread.submit(niceness).result() == min(before + 10, 19)
    thread.submit(compute).result()
    assert thread.submit(niceness).result() == min(before + 10, 19)
    assert thread.submit(threading.get_native_id).result() == first
    assert niceness() == before


def test_several_short_runs_of_one_call_keep_the_priority() -> None:
    thread = RunThread("runs")

    def runs() -> None:
        for _ in range(4):
            start = time.thread_time()
            while time.thread_time() < start + 0.004:
                pass
            thread.next_run()

    before = thread.submit(niceness).result()
    thread.submit(runs).result()
    assert thread.submit(niceness).result() == before


def test_a_thread_that_waits_keeps_its_priority() -> None:
    thread = RunThread("run")
    thread.submit(time.sleep, 0.02).result()
    assert thread.submit(niceness).result() == niceness()


def test_a_failed_run_fails_its_future() -> None:
    failed = RunThread("run").submit(int, "x")
    assert isinstance(failed.exception(), ValueError)


def test_the_thread_ends_with_its_executor() -> None:
    executor = RunThread("ends")
    executor.submit(compute).result()
    (thread,) = [each for each in threading.enumerate() if each.name.startswith("ends")]
    del executor
    thread.join(60)
    assert not thread.is_alive()
