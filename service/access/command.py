"""mnist-keys: gives out keys, lists them and takes them back, in the file that the server reads."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from service.access.keys import (
    SCOPES,
    Key,
    KeysError,
    KeysFile,
    check_certificate,
    check_name,
    digest_of,
    new_key,
    read_scopes,
    read_time,
    time_text,
)
from service.core.errors import excerpt

_SHOWN_DIGITS = 12  # of a digest, to tell keys apart


def main(arguments: Sequence[str] | None = None) -> int:
    """Change or show a file of keys.

    Returns 0; 1 if the file or the change cannot be used. argparse exits with 2 for a command line
    that it does not know.
    """
    command_line = parser()
    options = command_line.parse_args(arguments)
    if options.command == "list" and options.name is not None:
        command_line.error("list takes no NAME; it shows all entries")
    if options.command != "list" and options.name is None:
        command_line.error(f"{options.command} needs a NAME")
    if options.command != "add" and any(
        value is not None for value in (options.scopes, options.expires, options.certificate)
    ):
        command_line.error(
            "--scopes, --expires and --certificate are for add; revoke the entry first"
        )
    try:
        run = {"add": _add, "list": _list, "revoke": _revoke}[options.command]
        run(KeysFile(Path(options.file)), options)
    except KeysError as error:
        print(f"mnist-keys: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line of mnist-keys."""
    command_line = argparse.ArgumentParser(
        prog="mnist-keys",
        usage="%(prog)s add|list|revoke [NAME] [--OPTION VALUE ...]",
        description="Give out keys for mnist-serve, list them and take them back.",
        epilog="A running server (keys_file) follows the file within a few seconds.\n\n"
        "exit status: 0 if it was done, 1 if the file or the change cannot be used,\n"
        "2 for a wrong command line.\n\n"
        "examples:\n"
        "  mnist-keys add alice                   # prints the key, which shows only now\n"
        "  mnist-keys add ci --scopes predict,read --expires 2099-01-31\n"
        "  mnist-keys add gateway --certificate spiffe://example.org/gateway\n"
        "  mnist-keys list\n"
        "  mnist-keys revoke alice",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = command_line.add_argument_group("command").add_argument
    add(
        "command",
        choices=("add", "list", "revoke"),
        metavar="add|list|revoke",
        help="add makes a key and prints it, or lets a client certificate in; list shows names, "
        "scopes, expiry and how each SHA-256 begins; revoke takes an entry back",
    )
    add("name", nargs="?", metavar="NAME", help="whose entry: for add and revoke, and in logs")
    add("-h", "--help", action="help", help="show this text and exit")
    add(
        "--file",
        default=os.environ.get("MNIST_KEYS_FILE") or "keys",
        metavar="FILE",
        help="the file of keys (default: that of MNIST_KEYS_FILE, else ./keys)",
    )
    add = command_line.add_argument_group("of a new entry").add_argument
    add(
        "--scopes",
        metavar="SCOPES",
        help=f"what it is for: some of {','.join(SCOPES)} (default: predict)",
    )
    add(
        "--expires",
        metavar="TIME",
        help="when it ends: 2099-01-31 or 2099-01-31T12:00:00Z, both UTC (default: never)",
    )
    add(
        "--certificate",
        metavar="NAME",
        help="the name in a client certificate (its first URI, DNS name or e-mail address, else "
        "its common name); no key is made",
    )
    return command_line


def _add(file: KeysFile, options: argparse.Namespace) -> None:
    check_name(options.name)
    scopes = read_scopes("predict" if options.scopes is None else options.scopes)
    key = Key(
        options.name, scopes, read_time("never" if options.expires is None else options.expires)
    )
    if key.expires is not None and key.expires <= time.time():
        raise KeysError(f"--expires {options.expires} has passed; choose a later time.")
    secret = ""
    if options.certificate is None:
        secret = new_key()
        key = key._replace(digest=digest_of(secret))
    else:
        check_certificate(options.certificate)
        key = key._replace(certificate=options.certificate)

    def add(keys: list[Key]) -> list[Key]:
        for other in keys:
            if other.name == key.name:
                raise KeysError(f"There is an entry {key.name} already; revoke it first.")
            if key.certificate and other.certificate == key.certificate:
                raise KeysError(f"{other.name} has this certificate already; revoke it first.")
        return [*keys, key]

    file.change(add)
    if secret:
        print(secret)
        print(
            f"This is the key of {key.name}. It is shown only now: the file has its SHA-256.",
            file=sys.stderr,
        )


def _list(file: KeysFile, options: argparse.Namespace) -> None:
    rows = [("NAME", "SCOPES", "EXPIRES", "ID")]
    now = time.time()
    for key in file.read():
        scopes = ",".join(scope for scope in SCOPES if scope in key.scopes)
        expires = time_text(key.expires)
        if key.expires is not None and key.expires <= now:
            expires += " (expired)"
        identifier = key.digest.hex()[:_SHOWN_DIGITS] or f"certificate {key.certificate}"
        rows.append((key.name, scopes, expires, identifier))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*map(str.ljust, row[:3], widths), row[3]]))


def _revoke(file: KeysFile, options: argparse.Namespace) -> None:
    def revoke(keys: list[Key]) -> list[Key]:
        left = [key for key in keys if key.name != options.name]
        if len(left) == len(keys):
            raise KeysError(f"{file.path} has no entry '{excerpt(options.name)}'.")
        return left

    file.change(revoke)


if __name__ == "__main__":
    sys.exit(main())
