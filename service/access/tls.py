"""The certificate, key and client authorities of TLS: one set for both ports and all workers.

The supervisor reads the files, examines them as a client would, and keeps what it read in memory
that the workers inherit and open as files. So a worker that starts later, as after a crash, finds
what was examined, and not what somebody is writing at the moment. Supervisor and workers follow
the files: new ones that are good count for each connection from then on. Only Granian reads a
certificate once, at its start, so that its workers have to be replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from service.core.errors import excerpt
from service.settings import Settings, SettingsError

_DAY_S = 86_400
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID of OpenSSL
_POLL_S = 1.0  # between two looks at the files
SOON_DAYS = 14  # a certificate that expires within these should have been renewed
_FILES = ("tls_certificate", "tls_key", "tls_client_ca")
# What RFC 9113 (9.2.2) leaves of TLS 1.2, and what rustls offers on the HTTP port. TLS 1.3 has
# ciphers of its own.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# The kinds of a subject alternative name that can name a client, the most specific first.
_KINDS = ("URI", "DNS")

log = logging.getLogger(__name__)

_Stamp = tuple[object, ...]


class NotUsableYet(SettingsError):
    """The files cannot be used now, but perhaps later, although they do not change."""


class Copy(NamedTuple):
    """A file that was read, and a path to read it from in this process and those that it forks."""

    path: str = ""
    content: bytes = b""

    def __repr__(self) -> str:
        return f"Copy({self.path!r})"  # its content may be a key


class _Certificate(NamedTuple):
    names: tuple[str, ...] = ()
    expires: float = 0.0  # seconds since the epoch


class _Files(NamedTuple):
    """What was read at one time."""

    certificate: Copy = Copy()
    key: Copy = Copy()
    client_ca: Copy = Copy()
    served: _Certificate = _Certificate()
    stamp: _Stamp = ()
    descriptors: Sequence[int] = ()


class Tls:
    """What the server proves itself with, and whose client certificates it accepts.

    Raises SettingsError, which names the setting, for what clients could not use.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}  # by their protocols
        self._next_stamp: _Stamp = ()
        self._refused: _Stamp = ()
        self._stale: Sequence[int] = ()
        self._files = _Files()
        self.read()

    def read(self) -> None:
        """Read the files again. After a SettingsError, what was read before stays.

        After a NotUsableYet, `has_changed` asks for another try.
        """
        stamp = self._look()
        descriptors: list[int] = []
        try:
            pem, key, ca = [self._copy(name, descriptors) for name in _FILES]
            served = _examine(self._settings, pem.path, key.path, ca.path)
            files = _Files(pem, key, ca, served, stamp, descriptors)
            contexts = {of: self._context(files, of) for of in list(self._contexts)}
        except BaseException as error:
            _close(descriptors)
            if isinstance(error, OSError):  # no descriptor or no memory is left
                raise NotUsableYet(
                    f"tls_certificate: cannot read {excerpt(self._settings.tls_certificate)}: "
                    f"{error.strerror}.",
                    "tls_certificate",
                ) from None
            if isinstance(error, SettingsError) and not isinstance(error, NotUsableYet):
                self._refused = self._next_stamp = stamp
            raise
        # Those from before stay open: a worker may just have been told their paths. They are closed
        # last, so that a worker forked at this moment does not close their numbers again.
        stale, self._stale = self._stale, self._files.descriptors
        self._files, self._contexts, self._next_stamp = files, contexts, stamp
        _close(stale)

    def follow(
        self,
        on_change: Callable[[], None] = lambda: None,
        on_problem: Callable[[SettingsError], None] = lambda problem: None,
    ) -> None:
        """From now on, read the files when they have changed, in a thread of its own.

        It calls `on_change` after a change, and `on_problem` for an attempt that failed otherwise
        than the one before.
        """

        def run() -> NoReturn:
            problem = ""
            while True:
                time.sleep(_POLL_S)
                if self.has_changed():
                    try:
                        self.read()
                        on_change()
                        problem = ""
                    except Exception as error:  # without this thread, none would be read again
                        if problem == str(error):  # some files are tried again every second
                            continue
                        problem = str(error)
                        if isinstance(error, SettingsError):
                            on_problem(error)
                        else:
                            log.exception("TLS continues with the certificate that it has.")

        threading.Thread(target=run, name="certificate", daemon=True).start()

    def has_changed(self) -> bool:
        """Whether the files differ from those last read, and have settled since the last call."""
        last, self._next_stamp = self._next_stamp, self._look()
        known = (self._files.stamp, self._refused, ())
        return self._next_stamp not in known and self._next_stamp == last

    def close(self) -> None:
        """Close the copies of the files; what is known of the certificate stays."""
        _close([*self._files.descriptors, *self._stale])
        self._files, self._stale = self._files._replace(descriptors=()), ()

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the certificate."""
        return self._files.served.names

    @property
    def files(self) -> _Files:
        """What was read last; another object after each reading."""
        return self._files

    @property
    def days_left(self) -> int:
        """Whole days until the certificate expires."""
        return int((self._files.served.expires - time.time()) // _DAY_S)

    @property
    def described(self) -> str:
        """The certificate in words, for the log."""
        names = ", ".join(self.names[:4]) or "no name"
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self._files.served.expires))
        return f"certificate of {excerpt(names)}, valid until {until}"

    def context(self, *protocols: str) -> ssl.SSLContext:
        """For a connection to the server's own fronts; `protocols` are those of ALPN, best first.

        To be asked for each connection: the first call costs a millisecond, the others nothing.
        """
        contexts = self._contexts
        context = contexts.get(protocols)
        if context is None:
            context = contexts[protocols] = self._context(self._files, protocols)
        return context

    def _context(self, files: _Files, protocols: tuple[str, ...]) -> ssl.SSLContext:
        settings = self._settings
        context = _context(files.certificate.path, files.key.path)
        context.minimum_version = {
            "1.2": ssl.TLSVersion.TLSv1_2,
            "1.3": ssl.TLSVersion.TLSv1_3,
        }[settings.tls_min_version]
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(protocols)
        context.options |= ssl.OP_NO_RENEGOTIATION
        if settings.tls_client_auth != "none":
            context.load_verify_locations(cafile=files.client_ca.path)
            is_required = settings.tls_client_auth == "required"
            context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
        return context

    def for_granian(self) -> Any:
        """What Granian's workers take as `ssl_ctx` for HTTP."""
        settings, files = self._settings, self._files
        password, revoked = None, list[str]()
        return (
            True,
            files.certificate.path,
            files.key.path,
            password,
            f"tls{settings.tls_min_version}",
            files.client_ca.path or None,
            revoked,
            settings.tls_client_auth == "required",
        )

    def _look(self) -> _Stamp:
        """What changes when the files do; empty while one of them is missing."""
        try:
            states = [Path(file).stat() for file in self._paths() if file]
        except OSError:
            return ()
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in states)

    def _paths(self) -> list[str]:
        return [getattr(self._settings, name) for name in _FILES]

    def _copy(self, name: str, descriptors: list[int]) -> Copy:
        """Copy a file into memory."""
        path = getattr(self._settings, name)
        if not path:
            return Copy()
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise NotUsableYet(
                f"{name}: cannot read {excerpt(path)}: {error.strerror}.", name
            ) from None
        if not hasattr(os, "memfd_create"):  # not Linux
            return Copy(str(Path(path).resolve()), content)
        descriptor = os.memfd_create(name)
        descriptors.append(descriptor)
        with open(descriptor, "wb", closefd=False) as copy:
            copy.write(content)
        return Copy(f"/proc/self/fd/{descriptor}", content)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key, password=_refuse_passphrase)
    return context


