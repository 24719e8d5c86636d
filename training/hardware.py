"""The machine that a run uses: its device, what that can compute, and its memory allocator."""

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


def choose_device(name: str) -> torch.device:
    """Return one of `DEVICES`; `auto` is CUDA if available, else the CPU. Raises UsageError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device; use cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # cuBLAS has deterministic algorithms only with this setting.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device(name)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 (on CPUs, AVX512_BF16 or AMX).

    Emulated bfloat16 is ten times slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch 2.10 lacks the function; there the answer is False.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def be_deterministic() -> None:
    """Use deterministic algorithms only; torch raises where none exists."""
    torch.use_deterministic_algorithms(mode=True)
    # By default that also fills every new tensor with NaN, to reveal reads of uninitialised memory,
    # which takes a seventh of a step's time. (The type stubs lack the attribute.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them to the kernel (mallopt(3)).

    A step allocates the same few large blocks as the step before. If each is mapped and zeroed
    again, an epoch of `fast` takes 1.65 times as long (measured on 2 cores), mostly in the kernel.
    Without glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 2**30)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def cpu_model() -> str:
    """Return the model name of the CPU, or its architecture on systems without /proc/cpuinfo."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        cpuinfo = ""
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return name[1].strip() if name else platform.machine()
