"""What is wrong with the files of TLS is said before the server starts, and names the setting."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from service.access import tls as tls_module
from service.access.tls import NotUsableYet, Tls, client_name
from service.settings import Settings, SettingsError
from tests.certificates import Authority, Files
from tests.descriptors import free_descriptors


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def settings_of(files: Files, **more: Any) -> Settings:
    return Settings(tls_certificate=str(files.certificate), tls_key=str(files.key), **more)


def refusal(settings: Settings) -> str:
    with pytest.raises(SettingsError) as raised:
        Tls(settings)
    assert str(raised.value).endswith(".")
    return str(raised.value)


def test_a_good_pair_says_its_names_and_how_long_it_is_valid(authority: Authority) -> None:
    tls = Tls(settings_of(authority.server(days=30.5)))
    assert tls.names == ("localhost", "127.0.0.1", "0:0:0:0:0:0:0:1")
    assert tls.days_left == 30
    assert tls.described.startswith("certificate of localhost, 127.0.0.1")
    tls.close()


def test_a_certificate_without_names_can_be_served(authority: Authority) -> None:
    assert "no name" in Tls(settings_of(authority.issue("x", common_name="x"))).described


def test_missing_files_are_named_with_their_setting(authority: Authority) -> None:
    files = authority.server()
    files.key.unlink()
    assert refusal(settings_of(files)).startswith("tls_key: cannot read ")
    files.certificate.unlink()
    assert "No such file" in refusal(settings_of(files))
    files.certificate.mkdir()
    assert refusal(settings_of(files)).startswith("tls_certificate: cannot read ")


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    files, other = authority.server(), authority.server("other")
    assert "does not belong to the certificate" in refusal(
        settings_of(files._replace(key=other.key))
    )


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 5000, b"-----BEGIN"])
def test_files_without_pem_are_refused(authority: Authority, content: bytes) -> None:
    files = authority.server()
    pem = files.key.read_bytes()
    files.key.write_bytes(content)
    assert refusal(settings_of(files)).startswith("tls_key: ")
    files.key.write_bytes(pem)
    files.certificate.write_bytes(content)
    assert refusal(settings_of(files)).startswith("tls_certificate: ")


def test_the_files_of_another_setting_are_refused(authority: Authority) -> None:
    files = authority.server()
    assert refusal(settings_of(Files(files.key, files.key))).startswith("tls_certificate: ")
    swapped = Files(files.certificate, files.certificate)
    assert "is not a private key" in refusal(settings_of(swapped))


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_passphrase(
    authority: Authority,
) -> None:
    files = authority.server()
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert refusal(settings_of(files)).startswith("tls_key: the key is encrypted")


def test_what_clients_would_refuse_is_refused(authority: Authority) -> None:
    expired = refusal(settings_of(authority.server(days=-1)))
    assert expired.startswith("tls_certificate: clients would refuse ")
    assert expired.endswith("certificate has expired.")


def test_authorities_must_be_certificates(authority: Authority) -> None:
    files = authority.server()
    asks = {"tls_client_auth": "required"}
    Tls(settings_of(files, tls_client_ca=str(authority.ca), **asks)).close()
    words = refusal(settings_of(files, tls_client_ca=str(files.key), **asks))
    assert words.startswith("tls_client_ca: ")
    assert refusal(settings_of(files, tls_client_ca="/none", **asks)).startswith("tls_client_ca: ")


def test_a_name_that_is_no_text_is_refused_as_any_other_fault(authority: Authority) -> None:
    files = authority.server()
    tls = Tls(settings_of(files))
    files.certificate.write_bytes(with_name(files, b"caf\xe9.example"))
    assert refusal(settings_of(files)).endswith("has a name or a date that cannot be read.")
    assert not tls.has_changed()
    assert tls.has_changed()
    with pytest.raises(SettingsError):
        tls.read()
    assert not tls.has_changed()


def with_name(files: Files, name: bytes) -> bytes:
    """A certificate for the key of these files, whose alternative name has these bytes."""
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    value = b"\x30" + bytes([len(name) + 2]) + b"\x82" + bytes([len(name)]) + name  # DER
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(own, own, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, value), False
        )
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def test_a_certificate_that_is_not_yet_valid_is_tried_again(authority: Authority) -> None:
    tls = Tls(settings_of(authority.server()))
    authority.server(begins=0.5)
    assert not tls.has_changed()
    for _ in range(2):
        assert tls.has_changed()
        with pytest.raises(NotUsableYet, match="not yet valid"):
            tls.read()


def test_the_thread_that_follows_the_files_survives_and_says_a_problem_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Ended(BaseException):
        pass

    monkeypatch.setattr(tls_module.threading, "Thread", Inline)
    tls = Tls(settings_of(authority.server(days=30.5)))
    changes: list[int] = []
    problems: list[str] = []
    looks = iter(range(8))

    def wait(seconds: float) -> None:
        look = next(looks, None)
        if look is None:
            raise Ended
        if look == 0:
            authority.server(begins=0.5)
        if look == 4:
            authority.server(days=60.5)

    def take_over() -> None:
        changes.append(tls.days_left)
        raise RuntimeError("of the caller")

    monkeypatch.setattr(tls_module.time, "sleep", wait)
    with pytest.raises(Ended):
        tls.follow(take_over, lambda error: problems.append(str(error)))
    assert changes == [60]
    assert len(problems) == 1
    assert "of the caller" in caplog.text


class Inline:
    """A thread that runs where it is started."""

    def __init__(self, *, target: Callable[[], None], name: str, daemon: bool) -> None:
        self.start = target


def test_the_key_is_not_shown(authority: Authority) -> None:
    files = Tls(settings_of(authority.server())).files
    assert b"PRIVATE" in files.key.content
    assert "PRIVATE" not in f"{files!r}"


def test_files_that_change_are_read_again_when_they_have_settled(authority: Authority) -> None:
    tls = Tls(settings_of(authority.server(days=30.5)))
    assert not tls.has_changed()
    authority.server(days=60.5)
    assert not tls.has_changed()  # it may still be written
    assert tls.has_changed()
    tls.read()
    assert tls.days_left == 60
    assert not tls.has_changed()


def seen(context: ssl.SSLContext) -> bytes:
    """The certificate that a client of this context gets, in DER."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    for side in (theirs, ours, theirs):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    certificate = theirs.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def test_connections_get_the_certificate_that_was_read_last(authority: Authority) -> None:
    others = len(open_copies())
    tls = Tls(settings_of(authority.server()))
    first, path = tls.context("h2", "http/1.1"), tls.files.key.path
    assert tls.context("h2", "http/1.1") is first
    files = authority.server()
    tls.read()
    second = tls.context("h2", "http/1.1")
    assert seen(second) == ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    assert seen(first) != seen(second)
    # A worker that was told the paths before, and opens them now.
    assert Path(path).read_bytes() != tls.files.key.content == files.key.read_bytes()
    authority.server()
    tls.read()
    assert len(open_copies()) == others + 2 * 2
    tls.close()
    assert len(open_copies()) == others


