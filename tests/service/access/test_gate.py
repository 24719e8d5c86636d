"""The gate: who may call, decided on values alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.access import gate as gate_module
from service.access.gate import Gate, Identity, KeysWatch, Need, gate_of
from service.access.keys import (
    SCOPES,
    Key,
    Keyring,
    KeysError,
    KeysFile,
    Scope,
    Signature,
    digest_of,
)
from service.core.errors import Forbidden, ServiceError, Unauthenticated
from service.settings import Settings
from tests.descriptors import free_descriptors

ALL = frozenset(SCOPES)
SECRET, ADMIN = "mnist_secret", "mnist_admin"
PREDICT: frozenset[Scope] = frozenset({"predict"})


class Clock:
    """Seconds since 1970, as the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ring(expires: float | None = None) -> Keyring:
    return Keyring(
        [
            Key("alice", PREDICT, expires, digest_of(SECRET)),
            Key("root", ALL, None, digest_of(ADMIN)),
            Key("gateway", PREDICT, None, certificate="gateway.example"),
        ]
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def gate(expires: float | None = None, anonymous: frozenset[Scope] = frozenset()) -> Gate:
    return Gate(anonymous, ring(expires), clock=Clock())


def test_a_key_is_taken_from_either_header() -> None:
    for headers in (
        ((f"Bearer {SECRET}",), ()),
        ((f"bearer  {SECRET} ",), ()),
        ((), (SECRET,)),
    ):
        identity = gate().admit("predict", *headers, "192.0.2.1")
        assert identity.caller == "key alice"
        assert identity.scopes == PREDICT


@pytest.mark.parametrize(
    ("authorization", "api_keys", "kind"),
    [
        ((), (), "missing"),
        (("",), (), "malformed"),
        (("Bearer",), (), "malformed"),
        (("Bearer ",), (), "malformed"),
        ((SECRET,), (), "malformed"),
        ((f"Basic {SECRET}",), (), "malformed"),
        ((f"Bearer {SECRET}", f"Bearer {SECRET}"), (), "malformed"),
        ((f"Bearer {SECRET}",), (SECRET,), "malformed"),
        ((), (SECRET, SECRET), "malformed"),
        ((), ("",), "malformed"),
        ((), ("schlüssel",), "malformed"),
        ((), ("k" * 513,), "malformed"),
        ((), ("k" * 512,), "unknown"),
        ((), (f"{SECRET}x",), "unknown"),
        ((), (SECRET.upper(),), "unknown"),
        ((), (digest_of(SECRET).hex(),), "unknown"),
    ],
)
@pytest.mark.parametrize("need", [*SCOPES, "any"])
def test_every_refused_credential_gets_the_same_sentence(
    authorization: tuple[str, ...], api_keys: tuple[str, ...], kind: str, need: Need
) -> None:
    counted: list[str] = []
    door = Gate(frozenset(), ring(), counted.append, Clock())
    with pytest.raises(Unauthenticated) as caught:
        door.admit(need, authorization, api_keys, "192.0.2.1")
    assert caught.value.message == Unauthenticated.of("missing").message
    assert caught.value.kind == kind
    assert counted == [kind]


def test_a_key_expires_to_the_second() -> None:
    clock = Clock()
    door = Gate(frozenset(), ring(expires=1001.0), clock=clock)
    identity = door.admit("predict", (), (SECRET,), "")
    door.confirm(identity)
    clock.now = 1001.0
    with pytest.raises(Unauthenticated):
        door.admit("predict", (), (SECRET,), "")
    with pytest.raises(Unauthenticated):
        door.confirm(identity)


def test_a_revoked_key_is_refused_at_once() -> None:
    door = gate()
    identity = door.admit("predict", (), (SECRET,), "")
    door.keys = Keyring()
    with pytest.raises(Unauthenticated):
        door.confirm(identity)
    with pytest.raises(Unauthenticated):
        door.admit("predict", (), (SECRET,), "")


def test_a_key_with_other_scopes_is_confirmed_no_longer() -> None:
    door = gate()
    identity = door.admit("predict", (), (SECRET,), "")
    door.keys = Keyring([Key("alice", frozenset({"read"}), None, digest_of(SECRET))])
    with pytest.raises(Unauthenticated):
        door.confirm(identity)


def test_a_key_without_the_scope_is_forbidden() -> None:
    counted: list[str] = []
    door = Gate(frozenset(), ring(), counted.append, Clock())
    with pytest.raises(Forbidden, match="needs the scope admin, which the key"):
        door.admit("admin", (), (SECRET,), "")
    assert counted == ["scope"]
    assert door.admit("admin", (), (ADMIN,), "").scopes == ALL


def test_what_is_open_needs_nothing_and_looks_at_nothing() -> None:
    assert gate().admit(None, ("nonsense",), ("more",), "192.0.2.1") == Identity(
        "192.0.2.1", frozenset()
    )


def test_a_verified_certificate_counts_as_its_entry() -> None:
    identity = gate().admit("predict", (), (), "192.0.2.1", "gateway.example")
    assert identity.caller == "key gateway"
    for certificate in ("", "other.example"):
        with pytest.raises(Unauthenticated):
            gate().admit("predict", (), (), "192.0.2.1", certificate)
    with pytest.raises(Forbidden):
        gate().admit("admin", (), (), "192.0.2.1", "gateway.example")
    # A key that is shown counts, and a wrong one is not overlooked.
    assert gate().admit("admin", (), (ADMIN,), "", "gateway.example").caller == "key root"
    with pytest.raises(Unauthenticated):
        gate().admit("predict", (), ("wrong",), "", "gateway.example")


def test_anonymous_callers_may_do_what_is_allowed_to_them() -> None:
    door = gate(anonymous=PREDICT)
    assert door.admit("predict", (), (), "192.0.2.1").caller == "192.0.2.1"
    assert door.admit("any", (), (), "192.0.2.1").key is None
    with pytest.raises(Unauthenticated):
        door.admit("read", (), (), "192.0.2.1")
    with pytest.raises(Unauthenticated):  # a wrong key is not taken for none
        door.admit("predict", (), ("wrong",), "192.0.2.1")


def test_without_keys_credentials_are_not_looked_at() -> None:
    door = Gate(ALL - {"admin"})
    assert door.admit("predict", ("Basic for-a-proxy",), (), "192.0.2.1").caller == "192.0.2.1"
    with pytest.raises(Forbidden, match="anonymous_scopes"):
        door.admit("admin", (), (), "192.0.2.1")


def test_removing_the_last_key_opens_nothing() -> None:
    door = Gate(frozenset(), Keyring())
    with pytest.raises(Unauthenticated):
        door.admit("predict", (), (), "")


@pytest.mark.parametrize(
    ("settings", "anonymous"),
    [
        (Settings(), None),
        (Settings(host="::1"), None),
        (Settings(host="0.0.0.0"), ALL - {"admin"}),
        # A proxy on this machine lets others in, with a Host of their choice.
        (Settings(trusted_proxies="127.0.0.1"), ALL - {"admin"}),
        (Settings(host="0.0.0.0", anonymous_scopes=SCOPES), None),
        (Settings(host="0.0.0.0", anonymous_scopes=("none",)), frozenset()),
        (Settings(anonymous_scopes=("predict",)), PREDICT),
        (Settings(keys_file="keys"), frozenset()),
        (Settings(keys_file="keys", anonymous_scopes=("predict",)), PREDICT),
    ],
)
def test_the_settings_say_whether_there_is_a_gate(
    settings: Settings, anonymous: frozenset[Scope] | None
) -> None:
    door = gate_of(settings)
    assert (door is None) == (anonymous is None)
    if door is not None:
        assert (door.keys is not None) == bool(settings.keys_file)
        for scope in SCOPES:
            if scope in (anonymous or ()):
                door.admit(scope, (), (), "")
            else:
                with pytest.raises(ServiceError):
                    door.admit(scope, (), (), "")


def test_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    file, door = KeysFile(path), gate()
    watch = KeysWatch(door, path)
    with pytest.raises(KeysError):
        watch.load()
    assert door.keys is not None
    assert len(door.keys) == 3
    file.change(lambda keys: [Key("bob", ALL, None, digest_of("bob's"))])
    watch.load()
    assert door.admit("admin", (), ("bob's",), "").caller == "key bob"
    path.write_text("broken\n")
    with pytest.raises(KeysError):
        watch.load()
    assert door.admit("admin", (), ("bob's",), "").caller == "key bob"


def test_a_changed_file_is_read_once_there_is_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    file, door = KeysFile(path), gate()
    watch = KeysWatch(door, path)
    file.change(lambda keys: [Key("bob", ALL, None, digest_of("bob's"))])
    watch.load()
    file.change(lambda keys: [*keys, Key("eve", ALL, None, digest_of("eve's"))])
    with free_descriptors(0), pytest.raises(KeysError, match=r"read: Too many open files\.$"):
        watch.load()
    assert door.admit("admin", (), ("bob's",), "").caller == "key bob"
    watch.load()
    assert door.admit("admin", (), ("eve's",), "").caller == "key eve"


def test_a_changed_file_is_followed_and_a_broken_one_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate_module, "_POLL_S", 0.001)
    path = tmp_path / "keys"
    caplog.set_level(logging.INFO)
    path.write_text("# none\n")
    door = Gate(frozenset(), Keyring())
    watch = KeysWatch(door, path)
    watch.load()

    def has(names: set[str]) -> bool:
        return door.keys is not None and {key.name for key in door.keys} == names

    async def main() -> None:
        following = asyncio.create_task(watch.follow())
        file = KeysFile(path)
        file.change(lambda keys: [Key("a", ALL, None, digest_of("a"))])
        await until(lambda: has({"a"}))
        path.write_text("broken")
        await until(lambda: "stay in force" in caplog.text)
        path.unlink()
        await until(lambda: "cannot be read" in caplog.text)
        await asyncio.sleep(0.05)
        assert has({"a"})
        path.write_text("")  # as at the start of being written
        await until(lambda: "it is empty" in caplog.text)
        assert has({"a"})
        path.write_text("# none\n")
        await until(lambda: "1 removed (a)" in caplog.text)
        assert has(set())
        following.cancel()

    asyncio.run(main())
    assert caplog.text.count("stay in force") == 3
    assert caplog.text.count("1 added (a)") == 1


