"""make test-stops: stop a real server 300 times, at every moment of its life, by every signal.

Each stop must have exit status 0, kill no worker, leave no process behind, and take no longer than
the limit: 2 s by default, or 10 s beside processes that keep the CPU busy (--busy 2 --limit 10).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.stops.stop import Stop, cases, stop

_BUSY = "while True: pass"


def main() -> int:
    """Stop servers one after another. Returns 1 if a stop is not clean or takes too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.stops", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="number of stops")
    parser.add_argument("--seed", type=int, default=1, help="seed of the order and the delays")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds that a stop may take")
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy each")
    options = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(options.busy)]
    stops = []
    try:
        for number, case in enumerate(cases(options.count, options.seed), 1):
            with tempfile.TemporaryDirectory(prefix="mnist-stop-") as folder:
                done = stop(case, Path(folder))
            stops.append(done)
            print(f"{number:3} {done.seconds:6.2f} s  {case}", flush=True)
            for problem in done.problems:
                print(f"    {problem}", flush=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return _report(stops, options.limit)


def _report(stops: list[Stop], limit_s: float) -> int:
    by_moment = defaultdict(list)
    for each in stops:
        by_moment[each.case.moment.value].append(each.seconds)
    by_moment["all"] = [each.seconds for each in stops]
    print(f"\n{'seconds':24} {'stops':>5} {'median':>7} {'p95':>7} {'slowest':>7}")
    for name, seconds in by_moment.items():
        late = sorted(seconds)[int(0.95 * (len(seconds) - 1))]
        middle = statistics.median(seconds)
        print(f"{name:24} {len(seconds):5} {middle:7.2f} {late:7.2f} {max(seconds):7.2f}")
    unclean = [each for each in stops if each.problems]
    slow = [each for each in stops if each.seconds > limit_s]
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"{len(unclean)} not clean, {len(slow)} slower than {limit_s:g} s; load average {load}.")
    return 1 if unclean or slow else 0


if __name__ == "__main__":
    sys.exit(main())
