"""Abusive loads, each bounded in connections and time, for a server on this machine.

An attack takes the server's ports and `ended`, and returns how often it did what. It counts what
the server does to it (a status, a closed connection) and never fails because of it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping

from benchmarks.load.attacks.callers import TIMEOUT_S, Attack, Ended, Target
from benchmarks.load.attacks.idle import idle_grpc_connections, idle_http_connections
from benchmarks.load.attacks.long_runs import long_loop, transformer
from benchmarks.load.attacks.over_grpc import (
    cancelled_calls,
    half_sent_messages,
    large_metadata,
    pictures_over_grpc,
    small_frames,
)
from benchmarks.load.attacks.over_http import (
    compressed_answers,
    half_sent_bodies,
    json_below_the_limit,
    json_lists,
    large_requests,
    long_names,
    pictures,
    scrapes,
)
from benchmarks.load.result import run


def mix(target: Target, ended: Ended) -> Counter[str]:
    """Pictures, JSON, half-sent bodies and messages, and large requests, at the same time."""
    attacks = (pictures, json_below_the_limit, half_sent_bodies, half_sent_messages, large_requests)
    counts: Counter[str] = Counter()

    def run_one(attack: Attack) -> None:
        with contextlib.suppress(OSError):
            counts.update(attack(target, ended))

    threads = [threading.Thread(target=run_one, args=[attack]) for attack in attacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


ATTACKS: Mapping[str, Attack] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        json_lists,
        json_below_the_limit,
        pictures,
        pictures_over_grpc,
        half_sent_bodies,
        half_sent_messages,
        small_frames,
        cancelled_calls,
        large_metadata,
        scrapes,
        compressed_answers,
        large_requests,
        long_names,
        idle_http_connections,
        idle_grpc_connections,
        long_loop,
        transformer,
        mix,
    )
}


def for_seconds(seconds: float) -> Ended:
    """Ends this long after its first call: attacks first prepare what they send."""
    end: list[float] = []

    def ended() -> bool:
        if not end:
            end.append(time.monotonic() + seconds)
        return time.monotonic() > end[0]

    return ended


def attack(
    name: str, target: Target, seconds: float, core: int | None
) -> tuple[dict[str, int], float]:
    """Run an attack in a process of its own; its counts and its CPU time. Raises GeneratorError."""
    arguments = json.dumps([name, target, seconds])
    command = [sys.executable, "-m", "benchmarks.load.attacks", arguments]
    output, cpu_seconds = run(command, core, seconds + 2 * TIMEOUT_S)
    return json.loads(output), cpu_seconds
