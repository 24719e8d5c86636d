"""The file of keys: who may call, with which key or client certificate, what for, and until when.

Strategy: the file is text, one entry per line, so that people can read it, and a tool for secrets
can carry it:

    NAME SCOPES EXPIRES sha256:DIGEST
    NAME SCOPES EXPIRES certificate:NAME-IN-THE-CERTIFICATE

SCOPES are separated by commas. EXPIRES is a time in UTC (2027-01-31T00:00:00Z) or `never`. Empty
lines and lines that begin with # do not count. A line with a certificate ends with a line feed,
also as the last one: without it, the file may have been read while it was written, and the name
may lack its end. A key is 256 random bits, and only its SHA-256 is kept. There is no way back from
that to such a key, so neither a salt nor a slow hash would add anything, and a request costs one
SHA-256 (docs/decisions/keys.md).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from service.core.errors import excerpt

# What callers may do: predictions; metadata, statistics and settings; whatever changes the server;
# the metrics.
Scope = Literal["predict", "read", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# What a key starts with, so that people and scanners for secrets recognise one.
KEY_PREFIX = "mnist_"
_KEY_BYTES = 32
_MOST_BYTES = 4 << 20  # of the file: some 30,000 keys
_NEVER = "never"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A DNS name, a URI (SPIFFE), an address of mail or a common name without spaces.
_CERTIFICATE = re.compile(r"[!-~]{1,255}")
_HEADER = "# Keys of mnist-serve: NAME SCOPES EXPIRES sha256:DIGEST. Change it with mnist-keys.\n"


class KeysError(ValueError):
    """The file of keys cannot be used, or a change of it; the message is a sentence."""


class Key(NamedTuple):
    """An entry of the file; `digest` is the SHA-256 of a key, or empty for a `certificate`."""

    name: str
    scopes: frozenset[Scope]
    expires: float | None  # seconds since 1970; None for never
    digest: bytes = b""
    certificate: str = ""

    @property
    def line(self) -> str:
        """The entry as a line of the file."""
        scopes = ",".join(scope for scope in SCOPES if scope in self.scopes)
        holder = f"certificate:{self.certificate}"
        if self.digest:
            holder = f"sha256:{self.digest.hex()}"
        return f"{self.name} {scopes} {time_text(self.expires)} {holder}"


def new_key() -> str:
    """A new random key: the prefix and 43 characters of base64url."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key, 32 bytes. Raises UnicodeEncodeError unless it is ASCII."""
    return hashlib.sha256(key.encode("ascii")).digest()


def time_text(expires: float | None) -> str:
    """A time as the file has it."""
    return _NEVER if expires is None else datetime.fromtimestamp(expires, UTC).strftime(_TIME)


def read_time(text: str) -> float | None:
    """The seconds since 1970 of a time in UTC, or of a date; None for never. Raises KeysError."""
    if text == _NEVER:
        return None
    for form in (_TIME, "%Y-%m-%d"):
        with contextlib.suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
    raise KeysError(
        f"'{excerpt(text)}' is no time; write 2027-01-31T00:00:00Z, 2027-01-31 (both UTC) or never."
    )


def read_scopes(text: str) -> frozenset[Scope]:
    """The scopes of a comma-separated list, at least one. Raises KeysError."""
    names = text.split(",")
    if unknown := [name for name in names if name not in SCOPES]:
        raise KeysError(f"'{excerpt(unknown[0])}' is no scope; they are {', '.join(SCOPES)}.")
    return frozenset(scope for scope in SCOPES if scope in names)


def check_anonymous(text: str) -> None:
    """Raise ValueError, without a full stop, for a value of the setting anonymous_scopes."""
    if text not in ("auto", "none"):
        try:
            read_scopes(text)
        except KeysError as error:
            raise ValueError(
                str(error).rstrip(".").replace("they are", "use auto, none or")
            ) from None


def check_name(name: str) -> None:
    """Raise KeysError for a name that an entry cannot have."""
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"'{excerpt(name)}' is no name for a key; use up to 64 letters, digits and . _ @ -, "
            "the first a letter or digit."
        )


def check_certificate(name: str) -> None:
    """Raise KeysError for a name of a certificate that an entry cannot have."""
    if not _CERTIFICATE.fullmatch(name):
        raise KeysError(
            f"'{excerpt(name)}' is no name of a certificate; use up to 255 printable ASCII "
            "characters without spaces."
        )


def _read_line(line: str) -> Key:
    fields = line.split()
    if len(fields) != 4:
        raise KeysError("an entry has four fields: NAME SCOPES EXPIRES and sha256:DIGEST.")
    name, scopes, expires, holder = fields
    check_name(name)
    kind, _, value = holder.partition(":")
    key = Key(name, read_scopes(scopes), read_time(expires))
    if kind == "sha256" and _DIGEST.fullmatch(value):
        return key._replace(digest=bytes.fromhex(value))
    if kind == "certificate":
        check_certificate(value)
        return key._replace(certificate=value)
    # Not quoted: it may be a key that somebody wrote in place of its digest.
    raise KeysError(
        "the last field must be sha256: and 64 lower-case hexadecimal digits, or certificate: and "
        "a name; mnist-keys add writes it."
    )


