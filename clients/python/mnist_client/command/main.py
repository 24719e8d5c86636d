"""mnist-predict: ask a running server which digit each picture shows."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from mnist_client.address import TLS
from mnist_client.client import Client
from mnist_client.command.drawing import boxes_on, printable
from mnist_client.command.output import FORMATS, Progress, writer
from mnist_client.command.sources import Entry, entries, holds_many, names, names_in
from mnist_client.errors import (
    AccessDenied,
    ClientError,
    DeadlineExceeded,
    NotFound,
    ServerError,
    Unreachable,
)
from mnist_client.results import Prediction, Reading
from mnist_client.retries import LONGEST_S, Retries

OK, FAILED, WRONG_USAGE, NO_ANSWER, NOT_ACCEPTED = range(5)
INTERRUPTED, PIPE_CLOSED = 130, 141
_STATUSES = """\
exit status:
  0  every picture has an answer
  1  a picture cannot be read, or the server refuses it
  2  wrong usage
  3  the server does not answer; the remaining pictures are not tried
  4  with --strict: a picture is not accepted, or a digit that was read on it
"""
_EXAMPLES = """\
examples:
  mnist-predict docs/seven.png
  mnist-predict scans/ 'more/**/*.png' --format csv
  mnist-predict --read page.jpg --out boxes.png
  mnist-predict --grpc - < docs/seven.png
"""


# Errors that every other picture would meet as well.
_NO_ANSWER = Unreachable, DeadlineExceeded
_REPEATED = *_NO_ANSWER, NotFound, AccessDenied


# What the libraries say of a port that speaks another protocol; a status of 5xx is a proxy's.
_OTHER_PROTOCOL = {
    r"Received http2 header with status: 4\d\d": "The port answers HTTP, not gRPC; leave out "
    "--grpc, or name the gRPC port (8001 by default) with --address.",
    "WRONG_VERSION_NUMBER": "The port does not speak TLS; use http:// or grpc:// in --address.",
}


class UsageError(Exception):
    """The options do not fit together, or a file that they name cannot be used."""


class Counts(NamedTuple):
    """Pictures without an answer, and those (or digits read on them) that are not accepted."""

    failed: int
    refused: int


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command_line = argparse.ArgumentParser(
        prog="mnist-predict",
        usage="%(prog)s [options] PICTURE [PICTURE ...]",
        description="Ask a running server which digit each picture shows.",
        epilog=f"{_STATUSES}\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = command_line.add_argument_group("pictures").add_argument
    add(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="PNG, JPEG, WebP, BMP or GIF files, folders, patterns ('**' for any depth), or - for "
        "stdin; stdin and .raw files may hold raw pixels instead, 784 bytes per image",
    )
    add("--names-from", metavar="FILE", help="file of more names, one per line (- for stdin)")
    add("--read", action="store_true", help="read all digits in each picture")

    add = command_line.add_argument_group("server").add_argument
    add("--grpc", action="store_true", help="call over gRPC instead of HTTP")
    add(
        "--address",
        metavar="ADDRESS",
        help="HOST:PORT, or a URL: http, https, grpc or grpcs (default: 127.0.0.1:8000; with "
        "--grpc 127.0.0.1:8001)",
    )
    add("--model", default="", help="model (default: the server's default model)")
    add("--version", default="", help="model version (default: the newest)")
    add(
        "--key-file",
        metavar="FILE",
        help="file with the key that the server asks for (default: the variable MNIST_KEY)",
    )
    add("--ca-file", metavar="FILE", help="CA certificates to verify the server with (PEM)")
    add("--certificate", metavar="FILE", help="this client's certificate (PEM)")
    add("--certificate-key", metavar="FILE", help="its key, if it is in another file")

    add = command_line.add_argument_group("output").add_argument
    add(
        "--format",
        choices=FORMATS,
        help="default: drawing for one picture, table for several; jsonl has one object per line",
    )
    add(
        "--json",
        action="store_const",
        dest="format",
        const="jsonl",
        help="short for --format jsonl",
    )
    add("--out", metavar="PNG", help="with --read: save the picture with boxes here")
    add("--strict", action="store_true", help="exit with 4 if a picture is not accepted")

    add = command_line.add_argument_group("limits").add_argument
    add(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="per request, retries included (default: 10)",
    )
    add(
        "--attempts",
        metavar="N",
        type=_count,
        default=4,
        help="attempts per request, within --timeout (default: 4)",
    )
    add(
        "--batch-size",
        metavar="N",
        type=_count,
        default=64,
        help="raw images per request (default: 64)",
    )
    add(
        "--concurrency",
        metavar="N",
        type=_count,
        default=4,
        help="requests under way at a time (default: 4)",
    )

    add = command_line.add_argument_group("command").add_argument
    add("-h", "--help", action="help", help="show this text and exit")
    return command_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict every picture. Returns the exit status, as --help lists them."""
    command_line = parser()
    options, unknown = command_line.parse_known_args(arguments)
    if unknown:
        flags = re.findall(r"--[a-z][a-z-]*", command_line.format_help())
        word = next((word for word in unknown if word.startswith("-")), "")
        nearest = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        command_line.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "stdout is closed")
        counts = _run(options)
        sys.stdout.flush()
    except UsageError as error:
        print(f"mnist-predict: {error}", file=sys.stderr)
        return WRONG_USAGE
    except ClientError as error:
        return NO_ANSWER if isinstance(error, _NO_ANSWER) else FAILED
    except BrokenPipeError:
        # The reader, such as head, has enough. Python would fail again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        print(f"mnist-predict: the answers cannot be written: {error.strerror}.", file=sys.stderr)
        return FAILED
    if counts.failed:
        return FAILED
    return NOT_ACCEPTED if options.strict and counts.refused else OK


