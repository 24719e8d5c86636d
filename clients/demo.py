"""What `make run` shows: train, publish, serve, predict one real test image over HTTP and gRPC.

It then leaves the server running until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import FrameType

from clients import cli
from service.cli import check_ports_free
from service.settings import Settings, SettingsError, load

_TEST_IMAGE = "docs/seven.png"
_READY_WITHIN_S = 30.0


def main() -> int:
    """Run the whole story. Returns the exit status of the first step that fails."""
    try:
        settings = load([])
        check_ports_free(settings)  # before minutes of training, not after
    except SettingsError as error:
        print(f"make run: {error}", file=sys.stderr)
        return 2
    _headline("Training on the whole of MNIST (mnist-train)")
    trained = _run("training.commands.train", "--models", str(settings.models))
    if trained.wait() != 0:
        return trained.returncode
    _headline("Starting the service (mnist-serve)")
    server = _run("service.cli", "--models", str(settings.models))

    def stop(signum: int, frame: FrameType | None) -> None:
        server.send_signal(signal.SIGTERM)

    # Ctrl-C reaches the server as well; both end by the server's graceful stop.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if _ready(server, settings):
        _headline(f"A real test image, over HTTP and over gRPC (mnist-predict {_TEST_IMAGE})")
        host = settings.host
        failed = cli.main([_TEST_IMAGE, "--address", f"{host}:{settings.http_port}"])
        failed |= cli.main([_TEST_IMAGE, "--grpc", "--address", f"{host}:{settings.grpc_port}"])
        if failed:
            server.terminate()
            server.wait()
            return 1
        print(
            f"Serving on http://{host}:{settings.http_port} and gRPC {host}:{settings.grpc_port}; "
            "stop with Ctrl-C.",
            flush=True,
        )
    return server.wait()


def _run(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", module, *arguments])


def _ready(server: subprocess.Popen[bytes], settings: Settings) -> bool:
    url = f"http://{settings.host}:{settings.http_port}/v2/health/ready"
    end = time.monotonic() + _READY_WITHIN_S
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False


def _headline(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
