"""How long `import mnist_client` takes: `python -m tests.clients.python.import_time`.

CPU time of the import alone, best of several fresh interpreters, so that other work on the machine
does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

LIMIT_MS = 150.0
_CODE = "from time import process_time as now; t = now(); import {}; print(1000 * (now() - t))"


def milliseconds(module: str, runs: int) -> float:
    """The shortest of several imports."""
    command = [sys.executable, "-c", _CODE.format(module)]
    return min(float(subprocess.check_output(command)) for _ in range(runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    taken = milliseconds("mnist_client", options.runs)
    for module in ("httpx", "numpy", "grpc"):
        print(f"{module}, which it does not import: {milliseconds(module, options.runs):.0f} ms")
    print(f"mnist_client: {taken:.0f} ms of CPU time (limit {LIMIT_MS:.0f})")
    return int(taken > LIMIT_MS)


if __name__ == "__main__":
    raise SystemExit(main())
