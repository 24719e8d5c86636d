"""Certificates for tests of TLS: of a server on 127.0.0.1, a client, and two authorities."""

from __future__ import annotations

from pathlib import Path

import trustme


class Certificates:
    """Writes PEM files into a folder; `server` and `client` are (certificate, key)."""

    def __init__(self, folder: Path) -> None:
        authority, other = trustme.CA(), trustme.CA()
        self.ca_file, self.other_ca_file = folder / "ca.pem", folder / "other.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        other.cert_pem.write_to_path(str(self.other_ca_file))
        self.server, self.client = (
            (folder / f"{name}.pem", folder / f"{name}.key") for name in ("server", "client")
        )
        for names, (certificate, key) in ((("127.0.0.1",), self.server), (("me",), self.client)):
            issued = authority.issue_cert(*names)
            issued.cert_chain_pems[0].write_to_path(str(certificate))
            issued.private_key_pem.write_to_path(str(key))
