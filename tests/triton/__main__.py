"""make test-triton: runs Triton's perf_analyzer and the KServe SDK against a real server.

Neither fits into the environment of the tests. perf_analyzer is a binary in PyPI's tritonclient
2.45, built for Ubuntu. It needs CUDA's runtime, which is a wheel, though no GPU, and libb64, which
Debian and Ubuntu have; that package is unpacked here, not installed. The KServe SDK brings sixty
packages, and its messages have the names of tritonclient's. Everything is kept in build/triton.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.conftest import ROOT, Server
from tests.triton.repository import publish_examples

FOLDER = ROOT / "build" / "triton"
HERE = Path(__file__).parent
# And kserve.txt or perf_analyzer.txt.
LOCKED = ("--only-binary=:all:", "--require-hashes", "--no-deps", "--requirement")
KSERVE_UNTIL = (3, 14)  # its Requires-Python is <3.14
LIBRARY = "libb64-0d"
# Options of perf_analyzer. A run lasts until three windows of 50 requests; any latency is stable.
RUNS = (
    ("-m", "simple"),
    ("-m", "simple", "-b", "8", "--concurrency-range", "4"),
    ("-m", "simple", "--shared-memory", "system"),
    ("-m", "simple_string", "--string-data", "7"),
    ("-m", "densenet_onnx"),
    ("-m", "simple", "--request-rate-range", "50"),
)
OF_GRPC = (("-m", "simple", "--streaming"), ("-m", "simple_int8", "--async"))


def main() -> int:
    """Run everything; 0 if all passed, else 1."""
    argparse.ArgumentParser(prog="python -m tests.triton", description=__doc__).parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    sdk = kserve_sdk(pip) if sys.version_info < KSERVE_UNTIL else None
    analyzer, libraries = perf_analyzer(pip)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        publish_examples(models)
        server = Server(Path(folder), models, shared_memory_regions=16)
        try:
            server.wait_until(server.is_ready)
            if sdk is None:
                print("not run: the KServe SDK, which is not made for this Python", flush=True)
            else:
                failed += run(
                    "KServe SDK", [sdk, HERE / "kserve_sdk.py", server.http, server.grpc], ""
                )
            for protocol, address in (("http", server.http), ("grpc", server.grpc)):
                for options in (*RUNS, *(OF_GRPC if protocol == "grpc" else ())):
                    command = [analyzer, "-i", protocol, "-u", address, *options]
                    window = ["--measurement-mode", "count_windows"]
                    window += ["--measurement-request-count", "50", "-s", "100000"]
                    name = f"perf_analyzer {protocol} {' '.join(options)}"
                    failed += run(name, [*command, *window], libraries)
        finally:
            server.stop()
    print(f"{failed} failed", flush=True)
    return int(failed > 0)


def kserve_sdk(pip: list[str]) -> Path:
    """The interpreter of an environment that has the SDK."""
    python = FOLDER / "kserve" / "bin" / "python"
    if not python.exists():
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True
        )
    lock = HERE / "kserve.txt"
    subprocess.run([*pip, "--python", python, "install", *LOCKED, lock], check=True)
    return python


def perf_analyzer(pip: list[str]) -> tuple[Path, str]:
    """The path of perf_analyzer, and of the folders with its libraries."""
    analyzer = FOLDER / "tritonclient-2.45.0.data" / "data" / "bin" / "perf_analyzer"
    if not analyzer.exists():
        lock = HERE / "perf_analyzer.txt"
        subprocess.run([*pip, "download", "-d", FOLDER, *LOCKED, lock], check=True)
        for wheel in FOLDER.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(FOLDER)
        analyzer.chmod(0o755)
    if not list(FOLDER.glob("usr/lib/*/libb64*")):
        subprocess.run(["apt-get", "--quiet", "download", LIBRARY], cwd=FOLDER, check=True)
        (package,) = FOLDER.glob("libb64*.deb")
        subprocess.run(["dpkg", "-x", package, FOLDER], check=True)
    (libb64,) = {path.parent for path in FOLDER.glob("usr/lib/*/libb64*")}
    return analyzer, f"{libb64}:{FOLDER / 'nvidia' / 'cuda_runtime' / 'lib'}"


def run(name: str, command: list[str | Path], libraries: str) -> int:
    """Run a client; 1 if it failed, and then its output is printed."""
    environ = os.environ | {"LD_LIBRARY_PATH": libraries}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    output = done.stdout + done.stderr
    print(f"{'passed' if done.returncode == 0 else 'FAILED'}: {name}", flush=True)
    if done.returncode:
        print(output[-4000:], flush=True)
    return int(done.returncode != 0)


if __name__ == "__main__":
    if sys.platform != "linux" or not shutil.which("dpkg"):
        sys.exit("perf_analyzer is built for Linux; apt-get and dpkg provide its libraries.")
    sys.exit(main())