def parse(text: str) -> list[Key]:
    """The entries of a file. Raises KeysError, which names the line."""
    keys: list[Key] = []
    seen: dict[str | bytes, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = _read_line(line)
        except KeysError as error:
            raise KeysError(f"line {number}: {error}") from None
        holder = key.digest or f"certificate:{key.certificate}"
        for what, part in (("name", key.name), ("key or certificate", holder)):
            if part in seen:
                raise KeysError(f"line {number}: line {seen[part]} has the same {what}.")
            seen[part] = number
        keys.append(key)
    return keys


class Keyring:
    """The entries of a file by what a caller shows; cheap to ask, and never changed."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        keys = list(keys)
        self.by_digest = {key.digest: key for key in keys if key.digest}
        self.by_certificate = {key.certificate: key for key in keys if key.certificate}

    def __len__(self) -> int:
        return len(self.by_digest) + len(self.by_certificate)

    def __iter__(self) -> Iterator[Key]:
        yield from self.by_digest.values()
        yield from self.by_certificate.values()

    def has(self, key: Key) -> bool:
        """Whether the file still has this entry, unchanged."""
        if key.digest:
            return self.by_digest.get(key.digest) == key
        return self.by_certificate.get(key.certificate) == key


class Signature(NamedTuple):
    """What tells one state of a file from another without reading it."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class KeysFile:
    """The file of keys at a path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def signature(self) -> Signature | None:
        """The state of the file; None if there is none. Takes some microseconds."""
        try:
            return _signature(self.path.stat())
        except OSError:
            return None

    def read(self) -> list[Key]:
        """The entries. Raises KeysError, also for a file that is being written."""
        return self.load()[0]

    def load(self) -> tuple[list[Key], Signature]:
        """The entries, and the state of the file that has them. Raises as `read`."""
        try:
            # Opening a pipe would otherwise wait for its other end.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                before, content = os.fstat(descriptor), b""
                is_file = stat.S_ISREG(before.st_mode)
                if is_file:
                    with open(descriptor, "rb", closefd=False) as file:
                        content = file.read(_MOST_BYTES + 1)
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            remedy = ""
            if error.errno == errno.ENOENT:
                remedy = "; make one with mnist-keys add"
            elif isinstance(error, PermissionError):
                remedy = f"; let the server's user ({os.geteuid()}) read it"
            raise KeysError(
                f"The file of keys {self.path} (keys_file) cannot be read: "
                f"{error.strerror}{remedy}."
            ) from None
        try:
            if not is_file:
                raise KeysError("it is not a regular file.")
            if len(content) > _MOST_BYTES:
                raise KeysError(f"it is larger than {_MOST_BYTES} bytes.")
            if not content:
                raise KeysError(
                    "it is empty, as if it were still being written; if no caller may have a key, "
                    "write a comment (#) into it."
                )
            keys = parse(content.decode("ascii"))
            if _signature(before) != _signature(after):
                raise KeysError("it is being written.")
            last = content.rpartition(b"\n")[2]
            if b"certificate:" in last and not last.lstrip().startswith(b"#"):
                raise KeysError(
                    "its last line has no line feed, as if it were still being written; end it "
                    "with one."
                )
            return keys, _signature(after)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            reason = f"line {line}: it is not ASCII."
        except KeysError as error:
            reason = str(error)
        raise KeysError(f"{self.path} (keys_file), {reason}") from None

    @property
    def exposure(self) -> str:
        """A sentence if users other than the owner and the group can read or change it, or ""."""
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return ""
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"Others may change the file of keys {self.path}; run chmod 640 (or 600) on it."
        if mode & stat.S_IROTH:
            return f"Every user may read the file of keys {self.path}; run chmod 640 (or 600)."
        return ""

    def change(self, change: Callable[[list[Key]], list[Key]]) -> None:
        """Replace the entries with what `change` makes of them. Comments are kept.

        A reader sees the old file or the new one. Commands that change it at once take turns.
        Raises KeysError, and leaves the file as it is.
        """
        path = self.path.resolve()
        try:
            with _lock(path.parent):
                is_new = not path.exists() or path.stat().st_size == 0
                before = _HEADER if is_new else path.read_text("ascii")
                old = [] if is_new else self.read()
                keys = change(list(old))
                kept = {key.name for key in keys} & {key.name for key in old}
                lines = [
                    line
                    for line in before.splitlines()
                    if not (fields := line.split())
                    or fields[0].startswith("#")
                    or fields[0] in kept
                ]
                lines += [key.line for key in keys if key.name not in kept]
                _write(path, "\n".join(lines) + "\n")
        except OSError as error:
            raise KeysError(
                f"The file of keys {path} cannot be written: {error.strerror}."
            ) from None


class SharedKeys:
    """The keys that the workers of a server have, in a folder of their own.

    A worker that starts has them at once, whatever state the file of keys is in.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "keys"
        self._said = folder / "keys-said"

    def read(self) -> list[Key] | None:
        """The keys of the other workers; None if there are none yet."""
        try:
            return parse(self._path.read_text("ascii"))
        except (OSError, ValueError):
            return None

    def write(self, keys: Iterable[Key]) -> None:
        """Keep the keys of this worker for others."""
        try:
            _write(self._path, "".join(f"{key.line}\n" for key in keys))
        except OSError:  # the disk is full; none are better than old ones
            with contextlib.suppress(OSError):
                self._path.unlink()

    def is_news(self, text: str) -> bool:
        """Whether no worker has said this last; the one that is told so says it."""
        with contextlib.suppress(OSError, ValueError), _lock(self._said.parent):
            if self._said.exists() and self._said.read_text("utf-8") == text:
                return False
            self._said.write_text(text, "utf-8")
        return True


def _signature(status: os.stat_result) -> Signature:
    return Signature(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    """Replace a file by a rename; a new one is for its owner alone."""
    status = path.stat() if path.exists() else None
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            if status is not None:
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, status.st_uid, status.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
