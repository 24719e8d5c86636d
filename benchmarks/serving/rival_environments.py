"""A virtual environment per rival, created on demand from its locked requirements and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paths import ROOT, VENVS

_INSTALL_WITHIN_S = 1800
# Packages whose versions matter for every contender.
_ALWAYS = ("onnxruntime", "numpy")


class NotInstalled(Exception):
    """A rival's environment cannot be created; the message says why."""


def environment(
    name: str,
    requirements: Path,
    interpreter: str = sys.executable,
    *,
    install: bool = True,
) -> Path:
    """The folder of a rival's environment, with its packages installed. Raises NotInstalled.

    The requirements are all packages, with the hashes of their files.
    """
    folder = VENVS / name
    marker = folder / ".installed"
    pins = requirements.read_text(encoding="utf-8")
    if marker.exists() and marker.read_text(encoding="utf-8") == pins:
        return folder
    if not install:
        raise NotInstalled("it is not installed, and this run installs nothing")
    print(f"Installing {name} into {folder} ...", flush=True)
    _run([interpreter, "-m", "venv", "--clear", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    _run([*pip, "--no-deps", "--require-hashes", "--requirement", str(requirements)])
    marker.write_text(pins, encoding="utf-8")
    return folder


def own_environment() -> Path:
    """An environment with what the image installs to serve, to measure its size.

    The measured server runs from the working tree on this interpreter instead. Raises NotInstalled.
    """
    return environment("ours", ROOT / "deploy" / "locks" / "serve.txt")


def size_mb(folder: Path) -> float:
    """The size of an environment on disk, without pip and setuptools."""
    return (
        sum(
            path.lstat().st_size
            for path in folder.rglob("*")
            if path.is_file()
            and not path.is_symlink()
            and not {"pip", "setuptools"} & set(path.relative_to(folder).parts)
        )
        / 1e6
    )


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Versions of the named packages in an environment; missing packages are left out."""
    code = (
        "import sys, json, importlib.metadata as m\n"
        "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
    )
    output = subprocess.run(  # noqa: S603 (the Python of an environment made here)
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout
    installed: dict[str, str] = json.loads(output)
    return {name: installed[name] for name in (*names, *_ALWAYS) if name in installed}


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (pip, with the packages of this tree)
            command, capture_output=True, text=True, timeout=_INSTALL_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"installing took longer than {_INSTALL_WITHIN_S} seconds") from None
    except OSError as error:
        raise NotInstalled(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise NotInstalled(f"{' '.join(command[:3])} failed: " + " | ".join(lines[-3:]))