def open_copies() -> list[str]:
    """The files in memory that this process has open for TLS."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            links.append(str(entry.readlink()))
    return [link for link in links if link.startswith("/memfd:tls_")]


def test_files_that_are_as_they_were_again_are_read_no_second_time(authority: Authority) -> None:
    files = authority.server()
    tls = Tls(settings_of(files))
    files.key.rename(kept := files.key.with_suffix(".kept"))
    files.key.write_bytes(b"nonsense")
    assert not tls.has_changed()
    assert tls.has_changed()
    with pytest.raises(SettingsError, match="tls_key"):
        tls.read()
    kept.rename(files.key)
    assert not tls.has_changed()
    assert not tls.has_changed()


def test_a_bad_new_pair_leaves_the_old_one_and_is_reported_once(authority: Authority) -> None:
    files = authority.server()
    tls = Tls(settings_of(files))
    before = tls.files
    context = tls.context("h2")
    files.certificate.write_bytes(authority.server("other").certificate.read_bytes())
    assert not tls.has_changed()
    assert tls.has_changed()
    with pytest.raises(SettingsError, match="tls_key"):
        tls.read()
    assert tls.files is before
    assert Path(before.key.path).read_bytes() == before.key.content
    assert tls.context("h2") is context
    assert not tls.has_changed()
    assert not tls.has_changed()
    files.key.unlink()  # as between two steps of a program that replaces it
    assert not tls.has_changed()
    assert not tls.has_changed()


def test_new_files_are_read_again_once_there_are_descriptors(authority: Authority) -> None:
    files = authority.server(days=30.5)
    tls = Tls(settings_of(files))
    authority.server(days=60.5)
    assert not tls.has_changed()
    for free in range(3):
        with free_descriptors(free):
            assert tls.has_changed()
            with pytest.raises(NotUsableYet, match="Too many open files"):
                tls.read()
        tls.context("h2", f"another {free}")
        assert tls.days_left == 30
    assert tls.has_changed()
    tls.read()
    assert tls.days_left == 60
    assert not tls.has_changed()


def test_the_context_asks_for_certificates_as_set(authority: Authority) -> None:
    files = authority.server()
    modes = {
        "none": ssl.CERT_NONE,
        "optional": ssl.CERT_OPTIONAL,
        "required": ssl.CERT_REQUIRED,
    }
    for asks, mode in modes.items():
        ca = "" if asks == "none" else str(authority.ca)
        tls = Tls(settings_of(files, tls_client_auth=asks, tls_client_ca=ca))
        assert tls.context("h2").verify_mode is mode
        assert tls.for_granian()[-1] is (asks == "required")
        tls.close()


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        (None, ""),
        ({}, ""),
        ({"subject": ((("commonName", "c"),),)}, "c"),
        ({"subject": ((("organizationName", "o"),), (("commonName", "c"),))}, "c"),
        ({"subject": ((("commonName", "c"),),), "subjectAltName": (("DNS", "d"),)}, "d"),
        ({"subjectAltName": (("email", "e"), ("DNS", "d"), ("URI", "u:v"))}, "u:v"),
        ({"subjectAltName": (("IP Address", "1.2.3.4"),)}, ""),
    ],
)
def test_a_client_is_named_by_its_alternative_name_or_common_name(
    certificate: dict[str, Any] | None, name: str
) -> None:
    assert client_name(certificate) == name