def entry(name: str) -> Key:
    return Key(name, ALL, None, digest_of(name))


class Written(KeysFile):
    """A file to which a line is added before each look at it, for as long as there are lines."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        super().__init__(path)
        self._lines = iter(lines)

    def signature(self) -> Signature | None:
        with self.path.open("a") as file:
            file.write(next(self._lines, ""))
        return super().signature()


def test_a_file_is_not_read_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each part of it is a file of keys, and lacks keys that were valid before and after."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(gate_module, "_POLL_S", 0.001)
    path = tmp_path / "keys"
    names = [f"key{number}" for number in range(9)]
    KeysFile(path).change(lambda keys: [entry(name) for name in names[:-1]])
    door = Gate(frozenset(), Keyring())
    watch = KeysWatch(door, path)
    watch.load()
    path.write_text("")
    watch._file = Written(path, [f"{entry(name).line}\n" for name in names])

    async def main() -> None:
        following = asyncio.create_task(watch.follow())
        await until(lambda: "key8" in caplog.text)
        following.cancel()

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "The file of keys has changed, and counts from now on: 1 added (key8)."
    ]


def test_a_secret_that_kubernetes_replaces_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is a link to ..data/keys, and ..data a link that is replaced by a rename."""
    monkeypatch.setattr(gate_module, "_POLL_S", 0.001)

    def mount(version: str) -> None:
        folder = tmp_path / version
        folder.mkdir()
        KeysFile(folder / "keys").change(lambda keys: [entry(version)])
        (tmp_path / "new").symlink_to(version)
        (tmp_path / "new").rename(tmp_path / "..data")

    mount("first")
    (tmp_path / "keys").symlink_to("..data/keys")
    door = Gate(frozenset(), Keyring())
    watch = KeysWatch(door, tmp_path / "keys")
    watch.load()

    async def main() -> None:
        following = asyncio.create_task(watch.follow())
        mount("second")
        await until(lambda: door.keys is not None and {k.name for k in door.keys} == {"second"})
        following.cancel()

    asyncio.run(main())


