"""make certificates: a private authority, and certificates of it to try TLS with.

    python -m deploy.certificates [NAME ...] [--client NAME] [--folder FOLDER] [--days DAYS]

Writes ca.pem, ca.key, server.pem, server.key, client.pem and client.key. The server's certificate
is for localhost, 127.0.0.1, ::1 and the given names or addresses. An authority that is there is
kept, so a second run renews the certificates, and a running server takes over its new one.

It is for trying out: the file ca.key is enough to make a certificate for any name.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SECRETS = Path(__file__).parent / "secrets"
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_CA_DAYS = 3650
# Clocks differ; a certificate that begins in the future is refused.
_EARLIER = datetime.timedelta(hours=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files. Returns 1 if a name cannot be in a certificate."""
    command_line = argparse.ArgumentParser(
        prog="python -m deploy.certificates", description="Make certificates to try TLS with."
    )
    add = command_line.add_argument
    add("names", nargs="*", metavar="NAME", help="further names and addresses of the server")
    add("--client", default="client", metavar="NAME", help="name of the client (default: client)")
    add("--folder", type=Path, default=SECRETS, help="where to write (default: deploy/secrets)")
    add("--days", type=int, default=365, help="until they expire (default: 365)")
    options = command_line.parse_args(arguments)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        server = _alternatives([*_OWN_NAMES, *options.names])
        client = _alternatives([options.client])
    except ValueError as error:
        print(f"A name cannot be in a certificate: {error}", file=sys.stderr)
        return 1
    ca = Authority(folder)
    ca.issue("server", server, options.days, ExtendedKeyUsageOID.SERVER_AUTH)
    ca.issue("client", client, options.days, ExtendedKeyUsageOID.CLIENT_AUTH)
    print(f"{folder} has ca.pem, server.pem, server.key, client.pem and client.key.")
    return 0


class Authority:
    """A private authority whose files, ca.pem and ca.key, are in a folder; new if it has none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        certificate, key = folder / "ca.pem", folder / "ca.key"
        if certificate.exists() and key.exists():
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            self._key = loaded
            self._certificate = x509.load_pem_x509_certificate(certificate.read_bytes())
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name("mnist-serve: authority for trying TLS")
        usage = x509.KeyUsage(
            key_cert_sign=True,
            crl_sign=True,
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        self._certificate = (
            _builder(name, name, self._key.public_key(), _CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        _write(key, _pem(self._key), 0o600)
        _write(certificate, self._certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def issue(
        self, file: str, names: list[x509.GeneralName], days: int, usage: x509.ObjectIdentifier
    ) -> None:
        """Write FILE.pem and FILE.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self._certificate
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(_name(str(names[0].value)), issuer.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        # Readable by all: containers read them as users of their own.
        _write(self._folder / f"{file}.key", _pem(key), 0o644)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        _write(self._folder / f"{file}.pem", pem, 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer,
        subject,
        key,
        x509.random_serial_number(),
        now - _EARLIER,
        now + datetime.timedelta(days=days),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _alternatives(names: list[str]) -> list[x509.GeneralName]:
    """The names as a certificate has them: addresses, URIs and DNS names. Raises ValueError."""
    alternatives: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            is_uri = "://" in name
            alternatives.append(
                x509.UniformResourceIdentifier(name) if is_uri else x509.DNSName(name)
            )
    return alternatives


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file by a rename, so that no reader gets half of it."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=mode)
    new.write_bytes(content)
    new.rename(path)


if __name__ == "__main__":
    sys.exit(main())
