"""A signal asks the run to stop; a second one ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from training.run.signals import Stopper

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restores the signal handlers, which belong to the process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_recorded(number: signal.Signals) -> None:
    with Stopper() as stopper:
        assert not stopper.requested()
        signal.raise_signal(number)
        assert stopper.requested()
        assert stopper.signal_number == number


def test_default_handlers_return_after_the_run() -> None:
    with Stopper():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_ends_the_process(number: signal.Signals) -> None:
    code = f"""
import signal
from training.run.signals import Stopper
with Stopper():
    signal.raise_signal({int(number)})
    print("recorded", flush=True)
    signal.raise_signal({int(number)})
    print("survived")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "recorded\n"
    assert done.returncode == -number