def test_a_worker_that_starts_has_the_keys_of_the_others_whatever_the_file_is(
    tmp_path: Path,
) -> None:
    path, folder = tmp_path / "keys", tmp_path / "state"
    folder.mkdir()
    KeysFile(path).change(lambda keys: [entry("a"), entry("b")])

    def start() -> set[str]:
        door = Gate(frozenset(), Keyring())
        KeysWatch(door, path, folder).start()
        assert door.keys is not None
        return {key.name for key in door.keys}

    assert start() == {"a", "b"}  # the first one reads it
    path.write_text("broken\n")
    assert start() == {"a", "b"}
    path.write_text(f"{entry('a').line}\n")
    running = KeysWatch(Gate(frozenset(), Keyring()), path, folder)
    running.load()
    path.unlink()
    assert start() == {"a"}
    (folder / "keys").write_text("broken")
    with pytest.raises(KeysError, match="cannot be read"):
        start()


def test_one_worker_says_what_all_of_them_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(gate_module, "_POLL_S", 0.001)
    path, folder = tmp_path / "keys", tmp_path / "state"
    folder.mkdir()
    path.write_text("# none\n")
    doors = [Gate(frozenset(), Keyring()) for _ in range(3)]

    async def main() -> None:
        following = []
        for door in doors:
            watch = KeysWatch(door, path, folder)
            watch.start()
            following.append(asyncio.create_task(watch.follow()))
        path.write_text("broken\n")
        await until(lambda: "stay in force" in caplog.text)
        await asyncio.sleep(0.2)
        KeysFile(tmp_path / "new").change(lambda keys: [entry("a")])
        (tmp_path / "new").rename(path)
        await until(lambda: all(door.keys is not None and len(door.keys) == 1 for door in doors))
        await asyncio.sleep(0.2)
        for task in following:
            task.cancel()

    asyncio.run(main())
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_keys_are_exchanged_without_a_moment_in_which_none_is_valid() -> None:
    """They are exchanged in a thread, while requests come."""
    door = Gate(frozenset(), Keyring([entry("a")]))

    class Asking(dict[bytes, Key]):
        def items(self) -> Any:
            assert door.admit("read", (), ("a",), "").caller == "key a"
            return super().items()

    ring = Keyring([entry("a"), entry("b")])
    ring.by_digest = Asking(ring.by_digest)
    door.keys = ring
    assert door.admit("read", (), ("b",), "").caller == "key b"
