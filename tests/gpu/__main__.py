"""python -m tests.gpu: what runs on CUDA, on a machine that has it.

Not a pytest module: it needs a GPU and minutes. Each check is a process of its own with a time
limit, for an error on the device spoils every later call of the same process. With --device cpu
the checks try themselves on the CPU provider, which says nothing about CUDA.
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
_FIGURES = "figures: "


def main() -> int:
    """Run the checks. Returns 0 if all hold, 1 if not, 3 if there is no CUDA."""
    options = _parser().parse_args()
    if options.list:
        print(
            "\n".join(
                f"{each.name:28}{(each.run.__doc__ or '').splitlines()[0]}" for each in CHECKS
            )
        )
        return 0
    if options.device == "cuda" and (why := missing_device()):
        print(f"NOTHING WAS TESTED ON CUDA: {why}.", file=sys.stderr)
        return 3
    only = options.only or [each.name for each in CHECKS if not each.asked]
    chosen = [each for each in CHECKS if each.name in only]
    if options.inside:
        (check,) = [each for each in CHECKS if each.name == options.inside]
        found = check.run(Place(options.device, options.logs))
        print(_FIGURES + found, flush=True)
        return 0
    options.logs.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as executor:
        beside = [each for each in chosen if not each.alone]
        held = list(executor.map(lambda check: _run(check, options, began), beside))
    held += [_run(check, options, began) for check in chosen if check.alone]
    print(f"{held.count(True)} passed, {held.count(False)} failed", flush=True)
    return int(not all(held))


def _run(check: Check, options: argparse.Namespace, began: float) -> bool:
    """Run one check in a process, tell how it went; whether it holds."""
    started = time.monotonic()
    seconds = min(check.seconds, options.within - (started - began))
    log = options.logs / f"{check.name}.log"
    if seconds <= 0:
        _tell(check, f"FAILED: not begun within {options.within:.0f} s in all", 0)
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
        _kill_group(process)  # with the servers that it may have left
        for each in Path(folder).glob("*.log"):
            shutil.copy(each, options.logs / f"{check.name}-{each.name}")
    text = log.read_text(errors="replace")
    if status == 0 and _FIGURES in text:
        _tell(check, f"ok ({text.rpartition(_FIGURES)[2].strip()})", time.monotonic() - started)
        return True
    end = "\n".join("    " + line[:400] for line in text.splitlines()[-options.tail :])
    _tell(check, f"FAILED: {cause}; the end of {log}:\n{end}", time.monotonic() - started)
    return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _tell(check: Check, text: str, seconds: float) -> None:
    print(f"[{seconds:5.1f} s] {check.name}: {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    add = parser.add_argument
    names = [each.name for each in CHECKS]
    add("--only", nargs="+", choices=names, help="these checks instead of all; see --list")
    add("--list", action="store_true", help="name the checks")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the checks themselves")
    add("--jobs", type=int, default=8, help="checks at a time, of those that time nothing")
    add("--within", type=float, default=600.0, help="seconds for all of them")
    add("--tail", type=int, default=12, help="lines to show of a check that failed")
    add("--logs", type=Path, default=Path(tempfile.gettempdir(), "mnist-gpu-logs"),
        help="folder for what each check wrote")  # fmt: skip
    add("--inside", choices=names, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
