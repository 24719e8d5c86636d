"""python -m benchmarks.keys: what the gate costs per request, and what its time gives away.

The first table is the CPU time of `Gate.admit`, the one decision about who may call, with a file of
many keys: for a valid key, a wrong one, a missing one and an oversized one. The second is the time
that a real server takes to refuse a wrong key, for a model that exists and for one that does not:
the medians differ by no more than those of two halves of the same requests.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.contenders import OURS
from benchmarks.paths import ROOT
from benchmarks.server_process import Server
from service.access.gate import Gate
from service.access.keys import Key, Keyring, KeysFile, digest_of, new_key
from service.core.errors import ServiceError

LIMIT_US = 3.0  # per request, whatever the caller shows
_CALLS = 20_000  # per round
_READY_WITHIN_S = 60.0
_PATHS = {
    "a model that exists": "/v2/models/mnist/infer",
    "the same, again": "/v2/models/mnist/infer",
    "one that does not": "/v2/models/none/infer",
    "no route": "/nowhere",
}


def decisions(keys: int) -> dict[str, Callable[[], None]]:
    """What callers show, as calls of a gate whose file has this many keys."""
    secret = new_key()
    entries = [
        Key(f"caller{n}", frozenset({"predict"}), None, digest_of(new_key())) for n in range(keys)
    ]
    entries.append(Key("me", frozenset({"predict"}), 4e9, digest_of(secret)))
    gate = Gate(frozenset(), Keyring(entries))

    def decide(authorization: list[str], api_keys: list[str]) -> Callable[[], None]:
        def call() -> None:
            with contextlib.suppress(ServiceError):
                gate.admit("predict", authorization, api_keys, "192.0.2.1")

        return call

    return {
        "a valid key, x-api-key": decide([], [secret]),
        "a valid key, Bearer": decide([f"Bearer {secret}"], []),
        "a wrong key": decide([], [new_key()]),
        "no key": decide([], []),
        "a key of 100 KB": decide([], ["k" * 100_000]),
    }


def microseconds(call: Callable[[], None], calls: int = _CALLS) -> float:
    """CPU time per call, the loop around it included."""
    numbers = range(calls)
    began = time.process_time()
    for _ in numbers:
        call()
    return 1e6 * (time.process_time() - began) / calls


@contextlib.contextmanager
def keyed_server() -> Iterator[int]:
    """The HTTP port of a server with a file of keys."""
    settings = {"MNIST_KEYS_FILE": "{scratch}/keys", "MNIST_LOG_LEVEL": "error"}
    contender = dataclasses.replace(OURS, environment={**OURS.environment, **settings})
    with tempfile.TemporaryDirectory() as folder:
        file = KeysFile(Path(folder, "keys"))
        file.change(lambda keys: [Key("me", frozenset({"predict"}), None, digest_of(new_key()))])
        with Server(contender, models=ROOT / "models", venv=None, scratch=Path(folder)) as server:
            server.wait_until(partial(_is_ready, server.http_port), _READY_WITHIN_S)
            yield server.http_port


def _is_ready(port: int) -> bool:
    """Whether the server says so: it answers no prediction without a key."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as asked:
        try:
            asked.request("GET", "/v2/health/ready")
            return asked.getresponse().status == 200
        except OSError:
            return False


def refusals(port: int, count: int) -> dict[str, list[float]]:
    """Seconds until a wrong key is refused on one connection, by path, in a random order."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seconds: dict[str, list[float]] = {name: [] for name in _PATHS}
    order = [name for name in _PATHS for _ in range(count)]
    random.Random(0).shuffle(order)  # noqa: S311 (an order, not a secret)
    for name in order:
        began = time.perf_counter()
        connection.request("POST", _PATHS[name], headers={"x-api-key": "mnist_wrong"})
        answer = connection.getresponse()
        answer.read()
        seconds[name].append(time.perf_counter() - began)
        if answer.status != 401:
            raise SystemExit(f"{_PATHS[name]} was answered with {answer.status}.")
    connection.close()
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables. Returns 1 if a decision costs more than `LIMIT_US`."""
    options = parser().parse_args(arguments)
    calls = decisions(options.keys)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            times[name].append(microseconds(call))
    print(f"Gate.admit with {options.keys + 1} keys, us of CPU time:")
    for name, values in times.items():
        print(f"{name:>24}: {statistics.median(values):5.2f}")
    if options.requests:
        with keyed_server() as port:
            refusals(port, 100)  # caches, connections
            seconds = refusals(port, options.requests)
        print("Refusal of a wrong key over HTTP, us:")
        for name, values in seconds.items():
            low, middle, high = (1e6 * each for each in statistics.quantiles(values, n=4))
            print(f"{name:>24}: {middle:6.1f} (quartiles {low:.1f}, {high:.1f})")
    return int(max(map(statistics.median, times.values())) > LIMIT_US)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options, add, _ = command_line(
        "benchmarks.keys",
        "[--keys N] [--rounds N] [--requests N]",
        __doc__,
        "--rounds 25 --requests 5000",
    )
    add("--keys", type=int, metavar="N", default=1000, help="in the file (default: %(default)s)")
    add("--rounds", type=int, metavar="N", default=15, help="default: %(default)s")
    add(
        "--requests",
        type=int,
        metavar="N",
        default=2000,
        help="per path; 0: no server (default: %(default)s)",
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
