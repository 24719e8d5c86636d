"""Which ONNX Runtime package is installed: looked up before the first import of it."""

from __future__ import annotations

from importlib import metadata


def conflicting_packages() -> str:
    """A sentence if both ONNX Runtime packages are installed, or neither; else empty.

    Both install into the folder onnxruntime/, so the later one overwrites half of the first.
    """
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(installed) == 1:
        return ""
    if not installed:
        return "ONNX Runtime is not installed; install the extra 'cpu' or the extra 'gpu'."
    return (
        f"Both {' and '.join(installed)} are installed, and they overwrite each other; "
        "pip uninstall both, then install the extra 'cpu' or the extra 'gpu' alone."
    )
