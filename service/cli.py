"""mnist-serve: the entry point. It first makes signals harmless, then imports the rest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0 after a graceful stop, 2 for bad settings.

    With --check, examine the installation instead, and return what `check` does.
    """
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


if __name__ == "__main__":
    sys.exit(main())
