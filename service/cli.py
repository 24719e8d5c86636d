"""mnist-serve: the entry point. It first makes signals harmless, then imports the rest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_STDERR = 2  # its file descriptor


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0 after a graceful stop, 2 for bad settings.

    With --check, examine the installation instead, and return what `check` does.
    """
    _open_closed_streams()
    if "--check" in (sys.argv[1:] if arguments is None else arguments):
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)  # no traceback, and not the status 0
        from service.check.command import check

        return check(arguments)
    # Until the supervisor takes over, nothing exists that a stop would have to clean up. Raising
    # SystemExit instead is not enough: Python swallows it in some callbacks of its import system.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    # Imported here: a signal while they are imported, most of the start, finds the handler above.
    from service.settings import SettingsError, load
    from service.supervisor import supervise

    try:
        return supervise(load(arguments))
    except SettingsError as error:
        print(f"mnist-serve: {error}", file=sys.stderr)
        return 2


def _open_closed_streams() -> None:
    """Standard streams that the shell has closed: a socket would get the number of stderr."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)  # the workers need it as well
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(_STDERR, "w", closefd=False)  # noqa: SIM115 (has no path; lasts)


if __name__ == "__main__":
    sys.exit(main())