def console() -> None:
    """The entry point: `main`, and an end at once on Ctrl-C, whatever its threads wait for."""
    with contextlib.ExitStack() as stack:
        if sys.stderr is None:  # the shell has closed it
            sys.stderr = stack.enter_context(Path(os.devnull).open("w"))
        _console()


def _console() -> None:
    try:
        status = main()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        os._exit(INTERRUPTED)
    sys.exit(status)


def _run(options: argparse.Namespace) -> Counts:
    """Predict or read all pictures. Raises UsageError, and errors that would repeat for each."""
    named, total = _names(options)
    every = entries(named)
    first = list(islice(every, 2))  # one argument may be many pictures
    if options.out and not (options.read and len(first) == 1):
        raise UsageError("--out needs --read and one file.")
    kind = options.format or ("drawing" if len(first) == 1 else "table")
    keeps_data = kind == "drawing" or bool(options.out)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    progress = Progress(total)
    pending: deque[Entry] = deque()  # those whose outcome is not there yet
    failed = refused = done = 0

    def sent() -> Iterator[bytes]:
        for entry in chain(first, every):
            pending.append(entry if keeps_data else Entry(entry.name, problem=entry.problem))
            if not entry.problem:
                yield entry.data

    def report_unsent() -> int:
        """Report pictures that were not sent and whose turn has come; how many they are."""
        count = 0
        while pending and pending[0].problem:
            entry = pending.popleft()
            _complain(progress, entry.name, entry.problem)
            count += 1
        return count

    with _client(options) as client:
        transport = "gRPC" if options.grpc or str(options.address).startswith("grpc") else "HTTP"
        # With --out the picture is in that file.
        width = 0 if options.out else shutil.get_terminal_size().columns
        write = writer(kind, reads=options.read, transport=transport, width=width, colour=colour)
        outcomes: Iterator[Prediction | Reading | ClientError]
        if options.read:
            outcomes = client.read_many(sent(), concurrency=options.concurrency, errors="return")
        else:
            outcomes = client.predict_many(
                sent(),
                batch_size=options.batch_size,
                concurrency=options.concurrency,
                errors="return",
            )
        for outcome in outcomes:
            failed += report_unsent()
            entry = pending.popleft()
            done += 1
            if isinstance(outcome, ClientError):
                _complain(progress, entry.name, _sentence(outcome))
                if isinstance(outcome, _REPEATED):
                    raise outcome
                failed += 1
                continue
            progress.clear()
            if options.out and isinstance(outcome, Reading):
                failed += _save(entry, outcome, options.out)
            write(entry.name, entry.data, outcome)
            refused += _is_refused(outcome)
            progress.show(done)
        failed += report_unsent()
    progress.clear()
    return Counts(failed, refused)


