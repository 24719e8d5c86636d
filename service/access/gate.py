"""The gate: the one decision about who may call, for HTTP and gRPC alike.

Strategy: a front calls `Gate.admit` when the headers of a request are there, before it reads a
body. A caller shows a key (`Authorization: Bearer KEY` or `x-api-key`), or a client certificate
whose name the transport has verified, or nothing. The key's SHA-256 is looked up, so what a lookup
takes says nothing about the keys of others, and a wrong key costs what a valid one does. Every
refusal of a credential is the same sentence: it does not say whether the key, the route or the
model exists. A request is admitted for the scope of its route; `confirm` asks again later, because
a stream may last for longer than its key.

With nothing configured and on loopback there is no gate, and the fronts test one attribute.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from service.access.keys import (
    SCOPES,
    Key,
    Keyring,
    KeysError,
    KeysFile,
    Scope,
    SharedKeys,
    Signature,
)
from service.access.limits import Limits
from service.core.errors import Forbidden, ServiceError, Unauthenticated, excerpt
from service.settings import Settings

log = logging.getLogger(__name__)

# What a request needs: a scope; `any` credential, where no route matches; or None, if it is open.
Need = Scope | Literal["any"] | None
_LONGEST = 512  # characters of a credential; a longer one is not hashed
_POLL_S = 1.0  # between two looks at the file of keys
_NO_STATE = Signature(0, 0, 0, 0)  # of no file


class Identity(NamedTuple):
    """Who makes a request. `caller` is its name for fairness and limits (see core.callers)."""

    caller: str
    scopes: frozenset[Scope]
    key: Key | None = None  # None for an anonymous caller

    def require(self, need: Need) -> None:
        """Raise Forbidden unless the caller may do what needs this scope."""
        if need is None or need == "any" or need in self.scopes:
            return
        if self.key is not None:
            raise Forbidden(
                f"This needs the scope {need}, which the key or certificate does not have."
            )
        raise Forbidden(
            f"This is not allowed without a key that has the scope {need}; the operator can give "
            "out keys (mnist-keys, keys_file), or allow it to everyone (anonymous_scopes)."
        )


class Gate:
    """Decides who may call, in one worker. Lives on its event loop.

    `anonymous` are the scopes of callers that show nothing. Without `keys`, credentials are not
    looked at. `count` is called with the kind of each refusal; `clock` returns seconds since 1970.
    `limits` are those of requests; what is open to everyone is not limited.
    """

    def __init__(
        self,
        anonymous: frozenset[Scope],
        keys: Keyring | None = None,
        count: Callable[[str], None] = lambda kind: None,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
    ) -> None:
        self.keys = keys  # by the setter
        self._limits = limits
        self._anonymous = anonymous
        self._count = count
        self._clock = clock

    def admit(
        self,
        need: Need,
        authorization: Sequence[str],
        api_keys: Sequence[str],
        caller: str,
        certificate: str = "",
        *,
        is_limited: bool = True,
    ) -> Identity:
        """Who makes a request, by the values of its headers `authorization` and `x-api-key`.

        `caller` is the address, and `certificate` the verified name of the client's certificate.
        Raises Unauthenticated, Forbidden, TooManyRequests.
        """
        try:
            identity = None
            if need is not None and self._keys is not None:
                identity = self._identity(authorization, api_keys, certificate)
            if identity is None:
                identity = Identity(caller, self._anonymous)
                if self._keys is not None and not (
                    need is None or need in self._anonymous or (need == "any" and self._anonymous)
                ):
                    raise Unauthenticated.of("missing")
            if need is not None and need not in identity.scopes:
                identity.require(need)
        except ServiceError as error:
            self._count(error.kind if isinstance(error, Unauthenticated) else "scope")
            raise
        if self._limits is not None and need is not None and is_limited:
            self._limits.request(identity.caller)
        return identity

    @property
    def keys(self) -> Keyring | None:
        """Whose keys are valid; None if keys are not looked at."""
        return self._keys

    @keys.setter
    def keys(self, keys: Keyring | None) -> None:
        # Made once, not per request, and before any of it counts: this runs in a thread, and a
        # request in between must find the old keys or the new ones.
        by_digest: dict[bytes, Identity] = {}
        by_certificate: dict[str, Identity] = {}
        if keys is not None:
            by_digest = {d: _identity_of(key) for d, key in keys.by_digest.items()}
            by_certificate = {n: _identity_of(key) for n, key in keys.by_certificate.items()}
        self._keys, self._by_digest, self._by_certificate = keys, by_digest, by_certificate

    def admit_message(self, identity: Identity) -> None:
        """Count a message of a stream, after the first. Raises TooManyRequests."""
        if self._limits is not None:
            self._limits.request(identity.caller)

    def confirm(self, identity: Identity) -> None:
        """Raise Unauthenticated if the key of an admitted caller has expired or is revoked."""
        key = identity.key
        if key is None or self._keys is None:
            return
        if not self._keys.has(key):
            raise Unauthenticated.of("unknown")
        if key.expires is not None and key.expires <= self._clock():
            raise Unauthenticated.of("expired")

    def _identity(
        self, authorization: Sequence[str], api_keys: Sequence[str], certificate: str
    ) -> Identity | None:
        """Whose key or certificate this is; None if none is shown. Raises Unauthenticated.

        A certificate without an entry counts as none: only the key is a claim to be somebody.
        """
        digest = None
        if not authorization and not api_keys:
            identity = self._by_certificate.get(certificate)
            if identity is None:
                return None
        else:
            if len(authorization) + len(api_keys) > 1:  # which of them counts would be a guess
                raise Unauthenticated.of("malformed")
            if api_keys:
                sent = api_keys[0]
            else:
                scheme, _, sent = authorization[0].partition(" ")
                if scheme.lower() != "bearer":
                    raise Unauthenticated.of("malformed")
                sent = sent.strip(" ")
            if not sent or len(sent) > _LONGEST or not sent.isascii():
                raise Unauthenticated.of("malformed")
            digest = sha256(sent.encode()).digest()
            identity = self._by_digest.get(digest)
            if identity is None:
                raise Unauthenticated.of("unknown")
        key = identity.key
        assert key is not None
        if digest is not None and not hmac.compare_digest(key.digest, digest):
            raise Unauthenticated.of("unknown")
        if key.expires is not None and key.expires <= self._clock():
            raise Unauthenticated.of("expired")
        return identity


def _identity_of(key: Key) -> Identity:
    return Identity(f"key {key.name}", key.scopes, key)


def gate_of(
    settings: Settings,
    count: Callable[[str], None] = lambda kind: None,
    limits: Limits | None = None,
) -> Gate | None:
    """The gate that the settings ask for, without keys yet; None if all may do everything."""
    anonymous = settings.anonymous
    if not settings.keys_file and anonymous == frozenset(SCOPES) and limits is None:
        return None
    return Gate(anonymous, Keyring() if settings.keys_file else None, count, limits=limits)


class KeysWatch:
    """Keeps the keys of a gate as the file says.

    Strategy: the file is read once it has not changed for a second, so that one that is written
    bit by bit is read whole. One that cannot be used changes nothing, however long it stays so.
    `folder` belongs to the workers of the server: each keeps there what it has read, and a worker
    that starts takes over what is there. One of them says in the log what has changed.
    """

    def __init__(self, gate: Gate, path: Path, folder: Path | None = None) -> None:
        self._gate = gate
        self._file = KeysFile(path)
        self._shared = SharedKeys(folder) if folder else None
        self._seen: Signature | None = _NO_STATE
        self._exposure = self._file.exposure  # the supervisor has said this one
        self.following: asyncio.Task[None] | None = None  # so that it is not collected

    def start(self) -> None:
        """Take over the keys of the other workers, else those of the file. Raises KeysError."""
        keys = self._shared.read() if self._shared else None
        if keys is None:
            self.load()
        else:
            self._gate.keys = Keyring(keys)

    def load(self) -> str:
        """Take over the keys of the file, and return what that changes.

        Raises KeysError, and changes nothing.
        """
        keys, signature = self._file.load()
        changes = _changes(self._gate.keys or Keyring(), keys)
        self._gate.keys = Keyring(keys)
        self._seen = signature
        if self._shared:
            self._shared.write(keys)
        return changes

    async def follow(self) -> None:
        """Look for changes from now on. A file that cannot be used is logged once, and tried on."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "keys")  # its own: requests may keep the others busy
        problem = ""
        changing: Signature | None = _NO_STATE
        while True:
            await asyncio.sleep(_POLL_S)
            signature = await loop.run_in_executor(thread, self._file.signature)
            if signature == self._seen or signature != changing:
                changing = signature  # it may still be written
                continue
            try:
                changes = await loop.run_in_executor(thread, self.load)
            except KeysError as error:
                if problem != str(error):
                    problem = str(error)
                    if await loop.run_in_executor(thread, self._is_news, f"{signature} {problem}"):
                        log.error("%s The keys from before stay in force.", problem)
                continue
            problem = ""
            if await loop.run_in_executor(thread, self._is_news, f"{self._seen}"):
                if changes:
                    log.info("The file of keys has changed, and counts from now on: %s.", changes)
                exposure = await loop.run_in_executor(thread, lambda: self._file.exposure)
                if exposure and exposure != self._exposure:
                    log.warning("%s", exposure)
                self._exposure = exposure

    def _is_news(self, text: str) -> bool:
        return self._shared is None or self._shared.is_news(text)


def _changes(before: Keyring, after: Sequence[Key]) -> str:
    """Which entries are added, changed and removed, by their names; empty if none is."""
    old = {key.name: key for key in before}
    new = {key.name: key for key in after}
    changes = (
        ("added", [name for name in new if name not in old]),
        ("changed", [name for name in new if name in old and new[name] != old[name]]),
        ("removed", [name for name in old if name not in new]),
    )
    return "; ".join(
        f"{len(names)} {what} ({excerpt(', '.join(names))})" for what, names in changes if names
    )
