"""Which device to train on, and what it can do."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

import torch

from training.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = 2**31 - 1


def choose_device(wanted: str) -> torch.device:
    """Return the device; `auto` takes CUDA where there is any. Raises UsageError."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA here; use cpu or auto.")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        # Without it cuBLAS refuses deterministic algorithms.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device(wanted)


def computes_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bfloat16: without them that is ten times slower, not faster.

    Of CPUs: AVX512_BF16 or AMX.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch 2.10 cannot say, and goes without.
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def be_deterministic() -> None:
    """Take no algorithm that adds up in another order each time. Raises where there is no other."""
    torch.use_deterministic_algorithms(mode=True)
    # It would also fill every new tensor with NaN, for a seventh of a step's time, to show where
    # memory is read that was never written. (The stubs do not know the attribute.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of returning each to the kernel (mallopt(3)).

    Otherwise every activation is mapped and zeroed anew at each step: measured on 2 cores, an
    epoch of `fast` took 1.65 times as long, most of it in the kernel. Does nothing elsewhere.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 2**30)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def cpu_model() -> str:
    """The CPU's name as the system tells it, else its architecture."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        told = ""
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