def _names(options: argparse.Namespace) -> tuple[Iterator[Entry | str], int | None]:
    """The names of all pictures, and how many they are; None for those that are still to come."""
    if options.names_from:
        try:
            listed = names_in(options.names_from)
            first = list(islice(listed, 1))
        except OSError as error:
            raise UsageError(
                f"--names-from: {options.names_from} cannot be read: {error.strerror or error}."
            ) from None
        return chain(names(options.pictures), first, listed), None
    if not options.pictures:
        raise UsageError("name a picture, a folder, a pattern or - for stdin; see --help.")
    all_names = list(names(options.pictures))
    may_be_many = any(isinstance(name, str) and holds_many(name) for name in all_names)
    return iter(all_names), None if may_be_many else len(all_names)


def _client(options: argparse.Namespace) -> Client:
    address = options.address or f"127.0.0.1:{8001 if options.grpc else 8000}"
    if options.grpc and "://" not in address:
        address = f"grpc://{address}"
    elif options.grpc and not address.startswith("grpc"):
        raise UsageError(f"--grpc and --address {address} name two protocols; use grpc:// there.")
    tls = None
    if options.ca_file or options.certificate or options.certificate_key:
        try:
            tls = TLS(options.ca_file, options.certificate, options.certificate_key)
        except ValueError:
            raise UsageError("--certificate-key needs --certificate.") from None
    try:
        key = _key(options.key_file) if options.key_file else None
        return Client(
            address,
            model=options.model,
            version=options.version,
            timeout=options.timeout,
            retries=Retries(attempts=options.attempts),
            bearer_key=key,
            tls=tls,
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        file = f"{error.filename} " if error.filename else "A file of the options "
        raise UsageError(f"{file}cannot be used: {error.strerror or error}.") from None


def _key(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except UnicodeDecodeError:  # whose message has bytes of the key
        raise UsageError(f"--key-file: {file} is not a text file.") from None


def _save(entry: Entry, reading: Reading, out: str) -> int:
    """Save the picture with its boxes; 1 if that fails, after it has been reported."""
    try:
        boxes_on(entry.data, reading).save(out, "PNG")
    except ImportError:
        raise UsageError("--out needs Pillow: pip install 'mnist-client[images]'.") from None
    except (OSError, ValueError, OverflowError) as error:  # boxes may be no boxes
        reason = getattr(error, "strerror", None) or error
        _complain(None, entry.name, f"the boxes cannot be saved as {out}: {reason}.")
        return 1
    return 0


def _is_refused(answer: Prediction | Reading) -> bool:
    predictions = (
        [digit.prediction for digit in answer.digits] if isinstance(answer, Reading) else [answer]
    )
    return not predictions or any(prediction.accepted is False for prediction in predictions)


def _sentence(error: ClientError) -> str:
    for found, remedy in _OTHER_PROTOCOL.items():
        if re.search(found, str(error)):
            return f"{error} {remedy}"
    if isinstance(error, ServerError):
        asks = isinstance(error, AccessDenied) and error.code in ("401", "UNAUTHENTICATED")
        return f"The server says: {error}{' Use --key-file, or set MNIST_KEY.' * asks}"
    if isinstance(error, _NO_ANSWER):
        return f"{error} Start a server with mnist-serve, or name another with --address."
    return str(error)


def _complain(progress: Progress | None, name: str, problem: str) -> None:
    if progress is not None:
        progress.clear()
    print(f"{printable(name)}: {printable(problem)}", file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds up to {LONGEST_S}")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    console()