def _refuse_passphrase() -> NoReturn:
    # Without this, OpenSSL would ask for it on the terminal.
    raise SettingsError(
        "tls_key: the key is encrypted; store it without a passphrase, readable by the server "
        "alone.",
        "tls_key",
    )


def _examine(settings: Settings, certificate: str, key: str, client_ca: str) -> _Certificate:
    """What clients learn of the certificate, by a handshake in memory. Raises SettingsError."""
    shown = excerpt(settings.tls_certificate)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The certificate vouches for itself: only clients know which authorities they trust.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cafile=certificate)
    except ssl.SSLError:
        raise SettingsError(
            f"tls_certificate: {shown} is not a certificate in PEM format.", "tls_certificate"
        ) from None
    try:
        server = _context(certificate, key)
    except ssl.SSLError as error:
        why = "is not a private key in PEM format"
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"does not belong to the certificate in {shown} (tls_certificate)"
        elif error.reason:
            why = f"cannot be used with {shown} (tls_certificate): {_words(error.reason)}"
        raise SettingsError(f"tls_key: {excerpt(settings.tls_key)} {why}.", "tls_key") from None
    if client_ca:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=client_ca)
        except ssl.SSLError:
            raise SettingsError(
                f"tls_client_ca: {excerpt(settings.tls_client_ca)} has no certificate in PEM "
                "format.",
                "tls_client_ca",
            ) from None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    try:
        for side in (theirs, ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        seen: dict[str, Any] = theirs.getpeercert() or {}
        names = tuple(str(pair[1]) for pair in seen.get("subjectAltName", ()))
        expires = ssl.cert_time_to_seconds(str(seen["notAfter"]))
    except ssl.SSLCertVerificationError as error:
        refusal = NotUsableYet if error.verify_code == _NOT_YET_VALID else SettingsError
        raise refusal(
            f"tls_certificate: clients would refuse {shown}: {error.verify_message}.",
            "tls_certificate",
        ) from None
    except ssl.SSLError as error:
        raise SettingsError(
            f"tls_certificate: {shown} does not work with its key: {_words(error.reason)}.",
            "tls_certificate",
        ) from None
    except ValueError:  # also of decoding: a name that is not UTF-8
        raise SettingsError(
            f"tls_certificate: {shown} has a name or a date that cannot be read.",
            "tls_certificate",
        ) from None
    return _Certificate(names, expires)


def _words(reason: str | None) -> str:
    """OpenSSL's name of an error (EE_KEY_TOO_SMALL) as words."""
    return (reason or "unknown error").lower().replace("_", " ")


def client_name(certificate: Mapping[str, Any] | None) -> str:
    """The name of a verified client certificate, as `SSLObject.getpeercert` returns it.

    It is the first URI of its subject alternative names, else the first DNS name, else its common
    name; empty if there is no certificate.
    """
    if not certificate:
        return ""
    alternatives = certificate.get("subjectAltName", ())
    common = [pair for part in certificate.get("subject", ()) for pair in part]
    return _first_name([*alternatives, *common])


def _first_name(pairs: list[tuple[str, str]]) -> str:
    for kind in (*_KINDS, "commonName"):
        for name, value in pairs:
            if name == kind and value:
                return value
    return ""
