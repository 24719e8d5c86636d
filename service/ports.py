"""Reserves the ports of a server, so that no second server shares them by mistake."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Sequence

from service.settings import Settings, SettingsError

NAMES = ("http_port", "grpc_port", "health_port")


def check_free(settings: Settings) -> None:
    """Raise SettingsError if one of the ports cannot be opened, or another process has it open."""
    for reservation in reserve(settings):
        reservation.close()


def reserve(settings: Settings, names: Sequence[str] = NAMES) -> list[socket.socket]:
    """Reserve all ports for the workers of this server, until the sockets are closed.

    Raises SettingsError if a port cannot be opened, or another process has opened or reserved it.
    """
    # The workers share their ports (SO_REUSEPORT), so a second server on the same port would not
    # fail: it would silently receive half of the requests. Only one of several sockets without
    # that option can listen; after it has, it stops listening and lets the workers share its port.
    # It stays bound without SO_REUSEADDR, so no other server can do the same. Only listening is
    # exclusive: SO_REUSEADDR, which lets a server start beside closed connections of an earlier
    # one, also lets two sockets bind a port on which none listens.
    reservations = []
    for name in names:
        port = getattr(settings, name)
        if port == 0:
            continue
        try:
            addresses = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = addresses[0]
            with contextlib.ExitStack() as on_error:
                reservation = socket.socket(family, socket.SOCK_STREAM)
                on_error.callback(reservation.close)
                reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                reservation.bind(address)
                if sys.platform == "linux":
                    reservation.listen(1)
                    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                    reservation.shutdown(socket.SHUT_RD)
                    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    on_error.pop_all()
                    reservations.append(reservation)
        except (OSError, ValueError) as error:  # ValueError: a part of the host name is too long
            for reservation in reservations:
                reservation.close()
            reason = error.strerror if isinstance(error, OSError) else error
            remedy = f"Stop the program that uses it, or choose another {name}."
            number = error.errno if isinstance(error, OSError) else None
            if number in (errno.EACCES, errno.EPERM):
                remedy = (
                    f"Choose a {name} from 1024 up, or start the server with the capability "
                    "CAP_NET_BIND_SERVICE."
                )
            elif number != errno.EADDRINUSE:
                remedy = "Choose a host that is an address of this machine, or 0.0.0.0 for all."
            raise SettingsError(
                f"Cannot listen on {settings.host} port {port}: {reason}. {remedy}", name
            ) from None
    return reservations
