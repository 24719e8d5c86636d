"""The file of keys: what it may have in it, and how it is changed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.keys import (
    SCOPES,
    Key,
    Keyring,
    KeysError,
    KeysFile,
    Scope,
    check_certificate,
    check_name,
    digest_of,
    new_key,
    parse,
    read_time,
    time_text,
)

DIGEST = "0" * 63 + "1"
GOOD = f"alice predict,read 2027-01-31T00:00:00Z sha256:{DIGEST}"

_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True)
_SCOPES: st.SearchStrategy[frozenset[Scope]] = st.frozensets(st.sampled_from(SCOPES), min_size=1)
# Whole seconds until the year 9999.
_EXPIRY = st.none() | st.integers(0, 253_402_300_799).map(float)
_HOLDERS = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda digest: {"digest": digest}),
    st.from_regex(r"[!-~]{1,255}", fullmatch=True).map(lambda name: {"certificate": name}),
)
_KEYS = st.lists(
    st.builds(
        lambda name, scopes, expires, holder: Key(name, scopes, expires, **holder),
        _NAMES,
        _SCOPES,
        _EXPIRY,
        _HOLDERS,
    ),
    unique_by=(lambda key: key.name, lambda key: (key.digest, key.certificate)),
    max_size=5,
)


@given(_KEYS, st.sampled_from(["", "\n", "# a comment\n", "   \n\t# another\n"]))
def test_entries_survive_writing_and_reading(keys: list[Key], between: str) -> None:
    assert parse(between.join(f"{key.line}\n" for key in keys)) == keys


@given(st.text() | st.lists(st.sampled_from([*GOOD.split(" "), "never", "\n", "#"])).map(" ".join))
def test_any_text_is_entries_or_an_error_that_names_a_line(text: str) -> None:
    try:
        keys = parse(text)
    except KeysError as error:
        number = int(str(error).split(":")[0].removeprefix("line "))
        assert 1 <= number <= text.count("\n") + 1
    else:
        assert parse("".join(f"{key.line}\n" for key in keys)) == keys


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice predict never", "four fields"),
        (f"{GOOD} more", "four fields"),
        (f"-alice predict never sha256:{DIGEST}", "no name"),
        (f"{'a' * 65} predict never sha256:{DIGEST}", "no name"),
        (f"alice predict,all never sha256:{DIGEST}", "'all' is no scope"),
        (f"alice , never sha256:{DIGEST}", "'' is no scope"),
        (f"alice predict tomorrow sha256:{DIGEST}", "'tomorrow' is no time"),
        (f"alice predict 2027-13-01 sha256:{DIGEST}", "is no time"),
        (f"alice predict never md5:{DIGEST}", "sha256:"),
        (f"alice predict never sha256:{DIGEST[:-1]}", "64"),
        (f"alice predict never sha256:{'A' * 64}", "lower-case"),
        ("alice predict never certificate:", "no name of a certificate"),
        (f"alice predict never {new_key()}", "mnist-keys add"),
        (f"{GOOD}\n{GOOD.replace('alice', 'carol')}", "line 5: line 4 has the same key"),
        (f"{GOOD}\n{GOOD.replace(DIGEST, '2' * 64)}", "line 5: line 4 has the same name"),
    ],
)
def test_an_error_names_the_line_and_says_what_is_wrong(line: str, says: str) -> None:
    with pytest.raises(KeysError, match=r"^line [45]: ") as caught:
        parse(f"# comment\n\nbob read never certificate:bob.example\n{line}\n")
    assert says in str(caught.value)
    assert "mnist_" not in str(caught.value)


def test_keys_are_random_and_only_their_digest_is_kept() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == len("mnist_") + 43 and key.isascii() for key in keys)
    key = keys.pop()
    assert key not in Key("a", frozenset(SCOPES), None, digest_of(key)).line


@pytest.mark.parametrize("text", ["never", "2027-01-31T12:00:00Z", "1970-01-01T00:00:00Z"])
def test_a_time_is_written_as_it_was_read(text: str) -> None:
    assert time_text(read_time(text)) == text


def test_names_that_would_break_a_line_are_refused() -> None:
    for name in ("", "a b", "a\nb", "#a", "ä"):
        with pytest.raises(KeysError, match="no name"):
            check_name(name)
        with pytest.raises(KeysError, match="no name"):
            check_certificate(name if name != "#a" else "a b")


def test_a_ring_finds_entries_by_what_callers_show() -> None:
    key = Key("a", frozenset(SCOPES), None, digest_of("secret"))
    badge = Key("b", frozenset(SCOPES), None, certificate="b.example")
    ring = Keyring([key, badge])
    assert ring.by_digest[digest_of("secret")] is key
    assert ring.by_certificate["b.example"] is badge
    assert ring.has(key)
    assert ring.has(badge)
    assert not ring.has(key._replace(scopes=frozenset()))
    assert not Keyring().has(badge)


def test_changes_keep_comments_and_permissions(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{GOOD}\n# old\nbob read never certificate:bob.example\n")
    path.chmod(0o640)
    file = KeysFile(path)
    carol = Key("carol", frozenset(SCOPES), None, digest_of("secret"))
    file.change(lambda keys: [*(key for key in keys if key.name != "bob"), carol])
    assert path.read_text() == f"# ours\n\n{GOOD}\n# old\n{carol.line}\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys")
    file.change(lambda keys: keys)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.read() == []
    assert file.exposure == ""


def test_a_file_that_others_may_use_is_reported(tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys")
    file.change(lambda keys: keys)
    for mode, says in ((0o644, "read"), (0o660, "change"), (0o640, ""), (0o602, "change")):
        file.path.chmod(mode)
        assert says in file.exposure
        assert bool(says) == bool(file.exposure)


def test_a_change_that_fails_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("nonsense\n")
    with pytest.raises(KeysError, match="line 1"):
        KeysFile(path).change(lambda keys: [])
    assert path.read_text() == "nonsense\n"
    with pytest.raises(KeysError, match="cannot be written"):
        KeysFile(tmp_path / "missing" / "keys").change(lambda keys: keys)


def test_changes_at_once_all_count(tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys")

    def add(number: int) -> None:
        key = Key(f"k{number}", frozenset(SCOPES), None, digest_of(str(number)))
        file.change(lambda keys: [*keys, key])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in file.read()} == {f"k{number}" for number in range(16)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"# \xff\n", "line 1: it is not ASCII"),
        (b"\n\nx\xc3\xa4", "line 3: it is not ASCII"),
        (b"#" * (5 << 20), "larger than"),
        (b"what\n", "line 1: an entry has four fields"),
        (b"", "it is empty"),
        (
            GOOD.encode() + b"\ngateway read never certificate:gate",
            "its last line has no line feed",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(KeysError) as caught:
        KeysFile(path).read()
    assert str(caught.value).startswith(f"{path} (keys_file), ")
    assert says in str(caught.value)


def test_a_digest_cannot_be_cut_off_unseen_so_its_line_needs_no_end(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(GOOD)
    assert [key.name for key in KeysFile(path).read()] == [GOOD.split(maxsplit=1)[0]]
    path.write_text(GOOD[:-1])
    with pytest.raises(KeysError, match="line 1"):
        KeysFile(path).read()
    path.write_text(f"{GOOD}\n# certificate: a comment")
    assert len(KeysFile(path).read()) == 1


def test_what_is_no_file_is_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(KeysError, match="not a regular file"):
            KeysFile(tmp_path / name).read()


def test_the_command_fills_an_empty_file(tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys")
    file.path.touch()
    file.change(lambda keys: [*keys, Key("a", frozenset(SCOPES), None, digest_of("secret"))])
    assert [key.name for key in file.read()] == ["a"]


def test_a_missing_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys")
    assert file.signature() is None
    with pytest.raises(KeysError, match="No such file or directory; make one with mnist-keys add"):
        file.read()


def test_a_change_shows_in_the_signature(tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys")
    file.change(lambda keys: keys)
    before = file.signature()
    assert before == file.signature()
    file.change(lambda keys: keys)  # the same content, by a new file
    assert file.signature() != before
