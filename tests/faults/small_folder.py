"""A server whose TMPDIR is a small file system, which only its processes see."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import SHIPPED_MODELS, Server, free_ports


def fill(folder: Path) -> None:
    """Write until no byte of the file system is free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (65536, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


class ServerInSmallFolder(Server):
    """`small` is where the server has its TMPDIR; outside it is an empty folder.

    Its name must be short enough for the sockets of a server.
    """

    def __init__(self, log: Path, small: Path, megabytes: int = 1, **settings: object) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        self.http, self.grpc = f"127.0.0.1:{self.http_port}", f"127.0.0.1:{self.grpc_port}"
        self.log = log
        settings = {
            "models": SHIPPED_MODELS,
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
        } | settings
        environ = {f"MNIST_{name.upper()}": str(value) for name, value in settings.items()}
        # A namespace of its own needs no privilege where users may have one, as root does.
        as_root = () if os.getuid() == 0 else ("--map-root-user",)
        mount_and_serve = f'mount -t tmpfs -o size={megabytes}m tmpfs "$TMPDIR" && exec "$@"'
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *("unshare", *as_root, "--mount"),
                    *("sh", "-c", mount_and_serve, "sh"),
                    *(sys.executable, "-m", "service.cli"),
                ],
                env=os.environ | {"TMPDIR": str(small)} | environ,
                stdout=output,
                stderr=output,
            )
        self.small = Path(f"/proc/{self.process.pid}/root{small}")
