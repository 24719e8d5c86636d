"""Feeds mutated bytes to the parsers: python -m tests.fuzz NAME --runs N.

Strategy: libFuzzer (through atheris) mutates the seeds and the committed corpus, keeps what reaches
new code in service/, and stops at the first exception. A harness raises for a broken promise, not
only for a crash: an error of the wrong type, a value that a reference decoder reads differently, a
window below zero. An input that takes 20 s, or 512 MB of memory, is a failure as well. The same
seed gives the same run.

An input that failed is written to the current folder. Pass it as a FILE to run it again, and add it
to the `SEEDS` of its harness once the fault is fixed.

Atheris exists for Linux on x86-64. Elsewhere a plain mutator, without coverage, takes its place.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import random
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from tests.fuzz import harnesses

CORPUS = Path(__file__).parent / "corpus"
NAMES = sorted(module.name for module in pkgutil.iter_modules(harnesses.__path__))
_LARGEST_INPUT = 4096
_SECONDS_PER_INPUT = 20
_MEGABYTES = 512
# Limits of a committed corpus.
_FILES, _BYTES = 200, 16 * 1024


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("name", choices=NAMES)
    arguments.add_argument("files", nargs="*", type=Path, metavar="FILE", help="run only these")
    arguments.add_argument("--runs", type=int, help="inputs to run; without it, the number for CI")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument(
        "--grow", action="store_true", help="add inputs that reach new code to the corpus"
    )
    options = arguments.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets would make two runs differ
        os.execve(  # noqa: S606 (this module, in this Python)
            sys.executable,
            [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None or options.files:
        harness = importlib.import_module(f"tests.fuzz.harnesses.{options.name}")
        if options.files:
            for path in options.files:
                harness.check(path.read_bytes())
        else:
            run_plainly(harness, options.name, options.runs or runs_in_ci(harness), options.seed)
        return
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{options.name}-"))
    inputs = folder / "inputs"
    inputs.mkdir()
    # libFuzzer ends its process, so it has one of its own. It must not inherit threads.
    child = os.fork()
    if child == 0:
        with atheris.instrument_imports(include=["service"], enable_loader_override=False):
            harness = importlib.import_module(f"tests.fuzz.harnesses.{options.name}")
        fuzz(atheris, harness, options, inputs)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if options.grow and status == 0:
        commit(options.name, [path.read_bytes() for path in sorted(inputs.iterdir())])
    shutil.rmtree(folder)
    sys.exit(status)


def fuzz(atheris: Any, harness: ModuleType, options: argparse.Namespace, inputs: Path) -> NoReturn:
    """Run libFuzzer, which ends the process."""
    for index, data in enumerate(seeds(harness, options.name)):
        (inputs / f"{index:06}").write_bytes(data)
    words = inputs.with_name("words")
    tokens = [token for token in getattr(harness, "TOKENS", []) if token]
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in tokens))
    atheris.Setup(
        [
            options.name,
            f"-runs={options.runs or runs_in_ci(harness)}",
            f"-seed={options.seed}",
            f"-max_len={_LARGEST_INPUT}",
            f"-timeout={_SECONDS_PER_INPUT}",
            f"-rss_limit_mb={_MEGABYTES}",
            *([f"-dict={words}"] if tokens else []),
            "-print_final_stats=1",
            "-reload=0",
            str(inputs),
        ],
        harness.check,
    )
    atheris.Fuzz()
    os._exit(0)


def runs_in_ci(harness: ModuleType) -> int:
    runs: int = getattr(harness, "CI_RUNS", 20_000)
    return runs


def seeds(harness: ModuleType, name: str) -> list[bytes]:
    """The seeds of a harness and its committed corpus."""
    found = list(harness.SEEDS)
    path = CORPUS / f"{name}.zip"
    if path.exists():
        with zipfile.ZipFile(path) as corpus:
            found += [corpus.read(entry) for entry in corpus.namelist()]
    return found


def commit(name: str, inputs: list[bytes]) -> None:
    """Write the smallest inputs as the corpus of a harness; the same inputs give the same file."""
    room = _BYTES
    with zipfile.ZipFile(CORPUS / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as corpus:
        for index, data in enumerate(sorted(set(inputs), key=lambda each: (len(each), each))):
            room -= len(data)
            if index == _FILES or room < 0:
                break
            corpus.writestr(zipfile.ZipInfo(f"{index:03}"), data, zipfile.ZIP_DEFLATED)


def run_plainly(harness: ModuleType, name: str, runs: int, seed: int) -> None:
    """Run all seeds, then mutations of them, without coverage."""
    choose = random.Random(seed)
    inputs = seeds(harness, name)
    words = [*getattr(harness, "TOKENS", []), b"\0", b"\xff", b"0", b"-1"]
    for number in range(runs):
        data = inputs[number] if number < len(inputs) else mutated(choose, inputs, words)
        try:
            harness.check(data)
        except BaseException:
            print(f"The input that failed: {data!r}", file=sys.stderr)
            raise
    print(f"Done {runs} runs without coverage")


def mutated(choose: random.Random, inputs: list[bytes], words: list[bytes]) -> bytes:
    """One of the inputs with one to four changes."""
    data = bytearray(choose.choice(inputs))
    for _ in range(choose.randint(1, 4)):
        at = choose.randint(0, len(data))
        length = choose.choice((0, 1, 1, 2, 8))
        replacement = choose.choice(
            (b"", choose.choice(words), choose.randbytes(length), data[at : at + 8] * 2)
        )
        data[at : at + length] = replacement
    return bytes(data[:_LARGEST_INPUT])


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
