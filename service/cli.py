"""mnist-serve: checks the settings, then starts and supervises the worker processes.

This process imports no ONNX Runtime, no gRPC and no Flask. It checks what can be checked before
workers start; from then on Granian supervises them.
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
from service.repository.shipped import shipped_models
from service.runtime.packages import conflicting_packages
from service.settings import Settings, SettingsError, load

log = logging.getLogger(__name__)

# Linux limits the path of a Unix socket to 107 bytes; `operations.replication` names its own
# after process ids.
_LONGEST_SOCKET_FOLDER = 90


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0 after a graceful stop, 2 for bad settings."""
    try:
        settings = load(arguments)
        _preflight(settings)
    except SettingsError as error:
        print(f"mnist-serve: {error}", file=sys.stderr)
        return 2
    logging.config.dictConfig(logging_config(settings))
    if settings.models == shipped_models() and not Path("models").exists():
        log.info(
            "There is no folder ./models: serving the model that comes with the package. "
            "mnist-train publishes into ./models; restart mnist-serve to serve from there."
        )
    with tempfile.TemporaryDirectory(prefix="mnist-serve-") as folder:
        # The workers share their metrics, and the state that operators set.
        metrics, state = Path(folder, "metrics"), Path(folder, "state")
        if len(str(state)) > _LONGEST_SOCKET_FOLDER:
            print(
                f"mnist-serve: {state} is too long for the path of a Unix socket; set TMPDIR to a "
                "shorter folder.",
                file=sys.stderr,
            )
            return 2
        metrics.mkdir()
        state.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        return _serve(settings, state)


def _serve(settings: Settings, state_folder: Path) -> int:
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
        target_loader=partial(_load_worker, settings, startup_failed, state_folder),
        wrap_loader=False,
    )
    return 1 if startup_failed.is_set() else 0


def _load_worker(settings: Settings, startup_failed: Event, state_folder: Path) -> Any:
    """Called in the worker process, where the heavy imports happen."""
    from service.worker import Worker

    return Worker(settings, startup_failed, state_folder)


def _preflight(settings: Settings) -> None:
    """Raise SettingsError for problems that would otherwise show later, or never."""
    if not settings.models.is_dir():
        raise SettingsError(
            f"The model repository {settings.models.resolve()} does not exist. "
            "Train a model with mnist-train, or choose another folder with --models."
        )
    if conflict := conflicting_packages():
        raise SettingsError(conflict)
    check_ports_free(settings)


def check_ports_free(settings: Settings) -> None:
    """Raise SettingsError if one of the ports cannot be opened, or another process has it open."""
    # The workers share their ports (SO_REUSEPORT), so a second server on the same port would not
    # fail: it would silently receive half of the requests. Binding without that option fails.
    for name, port in (("http_port", settings.http_port), ("grpc_port", settings.grpc_port)):
        try:
            addresses = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = addresses[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except (OSError, ValueError) as error:  # ValueError: a part of the host name is too long
            reason = error.strerror if isinstance(error, OSError) else error
            raise SettingsError(
                f"Cannot listen on {settings.host} port {port}: {reason}. "
                f"Stop the program that uses it, or choose another {name}."
            ) from None


if __name__ == "__main__":
    sys.exit(main())
