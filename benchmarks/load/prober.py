"""Probes paths of a server at fixed rates, from a process of its own, until its input ends.

Each path has its own thread and, unless `fresh`, its own connection. Latency counts from when a
probe was due, so a slow answer also delays the probes behind it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter, sleep

from benchmarks.load.result import GeneratorError
from benchmarks.server_process import pinned

_TIMEOUT_S = 10.0
RATES = {"/v2/health/live": 50.0, "/v2/health/ready": 50.0, "/metrics": 5.0}  # per second


@dataclass(slots=True)
class Probes:
    """The probes of one path: latencies in seconds, and those that had no 200, by reason."""

    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)


class Prober:
    """A running prober; `stop` returns what it measured by path."""

    def __init__(
        self,
        port: int,
        *,
        core: int | None,
        rates: Mapping[str, float] | None = None,
        fresh: bool = False,
    ) -> None:
        plan = json.dumps([port, RATES if rates is None else rates, fresh])
        self._process = subprocess.Popen(  # noqa: S603 (this module, in this Python)
            pinned([sys.executable, "-m", "benchmarks.load.prober", plan], core),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has begun

    def stop(self) -> dict[str, Probes]:
        """Raises GeneratorError."""
        output, _ = self._process.communicate(timeout=_TIMEOUT_S + 30)
        if self._process.returncode:
            raise GeneratorError("The prober failed.")
        return {path: Probes(**probes) for path, probes in json.loads(output).items()}


def probe(port: int, path: str, rate: float, *, fresh: bool, ended: Callable[[], bool]) -> Probes:
    """Probe a path until `ended`."""
    probes = Probes()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    due = perf_counter()
    while not ended():
        sleep(max(0.0, due - perf_counter()))
        reason = ""
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                reason = str(response.status)
        except (OSError, http.client.HTTPException) as error:
            reason = type(error).__name__
        if reason or fresh:
            connection.close()
        if reason:
            probes.failures[reason] = probes.failures.get(reason, 0) + 1
        probes.latencies.append(round(perf_counter() - due, 6))
        due += 1 / rate
    connection.close()
    return probes


def main() -> None:
    """Probe by the plan in the first argument; print the results as JSON."""
    port, rates, fresh = json.loads(sys.argv[1])
    done = threading.Event()
    results: dict[str, Probes] = {}

    def run(path: str, rate: float) -> None:
        results[path] = probe(port, path, rate, fresh=fresh, ended=done.is_set)

    threads = [threading.Thread(target=run, args=item) for item in rates.items()]
    for thread in threads:
        thread.start()
    print("probing", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    done.set()
    for thread in threads:
        thread.join()
    fields = {
        path: {"latencies": probes.latencies, "failures": probes.failures}
        for path, probes in results.items()
    }
    print(json.dumps(fields))


if __name__ == "__main__":
    main()
