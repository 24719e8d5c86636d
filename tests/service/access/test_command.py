"""mnist-keys, as a person uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.access.command import main
from service.access.keys import KeysFile, digest_of


def test_a_key_is_shown_once_and_its_digest_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    arguments = ["add", "alice", "--file", str(path), "--scopes", "read,predict"]
    assert main([*arguments, "--expires", "9000-01-31"]) == 0
    secret = capsys.readouterr().out.strip()
    (key,) = KeysFile(path).read()
    assert key.digest == digest_of(secret)
    assert secret not in path.read_text()
    assert main(["list", "--file", str(path)]) == 0
    listed = capsys.readouterr().out
    assert "alice  predict,read  9000-01-31T00:00:00Z" in listed
    assert key.digest.hex()[:12] in listed
    assert key.digest.hex() not in listed
    assert secret not in listed


def test_a_revoked_entry_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    for name in ("alice", "bob"):
        assert main(["add", name, "--file", str(path)]) == 0
    assert main(["revoke", "alice", "--file", str(path)]) == 0
    assert [key.name for key in KeysFile(path).read()] == ["bob"]
    assert main(["revoke", "alice", "--file", str(path)]) == 1
    assert "has no entry 'alice'" in capsys.readouterr().err


def test_a_certificate_gets_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    name = "spiffe://example.org/gateway"
    assert main(["add", "gateway", "--certificate", name, "--file", str(path)]) == 0
    assert capsys.readouterr().out == ""
    (key,) = KeysFile(path).read()
    assert key.certificate == name
    assert main(["add", "other", "--certificate", name, "--file", str(path)]) == 1
    assert "gateway has this certificate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "a b"], "no name"),
        (["add", "alice", "--scopes", "all"], "no scope"),
        (["add", "alice", "--expires", "soon"], "no time"),
        (["add", "alice", "--expires", "2001-01-01"], "has passed"),
        (["add", "alice", "--certificate", "a b"], "no name of a certificate"),
        (["add", "taken"], "revoke it first"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    path = tmp_path / "keys"
    main(["add", "taken", "--file", str(path)])
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*arguments, "--file", str(path)]) == 1
    output, problem = capsys.readouterr()
    assert output == ""
    assert says in problem
    assert problem.startswith("mnist-keys: ")
    assert path.read_bytes() == before


def test_a_wrong_command_line_has_the_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        ["give"],
        ["add"],
        ["revoke"],
        ["list", "alice"],
        ["revoke", "alice", "--scopes", "read"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "usage: mnist-keys" in capsys.readouterr().err
