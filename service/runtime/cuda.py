"""Why CUDA does not work here, in one sentence: asked of its driver and of the loader.

ONNX Runtime's own messages name the C++ function that failed, or only that nothing could be placed
on CUDA where its libraries are missing.
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
# The C++ function that failed, and where it stands; what is between is the message.
_PRELUDE = re.compile(r"/onnxruntime_src/\S+ std::conditional_t<.*?\[with .*?\] ")
_STATUS = re.compile(r"^(Error in execution: )?\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACE = re.compile(r" ; GPU=.*")


def what_is_missing() -> str:
    """What keeps CUDA from working on this machine; empty if it is not known.

    To be asked after ONNX Runtime has tried: its library for CUDA cannot be loaded before.
    """
    return missing_device() or _missing_library()


def in_short(message: str) -> str:
    """A message of ONNX Runtime on one line, without the names and places of C++ functions."""
    line = " ".join(message.split())
    for pattern in (_PRELUDE, _PLACE, _STATUS):
        line = pattern.sub("", line)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."


def missing_device() -> str:
    """Why the driver shows no device; empty if it shows one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver here, or this container is not shown it ({error})"
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
        return f"a library is missing, install the extra 'gpu' with all that it needs: {error}"
    return ""
