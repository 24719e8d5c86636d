"""mnist-predict against a real server: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mnist_client.command.main import main
from PIL import Image

from tests.conftest import ROOT, Server, free_ports

SEVEN = str(ROOT / "docs" / "seven.png")


@pytest.fixture(params=["http", "grpc"])
def address(request: pytest.FixtureRequest, server: Server) -> list[str]:
    """The options that lead to the server over one of the transports."""
    if request.param == "grpc":
        return ["--grpc", "--address", server.grpc]
    return ["--address", server.http]


def test_the_digit_and_its_distribution_are_shown(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SEVEN, *address]) == 0
    shown = capsys.readouterr().out
    assert f"over {'gRPC' if '--grpc' in address else 'HTTP'}" in shown
    assert "It is a 7" in shown
    assert "(mnist version " in shown


def test_json_is_one_object_per_line_and_file(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SEVEN, SEVEN, "--json", *address]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(answer["file"], answer["digit"]) for answer in answers] == [(SEVEN, 7)] * 2
    assert len(answers[0]["probabilities"]) == 10
    assert sum(answers[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert 0 <= answers[0]["entropy_bits"] < 0.01


def test_a_jpeg_is_sent_as_such(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(SEVEN).convert("L").resize((280, 280)).save(tmp_path / "seven.jpg", quality=95)
    assert main([str(tmp_path / "seven.jpg"), "--json", "--address", server.http]) == 0
    assert json.loads(capsys.readouterr().out)["digit"] == 7


@pytest.mark.parametrize("kind", ["webp", "bmp", "gif"])
def test_other_formats_are_sent_as_such(
    address: list[str], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(SEVEN).save(
        tmp_path / f"seven.{kind}", **({"lossless": True} if kind == "webp" else {})
    )
    assert main([str(tmp_path / f"seven.{kind}"), "--json", *address]) == 0
    assert json.loads(capsys.readouterr().out)["digit"] == 7


def test_a_blank_picture_is_not_accepted_in_plain_words(
    address: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (100, 100), 255).save(tmp_path / "blank.png")
    assert main([str(tmp_path / "blank.png"), *address]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Not accepted: it is blank. No ink was found" in shown
    assert "It is a" not in shown
    assert main([str(tmp_path / "blank.png"), "--json", *address]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["accepted"], answer["reason"]) == (False, "blank")
    assert answer["hint"]


def test_a_bad_file_is_named_and_the_others_are_predicted(
    address: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("seven")
    shutil.copy(SEVEN, "seven.png")
    assert main(["notes.txt", "missing.png", "seven.png", "--json", *address]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "notes.txt: this is not a PNG, JPEG, WebP, BMP or GIF image.",
        "missing.png: cannot be read: No such file or directory.",
    ]
    assert json.loads(captured.out)["digit"] == 7


def test_the_servers_own_sentence_is_passed_on(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SEVEN, "--model", "letters", *address]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "The server says:" in error
    assert "letters" in error


@pytest.mark.parametrize("transport", [[], ["--grpc"]], ids=["http", "grpc"])
def test_a_server_that_does_not_answer_is_named_with_the_next_step(
    transport: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    assert main([SEVEN, "--address", address, "--timeout", "5", *transport]) == 3
    error = " ".join(capsys.readouterr().err.split())
    assert f"answer from {address}" in error
    assert "Start a server with mnist-serve, or name another with --address." in error


def test_numbers_are_read_and_their_boxes_saved(
    address: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seven = Image.open(SEVEN).convert("L").resize((112, 112))
    page = Image.new("L", (260, 120))
    page.paste(seven, (0, 4))
    page.paste(seven, (140, 4))
    page.save(tmp_path / "page.png")
    out = tmp_path / "boxes.png"
    assert main([str(tmp_path / "page.png"), "--read", "--out", str(out), *address]) == 0
    assert capsys.readouterr().out == "77\n"
    boxes = Image.open(out)
    assert (boxes.size, boxes.mode) == ((260, 120), "RGB")
    assert (0, 140, 60) in {colour for _, colour in boxes.getcolors(100_000) or []}

    assert main([str(tmp_path / "page.png"), "--read", "--json", *address]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], [digit["digit"] for digit in answer["digits"]]) == ("77", [7, 7])
    assert main([str(tmp_path / "page.png"), "--read", *address]) == 0
    shown = capsys.readouterr().out
    assert "▀" in shown
    assert shown.endswith("77\n")


def test_out_needs_read_and_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--out", "x.png"], [SEVEN, "--read", "--out", "x.png"]):
        assert main([SEVEN, *options]) == 2
        assert "--out needs --read and one file." in capsys.readouterr().err
