"""Runs the modules that need service/stubs/inference in a process of their own.

Those messages and tritonclient's both define the protobuf package `inference`, and a process can
hold only one of the two. Other tests import tritonclient. When pytest is asked for nothing but such
modules, they run in pytest's own process.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Properties must not depend on the time that an example takes on a busy machine.
settings.register_profile(
    "no time limit", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no time limit")

_FOLDER = Path(__file__).parent
# Modules, and folders without their subfolders.
_NEED_OUR_MESSAGES = (
    _FOLDER / "check",
    _FOLDER / "grpc",
    _FOLDER / "repository" / "test_triton_config.py",
    _FOLDER / "repository" / "test_versions.py",
    _FOLDER / "test_banner.py",
    _FOLDER / "test_worker.py",
)
_SECONDS = 1800


@pytest.fixture
def root_level() -> Iterator[None]:
    """Starts from the default log level of the server; the level belongs to the process."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    yield
    logging.getLogger().setLevel(level)


class OwnProcess(pytest.Item):
    """All tests of some modules, as one test."""

    def __init__(self, **node: Any) -> None:
        super().__init__(**node)
        self.modules = [str(self.path)]

    def runtest(self) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.modules]
        done = subprocess.run(
            command,
            cwd=self.config.rootpath,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(done.stdout, pytrace=False)


class IsolatedModule(pytest.File):
    """A test module that this process does not import."""

    def collect(self) -> Iterator[pytest.Item]:
        yield OwnProcess.from_parent(self, name="own process")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.File | None:
    config = parent.config
    asked = [config.invocation_params.dir / name.partition("::")[0] for name in config.args]
    if not _needs_our_messages(module_path) or all(map(_needs_our_messages, asked)):
        return None  # pytest's own way
    return IsolatedModule.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the modules share a process: to start one takes longer than the tests of most."""
    isolated = [item for item in items if isinstance(item, OwnProcess)]
    for other in isolated[1:]:
        isolated[0].modules += other.modules
        items.remove(other)


def _needs_our_messages(path: Path) -> bool:
    return path in _NEED_OUR_MESSAGES or path.parent in _NEED_OUR_MESSAGES
