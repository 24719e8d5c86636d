"""What `make run` shows: train, publish, serve, predict one real test image over HTTP and gRPC.

It then leaves the server running until Ctrl-C or SIGTERM. At a terminal, Ctrl-C sends SIGINT to
every process at once; training and the server ignore it until they have handlers of their own, and
this process sends SIGTERM to the one that runs. So a stop is clean at any moment.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings

_TEST_IMAGE = "docs/seven.png"


class Steps:
    """Child processes, one at a time, that a signal to this process stops."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._running: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run a module of this environment. It inherits an ignored SIGINT."""
        process = self._running = subprocess.Popen(  # noqa: S603 (modules of ours, in this Python)
            [sys.executable, "-m", module, *arguments],
            # Safe: this process has no threads yet.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509
        )
        if self.signal_number:  # it came before there was a process to stop
            process.terminate()
        return process

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        if self._running is not None:
            self._running.terminate()


def main() -> int:
    """Run all steps. Returns the exit status of the first one that fails, 0 after a stop."""
    steps = Steps()
    # Imported here: they take a while, and a signal in the meantime finds the handler.
    from mnist_client.command.main import main as predict

    from service.ports import check_free
    from service.settings import SettingsError, load

    try:
        settings = load([])
        check_free(settings)  # before minutes of training, not after
    except SettingsError as error:
        print(f"make run: {error}", file=sys.stderr)
        return 2
    _headline("Training on the whole of MNIST (mnist-train)")
    status = steps.start("training.commands.train", "--models", str(settings.models)).wait()
    if status != 0 or steps.signal_number:
        return 128 + steps.signal_number if steps.signal_number else status
    _headline("Starting the service (mnist-serve)")
    server = steps.start("service.cli", "--models", str(settings.models))
    if _becomes_ready(server, settings):
        _headline(f"A real test image, over HTTP and over gRPC (mnist-predict {_TEST_IMAGE})")
        host = settings.host
        failed = predict([_TEST_IMAGE, "--address", f"{host}:{settings.http_port}"])
        failed |= predict([_TEST_IMAGE, "--grpc", "--address", f"{host}:{settings.grpc_port}"])
        if failed and not steps.signal_number:
            server.terminate()
            server.wait()
            return 1
        print(
            f"Serving on http://{host}:{settings.http_port} and gRPC {host}:{settings.grpc_port}; "
            "stop with Ctrl-C.",
            flush=True,
        )
    status = server.wait()
    # Our SIGTERM, which came before the server had a handler: there was nothing to stop.
    return 0 if steps.signal_number and status == -signal.SIGTERM else status


def _becomes_ready(server: subprocess.Popen[bytes], settings: Settings) -> bool:
    """Wait until the server is ready; False if it ends before."""
    url = f"http://{settings.host}:{settings.http_port}/v2/health/ready"
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return True
        except OSError:  # urllib's URLError is one
            time.sleep(0.05)
    return False


def _headline(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
