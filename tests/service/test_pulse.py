from __future__ import annotations

import math
import os
import time

from service.pulse import main_thread, process_cpu_s


def test_the_cpu_time_of_a_process_grows_with_its_work() -> None:
    before = process_cpu_s(os.getpid())
    end = time.process_time() + 0.1  # the kernel counts in steps of 0.01 s
    while time.process_time() < end:
        pass
    assert process_cpu_s(os.getpid()) > before
    assert main_thread(os.getpid()).is_runnable
    assert main_thread(os.getpid()).cpu_s > 0


def test_a_process_that_has_ended_has_no_cpu_time() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert math.isnan(process_cpu_s(pid))
    assert not main_thread(pid).is_runnable
