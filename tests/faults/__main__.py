"""make test-faults: random faults and hostile clients against a real server, for ten minutes.

Good clients check every answer meanwhile (tests/faults/soak.py says what is judged). A failure
prints its seed: the same seed draws the same faults, though not at the same moments.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
from pathlib import Path

from tests.faults.injected import OTHER_FAULTS, PROCESS_FAULTS
from tests.faults.soak import soak


def main() -> int:
    """Returns 1 if there are problems, 2 for wrong options."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="default: %(default)g")
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--faults", default="", metavar="A,B", help="default: all of them")
    parser.add_argument("--folder", type=Path, help="keep the server's log here")
    options = parser.parse_args()
    faults = tuple(options.faults.split(",")) if options.faults else ()
    known = [*PROCESS_FAULTS, *OTHER_FAULTS]
    if unknown := set(faults) - set(known):
        print(f"There is no fault {min(unknown)!r}; there are {', '.join(known)}.", file=sys.stderr)
        return 2
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"Soak of {options.seconds:g} s with --seed {seed}.", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        report = soak(options.seconds, seed, folder, faults)
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
