"""Reserves the ports of a server, and opens the sockets on which its workers listen."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from service.settings import Settings, SettingsError

NAMES = ("http_port", "grpc_port", "health_port")


class Listeners:
    """The sockets on which one worker listens, by the name of their port.

    The supervisor binds them, and gives them to a worker and to those that replace it. A socket
    that a worker opens itself is closed with the worker, and the kernel resets the connections
    that wait in its queue and those whose TCP handshake is not done. These are in the queue for the
    successor. The workers' sockets share each port, so the kernel spreads connections over them.
    """

    def __init__(self, sockets: dict[str, socket.socket]) -> None:
        self._sockets = sockets
        self.is_closed = False

    @classmethod
    def bound(cls, settings: Settings) -> Listeners:
        """Bind a socket to each port; connections are refused until a worker listens.

        Empty where workers bind the ports themselves: on other systems than Linux. grpcio always
        does. Raises OSError.
        """
        with contextlib.ExitStack() as on_error:
            sockets: dict[str, socket.socket] = {}
            for name in NAMES if sys.platform == "linux" else ():
                port = getattr(settings, name)
                if port == 0 or (name == "grpc_port" and not settings.fast_grpc):
                    continue
                addresses = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)
                family, _, _, _, address = addresses[0]
                listener = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                # Accepted sockets inherit these.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if name == "http_port":
                    # Granian holds an answer until its client has read it, and does not say when
                    # that is. The kernel ends a connection whose client takes nothing for this
                    # long. Some kernels do not count a client that answers probes of its full
                    # window (6.18): `http.connections` closes these.
                    timeout_ms = int(settings.body_timeout * 1000)
                    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
                listener.bind(address)
                sockets[name] = listener
            on_error.pop_all()
            return cls(sockets)

    def duplicate(self) -> Listeners:
        """Other descriptors of the same sockets. Raises OSError if they are closed."""
        with contextlib.ExitStack() as on_error:
            # Not by `socket.dup`, which would make the socket blocking, for its worker too.
            sockets = {
                name: on_error.enter_context(socket.socket(fileno=os.dup(listener.fileno())))
                for name, listener in self._sockets.items()
            }
            on_error.pop_all()
            return Listeners(sockets)

    def get(self, name: str) -> socket.socket | None:
        """The socket for a port; None if the worker binds it itself."""
        return self._sockets.get(name)

    def close(self) -> None:
        """Close these descriptors; with the last one of a socket, its queue is reset."""
        self.is_closed = True
        for listener in self._sockets.values():
            listener.close()


def accept_no_more(descriptor: int) -> None:
    """Let Granian find no more connections on a socket of this process; those that wait stay in it.

    Granian cannot be told. Its descriptor becomes another socket, which no client knows: one of the
    abstract Unix namespace, under a name that the kernel chooses. Epoll instances know a socket
    beside its descriptor, and would report events of the old one, which other processes keep open,
    even after Granian has closed its own and freed what belongs to it. So it is removed from them
    first.
    """
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it is closed by now, or does not know the socket
            if str(entry.readlink()) == "anon_inode:[eventpoll]":
                with select.epoll.fromfd(os.dup(int(entry.name))) as events:
                    events.unregister(descriptor)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind("")
        deaf.listen(1)
        deaf.setblocking(False)
        os.dup2(deaf.fileno(), descriptor, inheritable=False)


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
