"""The device lock is held for runs, captures and releases, and free between captures."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.core.batching import Batching
from service.core.errors import ModelLoadError
from service.runtime import fixed_batches
from service.runtime.device import DEVICE, OnDevice, wait_for_releases
from service.runtime.fixed_batches import _Buffers, sizes
from service.runtime.session import CPU, Session, SessionOptions, _create, load
from tests.conftest import SHIPPED_MODELS
from tests.e2e.onnx_models import publish_identity

DECLARED = Batching(True, "declared")
SHIPPED = SHIPPED_MODELS / "mnist" / "1" / "model.onnx"
IMAGES = np.zeros((3, 28, 28), np.uint8)


def on_device(fixed: bool, path: Path = SHIPPED) -> Session:
    session = ort.InferenceSession(str(path), providers=[CPU])
    return Session(session, 8, DECLARED, "cpu", fixed)


@contextmanager
def waits_for_the_device() -> Iterator[ThreadPoolExecutor]:
    """Hold the lock: a task submitted inside that needs the device cannot finish before the end."""
    with ThreadPoolExecutor(1) as executor:
        with DEVICE:
            yield executor
        executor.submit(int).result(120)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_run_on_the_device_waits_for_the_lock(fixed: bool) -> None:
    session = on_device(fixed)
    with waits_for_the_device() as executor:
        run = executor.submit(session.run, [IMAGES])
        with pytest.raises(TimeoutError):
            run.result(0.05)
    assert run.result()[1].shape == (3, 10)


def test_a_run_of_bfloat16_on_the_device_waits_for_the_lock(tmp_path: Path) -> None:
    publish_identity(tmp_path, "BF16")
    session = on_device(False, tmp_path / "identity_bf16" / "1" / "model.onnx")
    x = np.ones((3, 2), np.uint16)
    with waits_for_the_device() as executor:
        run = executor.submit(session.run, [x])
        with pytest.raises(TimeoutError):
            run.result(0.05)
    assert run.result()[0].tolist() == x.tolist()


def test_without_any_session_waiting_for_releases_returns_at_once() -> None:
    # In a process of its own, since this one has created sessions.
    code = "from service.runtime.device import wait_for_releases; wait_for_releases(3600)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_session_on_the_cpu_does_not_use_the_lock() -> None:
    def load_and_run() -> tuple[int, ...]:
        return load(SHIPPED, SessionOptions("cpu")).run([IMAGES])[1].shape

    with ThreadPoolExecutor(1) as executor, DEVICE:
        assert executor.submit(load_and_run).result(120) == (3, 10)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_session_is_freed_under_the_lock(fixed: bool) -> None:
    ort_session = ort.InferenceSession(str(SHIPPED), providers=[CPU])
    held = []
    weakref.finalize(ort_session, lambda: held.append(DEVICE.locked()))
    session = Session(ort_session, 8, DECLARED, "cpu", fixed)
    del ort_session
    with DEVICE:
        del session
        assert held == []
    wait_for_releases()
    assert held == [True]


def test_buffers_are_freed_under_the_lock_after_their_thread_has_ended() -> None:
    session = on_device(True)
    assert session._fixed is not None
    (thread,) = session._fixed._thread._threads
    freed = []
    for buffers in session._fixed._buffers:
        weakref.finalize(buffers, lambda: freed.append((DEVICE.locked(), thread.is_alive())))
    del buffers, session
    wait_for_releases()
    assert freed == [(True, False)] * len([*sizes(8), 8])


@pytest.mark.parametrize("fixed", [False, True])
def test_a_failed_load_frees_its_session_under_the_lock(
    monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    held = []
    create = ort.InferenceSession

    def watched(path: str, options: object, **rest: object) -> ort.InferenceSession:
        session = create(path, options, **rest)
        weakref.finalize(session, lambda: held.append(DEVICE.locked()))
        return session

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(ort, "InferenceSession", watched)
    monkeypatch.setattr(_Buffers, "run", fail)
    monkeypatch.setattr(OnDevice, "run", fail)
    with pytest.raises(ModelLoadError, match="out of memory") as raised:
        _create(SHIPPED, SessionOptions(), DECLARED, [CPU], device="cpu", fixed=fixed)
    # It is freed before the error is raised, since another attempt needs the memory, and not when
    # the error itself is freed.
    assert held == [True]
    del raised


def test_a_request_is_answered_between_the_captures_of_a_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, answered = on_device(True), list[int]()

    def request() -> None:
        assert not DEVICE.locked()
        answered.append(len(other.run([IMAGES])[1]))

    monkeypatch.setattr(fixed_batches, "give_way", request)
    on_device(True)
    assert answered == [3] * len([*sizes(8), 8])
