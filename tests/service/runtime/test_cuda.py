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


def test_the_functions_and_places_of_an_error_are_left_out():
    assert cuda.in_short(FUNCTION + FUNCTION + NO_DEVICE + PLACE) == NO_DEVICE
    assert cuda.in_short("two\nlines") == "two lines"
    assert len(cuda.in_short("long " * 1000)) < 400


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch):
    loads(monkeypatch, None)
    assert "no NVIDIA driver" in cuda.what_is_missing()
    assert "libcuda.so.1" in cuda.what_is_missing()


@pytest.mark.parametrize("driver", [Driver(100, 0), Driver(0, 0)])
def test_a_driver_without_a_device(monkeypatch: pytest.MonkeyPatch, driver: Driver):
    loads(monkeypatch, driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda.what_is_missing() == "the NVIDIA driver shows no CUDA device"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert cuda.what_is_missing().endswith("no CUDA device (CUDA_VISIBLE_DEVICES is '-1')")


def test_a_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch):
    loads(monkeypatch, Driver(803, 0))
    assert "CUDA error 803" in cuda.what_is_missing()


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    said = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
    loads(monkeypatch, Driver(0, 1), said)
    assert cuda.what_is_missing().endswith(said)


def test_cuda_that_fails_is_refused_with_the_cause_or_what_onnx_runtime_said_in_short(
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
