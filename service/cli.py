"""mnist-serve: from settings to supervised worker processes.

This process imports no ONNX Runtime, no gRPC and no Flask: it only checks what can be checked
before workers start, and then Granian supervises them.
"""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from service.observe.logs import logging_config
from service.operations.replication import LONGEST_FOLDER
from service.runtime.packages import conflicting_packages
from service.settings import Settings, SettingsError, load

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0 after a graceful stop, 2 for bad settings."""
    try:
        settings = load(arguments)
        _preflight(settings)
    except SettingsError as error:
        print(f"mnist-serve: {error}", file=sys.stderr)
        return 2
    logging.config.dictConfig(logging_config(settings))
    with tempfile.TemporaryDirectory(prefix="mnist-serve-") as folder:
        # What the workers share: their metrics, and the sockets by which they tell each other.
        metrics, control = Path(folder, "metrics"), Path(folder, "control")
        if len(str(control)) > LONGEST_FOLDER:
            print(f"mnist-serve: TMPDIR is too long for sockets: {control}", file=sys.stderr)
            return 2
        metrics.mkdir()
        control.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        return _serve(settings, control)


def _serve(settings: Settings, control: Path) -> int:
    from granian.constants import Interfaces, Loops
    from granian.log import LogLevels
    from granian.server import MPServer

    startup_failed = multiprocessing.Event()
    server = MPServer(
        "service.worker:Worker",
        settings.host,
        settings.http_port,
        interface=Interfaces.RSGI,
        workers=settings.workers,
        loop=Loops.uvloop if sys.platform != "win32" else Loops.auto,
        websockets=False,
        backpressure=settings.max_connections,
        log_level=LogLevels.debug if settings.log_level == "debug" else LogLevels.warning,
        log_dictconfig=logging_config(settings),
        respawn_failed_workers=True,
        # A little longer than the fronts themselves wait.
        workers_kill_timeout=int(settings.stop_timeout) + 5,
    )
    server.serve(
        target_loader=partial(_load_worker, settings, startup_failed, control), wrap_loader=False
    )
    return 1 if startup_failed.is_set() else 0


def _load_worker(settings: Settings, startup_failed: Event, control: Path) -> Any:
    """Runs in the worker process: the heavy imports happen here."""
    from service.worker import Worker

    return Worker(settings, startup_failed, control)


def _preflight(settings: Settings) -> None:
    """Raise SettingsError for what would otherwise fail later, or silently."""
    if not settings.models.is_dir():
        raise SettingsError(
            f"There is no model repository at {settings.models.resolve()}. "
            "Train a model with mnist-train, or name another folder with --models."
        )
    if conflict := conflicting_packages():
        raise SettingsError(conflict)
    check_ports_free(settings)


def check_ports_free(settings: Settings) -> None:
    """Raise SettingsError if another process listens on one of the ports."""
    for name, port in (("http_port", settings.http_port), ("grpc_port", settings.grpc_port)):
        _check_port_free(settings.host, name, port)


def _check_port_free(host: str, name: str, port: int) -> None:
    # The workers share their ports (SO_REUSEPORT), so a second server on the same port would
    # not fail: it would silently take half of the requests. Binding without it does fail.
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {host} port {port}: {error.strerror}. "
            f"Stop what uses it, or choose another {name}."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
