"""Which device to train on, and what it can do."""

from __future__ import annotations

import os

import torch

from training.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")


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
