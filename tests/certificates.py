"""Certificates for the tests of TLS: made in a moment, valid for a day, and never stored."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import NamedTuple

import trustme

_DAY = datetime.timedelta(days=1)


class Files(NamedTuple):
    """Paths of a certificate with its chain, and of its key."""

    certificate: Path
    key: Path

    @property
    def flags(self) -> dict[str, Path]:
        """The settings of a server that has this certificate."""
        return {"tls_certificate": self.certificate, "tls_key": self.key}


class Authority:
    """A certificate authority whose files are in a folder; `ca` is its certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(
        self,
        name: str,
        *identities: str,
        common_name: str | None = None,
        days: float = 1.0,
        begins: float = -400.0,
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
    ) -> Files:
        """Write NAME.pem and NAME.key, over what is there.

        The certificate is valid from `begins` to `days`, both in days from now.
        """
        now = datetime.datetime.now(datetime.UTC)
        issued = self._ca.issue_cert(
            *identities,
            common_name=common_name,
            not_before=now + begins * _DAY,
            not_after=now + days * _DAY,
            key_type=key_type,
        )
        files = Files(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        files.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(files.key)
        return files

    def server(self, name: str = "server", **times: float) -> Files:
        """A certificate for this machine."""
        return self.issue(name, "localhost", "127.0.0.1", "::1", **times)
