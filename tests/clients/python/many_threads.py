"""Many threads that share one client: `python -m tests.clients.python.many_threads`.

It starts a server and makes 32 x 1,000 calls over HTTP and over gRPC, in some 2 minutes on two
shared cores. A step of .ci/run; `make test` makes fewer calls (test_client.py).
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from mnist_client import Client, ClientError

from tests.conftest import ROOT, SHIPPED_MODELS, Server


class Outcome(NamedTuple):
    """Right answers, what went wrong otherwise, and how long it took."""

    answers: int
    errors: list[str]
    seconds: float


def run(address: str, threads: int, calls: int) -> Outcome:
    """Let `threads` threads make `calls` calls each with one client, starting together."""
    seven = (ROOT / "docs" / "seven.png").read_bytes()
    answers, errors = [0] * threads, list[str]()
    start = threading.Barrier(threads)

    def call(index: int, client: Client) -> None:
        start.wait()
        for _ in range(calls):
            try:
                digit = client.predict(seven).digit
            except ClientError as error:
                errors.append(repr(error))
                continue
            if digit == 7:
                answers[index] += 1
            else:
                errors.append(f"It is a {digit}.")

    # The queue of a busy machine may be long.
    with Client(address, timeout=120.0) as client:
        workers = [threading.Thread(target=call, args=(i, client)) for i in range(threads)]
        began = time.monotonic()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return Outcome(sum(answers), errors, time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--calls", type=int, default=1000, help="per thread")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), SHIPPED_MODELS)
        try:
            server.wait_until(server.is_ready)
            for address in (f"http://{server.http}", f"grpc://{server.grpc}"):
                outcome = run(address, options.threads, options.calls)
                print(
                    f"{address}: {outcome.answers} right answers in {outcome.seconds:.1f} s, "
                    f"{len(outcome.errors)} errors {outcome.errors[:3]}",
                    flush=True,
                )
                failed |= outcome.answers != options.threads * options.calls
        finally:
            server.stop()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
