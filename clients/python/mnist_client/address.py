"""Where a server is, and how it is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

_SECURE = {"http": False, "https": True, "grpc": False, "grpcs": True}


@dataclass(frozen=True, slots=True)
class TLS:
    """Files (PEM) for connections by https:// and grpcs://.

    `ca_file` holds the authorities that the server's certificate is checked against, by default
    the system's (over gRPC those of grpcio). `certificate_file` and `key_file` are the client's own
    certificate, for servers that ask for one.
    """

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        if self.key_file and not self.certificate_file:
            raise ValueError("tls: key_file needs certificate_file.")

    def context(self) -> ssl.SSLContext:
        """For HTTP. Raises OSError (ssl.SSLError is one) for a file that cannot be used."""
        import ssl

        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: `target` is HOST:PORT, `prefix` the path in front of HTTP's routes."""

    is_grpc: bool
    is_secure: bool
    target: str
    prefix: str = "/"

    @property
    def url(self) -> str:
        """The base URL of HTTP, which ends with a slash."""
        return f"http{'s' if self.is_secure else ''}://{self.target}{self.prefix}"


def parse(address: str) -> Address:
    """Parse http://, https://, grpc:// or grpcs:// HOST:PORT; a bare one is http://.

    Raises ValueError with a sentence.
    """
    whole = address if "://" in address else f"http://{address}"
    example = "such as http://127.0.0.1:8000 or grpc://127.0.0.1:8001"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"address: '{address}' is not an address ({error}).") from None
    if parts.scheme not in _SECURE or not parts.hostname:
        raise ValueError(f"address: '{address}' is not an address, {example}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"address: '{parts.scheme}://{parts.hostname}...' has a user, a query or a fragment; "
            "give a key as bearer_key."
        )
    is_grpc, is_secure = parts.scheme.startswith("grpc"), _SECURE[parts.scheme]
    if is_grpc and parts.path.strip("/"):
        raise ValueError(f"address: '{address}' has a path, which gRPC does not have.")
    if is_grpc and port is None:
        raise ValueError(f"address: '{address}' has no port; mnist-serve's gRPC port is 8001.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    target = host if port is None else f"{host}:{port}"
    return Address(is_grpc, is_secure, target, parts.path.rstrip("/") + "/")
