"""python -m tests.gpu: checks serving and training on CUDA, on a machine that has a GPU.

This is a program, not a pytest module, since it needs a GPU and some minutes. Each check runs in
its own process with a time limit, because an error on the device spoils every later call of its
process. With --device cpu the checks run on the CPU provider, which tests the checks but not CUDA.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.runtime.cuda import missing_device
from tests.gpu import latency, servers, sessions, training
from tests.gpu.check import Check, Place

CHECKS: tuple[Check, ...] = (*sessions.CHECKS, *servers.CHECKS, *latency.CHECKS, *training.CHECKS)
_RESULT = "result: "


def main() -> int:
    """Run the checks. Returns 0 if all pass, 1 if not, 3 if there is no CUDA."""
    options = _parser().parse_args()
    if options.list:
        print(
            "\n".join(
                f"{check.name:28}{(check.run.__doc__ or '').splitlines()[0]}" for check in CHECKS
            )
        )
        return 0
    if options.device == "cuda" and (reason := missing_device()):
        print(f"NOTHING WAS TESTED ON CUDA: {reason}.", file=sys.stderr)
        return 3
    only = options.only or [check.name for check in CHECKS if not check.on_request]
    chosen = [check for check in CHECKS if check.name in only]
    if options.inside:
        (check,) = [check for check in CHECKS if check.name == options.inside]
        print(_RESULT + check.run(Place(options.device, options.logs)), flush=True)
        return 0
    options.logs.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as executor:
        parallel = [check for check in chosen if not check.alone]
        passed = list(executor.map(lambda check: _run(check, options, start), parallel))
    passed += [_run(check, options, start) for check in chosen if check.alone]
    print(f"{passed.count(True)} passed, {passed.count(False)} failed", flush=True)
    return int(not all(passed))


def _run(check: Check, options: argparse.Namespace, start: float) -> bool:
    """Run one check in a process and print its result. Returns whether it passed."""
    check_start = time.monotonic()
    seconds = min(check.seconds, options.within - (check_start - start))
    log = options.logs / f"{check.name}.log"
    if seconds <= 0:
        _report(check, f"FAILED: not started within {options.within:.0f} s in all", 0)
        return False
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu", "--device", options.device, "--logs", folder,
             "--inside", check.name],
            stdout=output, stderr=output, start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            status = process.wait(seconds)
            cause = f"exits with {status}"
        except subprocess.TimeoutExpired:
            status, cause = -1, f"not done after {seconds:.0f} s"
        _kill_group(process)  # includes servers that the check may have left running
        for kept in Path(folder).glob("*.log"):
            shutil.copy(kept, options.logs / f"{check.name}-{kept.name}")
    text = log.read_text(errors="replace")
    took = time.monotonic() - check_start
    if status == 0 and _RESULT in text:
        _report(check, f"ok ({text.rpartition(_RESULT)[2].strip()})", took)
        return True
    end = "\n".join("    " + line[:400] for line in text.splitlines()[-options.tail :])
    _report(check, f"FAILED: {cause}; the end of {log}:\n{end}", took)
    return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _report(check: Check, text: str, seconds: float) -> None:
    print(f"[{seconds:5.1f} s] {check.name}: {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    add = parser.add_argument
    names = [check.name for check in CHECKS]
    add("--only", nargs="+", choices=names, help="run only these checks; see --list")
    add("--list", action="store_true", help="list the checks")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tests the checks themselves")
    add(
        "--jobs",
        type=int,
        default=8,
        help="how many checks run at once, except those that measure time",
    )
    add("--within", type=float, default=600.0, help="time limit for all checks, in seconds")
    add("--tail", type=int, default=12, help="lines to show of the log of a failed check")
    add("--logs", type=Path, default=Path(tempfile.gettempdir(), "mnist-gpu-logs"),
        help="folder for the logs of the checks")  # fmt: skip
    add("--inside", choices=names, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
