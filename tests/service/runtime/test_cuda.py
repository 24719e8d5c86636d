"""Where CUDA does not work, the message names the cause in one sentence."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from service.core.errors import ProviderUnavailable
from service.runtime import cuda
from service.runtime import session as sessions
from service.runtime.session import SessionOptions, load

FUNCTION = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 "
    "std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, "
    "const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; "
    "std::conditional_t<THRW, void, common::Status> = void] "
)
NO_DEVICE = "CUDA failure 100: no CUDA-capable device is detected"
PLACE = " ; GPU=-1 ; hostname=vm ; file=/onnxruntime_src/cuda_execution_provider.cc ; line=355"


class Driver:
    """A libcuda with this status of cuInit and this many devices."""

    def __init__(self, status: int, devices: int) -> None:
        self._status, self._devices = status, devices

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._devices
        return 0


def loads(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, library: str = "") -> None:
    """Make the loader find this driver, and fail on the library for CUDA with `library`."""

    def load_library(name: str) -> object:
        if name == "libcuda.so.1" and driver is not None:
            return driver
        raise OSError(library or f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load_library)


def test_an_error_is_shortened_by_its_functions_and_source_lines():
    assert cuda.in_short(FUNCTION + FUNCTION + NO_DEVICE + PLACE) == NO_DEVICE
    assert cuda.in_short("two\nlines") == "two lines"
    assert len(cuda.in_short("long " * 1000)) < 400


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch):
    loads(monkeypatch, None)
    assert "no NVIDIA driver" in cuda.what_is_missing()
    assert "libcuda.so.1" in cuda.what_is_missing()


@pytest.mark.parametrize("driver", [Driver(100, 0), Driver(0, 0)])
def test_a_driver_that_shows_no_device_is_named(monkeypatch: pytest.MonkeyPatch, driver: Driver):
    loads(monkeypatch, driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda.what_is_missing() == "the NVIDIA driver shows no CUDA device"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert cuda.what_is_missing().endswith("no CUDA device (CUDA_VISIBLE_DEVICES is '-1')")


def test_a_driver_that_does_not_start_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch):
    loads(monkeypatch, Driver(803, 0))
    assert "CUDA error 803" in cuda.what_is_missing()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    message = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
    loads(monkeypatch, Driver(0, 1), message)
    assert cuda.what_is_missing().endswith(message)


def test_if_cuda_fails_the_error_has_the_cause_or_else_the_short_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(FUNCTION + NO_DEVICE + PLACE)

    monkeypatch.setattr(sessions, "cuda_is_built_in", lambda: True)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", fail)
    monkeypatch.setattr(cuda, "what_is_missing", lambda: "it is hidden")
    path = tmp_path / "model.onnx"
    with pytest.raises(ProviderUnavailable) as raised:
        load(path, SessionOptions("cuda"))
    assert str(raised.value) == f"CUDA does not run {path}: it is hidden"
    monkeypatch.setattr(cuda, "what_is_missing", lambda: "")
    with pytest.raises(ProviderUnavailable) as raised:
        load(path, SessionOptions("cuda"))
    assert str(raised.value) == f"CUDA does not run {path}: {NO_DEVICE}"
