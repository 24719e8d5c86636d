"""Certificates and an API key for a server under test, and what its callers need of them."""

from __future__ import annotations

import contextlib
import io
import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Access:
    """The certificate of the authority that the server's is from, and a key that may predict."""

    ca: Path
    key: str

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What carries the key; metadata over gRPC."""
        return (("authorization", f"Bearer {self.key}"),)

    def context(self) -> ssl.SSLContext:
        """TLS of a client that trusts this authority alone."""
        return ssl.create_default_context(cafile=self.ca)


def make(folder: Path) -> Access:
    """Fill a new folder: server.pem and server.key for loopback, and `keys` with one API key."""
    # Imported here: the load generators import this module too, and make nothing.
    from deploy import certificates
    from service.access.keys import Key, KeysFile, digest_of, new_key

    with contextlib.redirect_stdout(io.StringIO()):  # its line is for people
        certificates.main(["--folder", str(folder)])
    secret = new_key()
    key = Key("benchmark", frozenset({"predict"}), None, digest_of(secret))
    KeysFile(folder / "keys").change(lambda keys: [*keys, key])
    return Access(folder / "ca.pem", secret)
