"""Checks which ONNX Runtime package is installed, before it is imported."""

from __future__ import annotations

from importlib import metadata


def installed_packages() -> list[str]:
    """The ONNX Runtime packages that are installed, with their versions."""
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return installed


def conflicting_packages() -> str:
    """What to do if both ONNX Runtime packages are installed, or none; empty if one is.

    Both install into the folder onnxruntime/, so the second overwrites half of the first.
    """
    installed = installed_packages()
    if len(installed) == 1:
        return ""
    if not installed:
        return "ONNX Runtime is not installed; install the extra 'cpu' or the extra 'gpu'."
    return (
        f"Both {' and '.join(installed)} are installed, and they overwrite each other; "
        "uninstall both with pip, then install either the extra 'cpu' or the extra 'gpu'."
    )
