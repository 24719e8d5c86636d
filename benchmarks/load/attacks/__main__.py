"""Runs the attack in the first argument, in a process of its own: `attack` starts it."""

from __future__ import annotations

import json
import resource
import sys

from benchmarks.load.attacks import ATTACKS, for_seconds
from benchmarks.load.attacks.callers import Target


def main() -> None:
    """Run the attack in the first argument; print its counts as JSON."""
    name, target, seconds = json.loads(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts = ATTACKS[name](Target(*target), for_seconds(seconds))
    print(json.dumps(dict(sorted(counts.items()))))


if __name__ == "__main__":
    main()
