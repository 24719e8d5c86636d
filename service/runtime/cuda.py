"""Finds out why CUDA does not work on this machine, from its driver and the dynamic loader.

ONNX Runtime's own messages name the C++ function that failed. If libraries are missing, they only
say that no part of the model could be placed on CUDA.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import onnxruntime as ort

_PROVIDER = "libonnxruntime_providers_cuda.so"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_LONGEST = 300
# A message names the C++ function that failed before its text, and the source line after it.
_PRELUDE = re.compile(r"/onnxruntime_src/\S+ std::conditional_t<.*?\[with .*?\] ")
_STATUS = re.compile(r"^(Error in execution: )?\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACE = re.compile(r" ; GPU=.*")


def what_is_missing() -> str:
    """What keeps CUDA from working on this machine; empty if unknown.

    Call it after ONNX Runtime has tried CUDA: its library for CUDA cannot be loaded before.
    """
    return missing_device() or _missing_library()


def in_short(message: str) -> str:
    """A message of ONNX Runtime on one line, without C++ functions and source lines."""
    line = " ".join(message.split())
    for pattern in (_PRELUDE, _PLACE, _STATUS):
        line = pattern.sub("", line)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."


def missing_device() -> str:
    """Why the NVIDIA driver shows no device; empty if it shows one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver is installed, or this container cannot see it ({error})"
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if not status:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, _NO_DEVICE):
        return f"the NVIDIA driver does not start: CUDA error {status}"
    if count.value:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is '{visible}')"
    return f"the NVIDIA driver shows no CUDA device{hidden}"


def _missing_library() -> str:
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / _PROVIDER))
    except OSError as error:
        return f"a library is missing; install the extra 'gpu' with its dependencies: {error}"
    return ""
