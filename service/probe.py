"""mnist-probe: reports with its exit status whether the server on this machine is ready.

For health checks without a shell or curl, as in a container or a systemd unit. It reads
the server's own settings (flags, MNIST_* and file), and so finds the ports.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import ssl
import sys
from collections.abc import Sequence

from service.settings import Settings, SettingsError, add_flags, load

_TIMEOUT_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe once. Returns 0 if the server is ready on both ports, 1 if not, 2 for bad settings."""
    try:
        settings = load(arguments, command_line=parser())
    except SettingsError as error:
        print(f"mnist-probe: {error}", file=sys.stderr)
        return 2
    try:
        reason = why_unready(settings)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"{error or type(error).__name__}; is mnist-serve running?"
    if reason:
        print(f"mnist-probe: not ready: {' '.join(reason.split())}", file=sys.stderr)
    return int(bool(reason))


def parser() -> argparse.ArgumentParser:
    """The command line. It takes all settings of the server; --help shows the relevant ones."""
    command_line = argparse.ArgumentParser(
        prog="mnist-probe",
        usage="%(prog)s [--SETTING VALUE ...]",
        description="Exit with 0 if the server is ready, 1 if it is not, 2 for bad settings.",
        epilog="It takes all settings of mnist-serve, from the environment and the file too,\n"
        "and uses those above.\n\n"
        "example:\n"
        "  mnist-probe        # where the server's settings are in the environment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = command_line.add_argument_group("command").add_argument
    add("path", nargs="?", metavar="PATH", help=argparse.SUPPRESS)
    add("-h", "--help", action="help", help="show this text and exit")
    add("--config", metavar="FILE", help="TOML file of settings [MNIST_CONFIG]")
    add_flags(command_line, shown=("host", "http_port", "grpc_port", "health_port"))
    return command_line


def why_unready(settings: Settings) -> str:
    """The reason that the server gives, or empty if it is ready.

    Raises OSError if no server listens, ValueError if the host is not a valid name, HTTPException
    if the port does not speak HTTP.
    """
    if settings.tls_client_auth == "required" and not settings.health_port:
        return "http_port asks for a client certificate; set health_port, which asks for none"
    status, body = _get(settings, settings.health_port or settings.http_port, "/v2/health/ready")
    if status != 200:
        try:
            reason = str(json.loads(body)["reason"])
        except (ValueError, KeyError, TypeError, RecursionError):  # not the server's JSON
            reason = ""
        return reason or f"/v2/health/ready answers {status}"
    if settings.health_port:  # it answers for all ports, and needs none of their connections
        return ""
    # One event loop serves both ports, so for the other port it is enough to be open.
    socket.create_connection((settings.own_host, settings.grpc_port), _TIMEOUT_S).close()
    return ""


def serves_here(settings: Settings) -> bool:
    """Whether the HTTP port answers as a live server of the protocol does."""
    try:
        return _get(settings, settings.http_port, "/v2/health/live")[0] == 200
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _get(settings: Settings, port: int, path: str) -> tuple[int, bytes]:
    host = settings.own_host
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    if settings.has_tls and port == settings.http_port:
        # Not verified: the certificate is for the names by which others know this machine, and
        # nothing secret is sent.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
