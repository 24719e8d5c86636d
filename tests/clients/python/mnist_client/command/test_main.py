"""mnist-predict against a real server: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mnist_client.command.main import main, parser
from mnist_client.command.output import Progress
from PIL import Image

from tests.clients.python.scripted import Reply, http
from tests.conftest import ROOT, Mnist, Server, free_ports

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


def test_a_folder_is_shown_as_a_table(
    address: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        shutil.copy(SEVEN, tmp_path / f"{index}.png")
    assert main([str(tmp_path), *address]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "file"
    assert [line.split() for line in lines] == [
        ["7", "99.998%", "yes", str(tmp_path / f"{index}.png")] for index in range(3)
    ]


def test_pixels_of_many_images_are_predicted(
    address: list[str], mnist: Mnist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.raw").write_bytes(mnist.images[:100].tobytes())
    assert main([str(tmp_path / "test.raw"), "--json", "--batch-size", "30", *address]) == 0
    digits = [json.loads(line)["digit"] for line in capsys.readouterr().out.splitlines()]
    assert (np.array(digits) == mnist.labels[:100]).sum() >= 98


def test_names_come_from_a_list(
    address: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names").write_text(f"{SEVEN}\nmissing.png\n{SEVEN}\n")
    assert main(["--names-from", str(tmp_path / "names"), "--format", "csv", *address]) == 1
    captured = capsys.readouterr()
    assert [row["digit"] for row in csv.DictReader(captured.out.splitlines())] == ["7", "7"]
    assert captured.err == "missing.png: cannot be read: No such file or directory.\n"


def test_strict_makes_a_status_of_what_is_not_accepted(
    address: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = str(tmp_path / "blank.png")
    Image.new("L", (100, 100), 255).save(blank)
    assert main([SEVEN, "--strict", *address]) == 0
    assert main([SEVEN, blank, *address]) == 0
    assert main([SEVEN, blank, "--strict", *address]) == 4
    assert main([blank, "--strict", "--read", *address]) == 4
    assert main([blank, "missing.png", "--strict", *address]) == 1
    assert "no: blank" in capsys.readouterr().out


def test_what_would_be_wrong_for_every_picture_is_said_once(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SEVEN] * 5 + ["--model", "letters", *address]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"{SEVEN}: The server says:")


def test_a_server_that_is_gone_is_asked_about_one_picture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (port,) = free_ports(1)
    options = ["--address", f"127.0.0.1:{port}", "--attempts", "1"]
    assert main([SEVEN] * 50 + options) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "name a picture, a folder, a pattern or - for stdin"),
        ([SEVEN, "--address", "ftp://x:1"], "is not an address"),
        ([SEVEN, "--grpc", "--address", "http://x:1"], "name two protocols"),
        ([SEVEN, "--ca-file", "ca.pem"], "needs an https:// or grpcs:// address"),
        ([SEVEN, "--address", "https://x", "--certificate-key", "k"], "needs --certificate"),
        ([SEVEN, "--address", "https://x", "--ca-file", "missing.pem"], "cannot be used: No such"),
        ([SEVEN, "--key-file", "missing"], "missing cannot be used: No such file"),
        (["--names-from", "missing"], "missing cannot be read: No such file"),
    ],
)
def test_wrong_usage_has_status_2_and_a_sentence(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mnist-predict: ")
    assert problem in error


@pytest.mark.parametrize(
    "options", [["--timeout", "0"], ["--batch-size", "x"], ["--format", "xml"], ["--json5"]]
)
def test_values_that_make_no_sense_have_status_2(options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([SEVEN, *options])
    assert caught.value.code == 2


def test_the_key_is_read_from_its_file_and_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with http(Reply()) as server:
        assert main([SEVEN, "--address", server.address, "--key-file", str(tmp_path / "key")]) == 0
    assert server.asked[0].headers["authorization"] == "Bearer secret"


def command(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_client.command.main", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_reader_that_leaves_ends_it_with_the_status_of_a_closed_pipe(server: Server) -> None:
    process = command("-", "--json", "--address", server.http)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.write(bytes(784 * 50))
    process.stdin.close()
    assert process.wait() == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_ctrl_c_ends_it_at_once_whatever_it_waits_for() -> None:
    with http(Reply(delay=30.0)) as server:
        process = command(SEVEN, "--address", server.address, "--timeout", "60")
        while not server.asked:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_streams_that_the_shell_has_closed_are_no_traceback(server: Server) -> None:
    command = f"{sys.executable} -m mnist_client.command.main --address {server.http} {SEVEN}"
    options: dict[str, Any] = {"shell": True, "capture_output": True, "text": True}
    ended = subprocess.run(f"{command} >&-", check=False, **options)
    assert ended.returncode == 1
    assert ended.stderr == "mnist-predict: the answers cannot be written: stdout is closed.\n"
    ended = subprocess.run(f"{command} missing 2>&-", check=False, **options)
    assert (ended.returncode, "seven.png" in ended.stdout) == (1, True)
    assert "missing" not in ended.stdout


def test_what_a_server_says_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with http(Reply(400, b'{"error":"\\u001b]0;title\\u0007 \\ud800"}')) as stranger:
        assert main([SEVEN, "--address", stranger.address]) == 1
    shown = capsys.readouterr().err
    assert "\\x1b]0;title\\x07 \\ud800" in shown
    assert "\x1b" not in shown
    (tmp_path / "key").write_bytes(b"secret\xff")
    assert main([SEVEN, "--key-file", str(tmp_path / "key")]) == 2
    shown = capsys.readouterr().err
    assert "is not a text file" in shown
    assert "xff" not in shown


def test_help_has_groups_a_usage_of_one_line_and_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = parser().format_help()
    assert parser().format_usage() == "usage: mnist-predict [options] PICTURE [PICTURE ...]\n"
    for group in ("pictures:", "server:", "output:", "limits:", "exit status:", "examples:"):
        assert f"\n{group}\n" in shown
    assert "options:\n" not in shown  # argparse's own, for what is in no group
    assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_the_examples_of_the_help_run(server: Server, tmp_path: Path) -> None:
    examples = parser().format_help().partition("examples:\n")[2].splitlines()
    assert len(examples) == 4
    for folder in ("docs", "scans", "more/deep"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(SEVEN, tmp_path / folder)
    Image.open(SEVEN).save(tmp_path / "page.jpg")
    for example in examples:
        port = server.grpc if "--grpc" in example else server.http
        line = example.replace("mnist-predict", f"mnist-predict --address {port}")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "7" in done.stdout
    assert (tmp_path / "boxes.png").exists()


def test_a_mistyped_flag_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, end in (
        ("--fromat=csv", "unrecognized arguments: --fromat=csv; did you mean --format?"),
        ("--jsn", "unrecognized arguments: --jsn; did you mean --json?"),
        ("--xyzzy", "unrecognized arguments: --xyzzy"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([SEVEN, flag])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.strip().endswith(end)


def test_files_of_many_images_have_no_total(
    address: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int | None] = []

    def progress(total: int | None) -> Progress:
        totals.append(total)
        return Progress(total)

    monkeypatch.setattr("mnist_client.command.main.Progress", progress)
    (tmp_path / "many.raw").write_bytes(bytes(5 * 784))
    for names in ([SEVEN, SEVEN], [SEVEN, str(tmp_path / "many.raw")]):
        assert main([*names, "--json", *address]) == 0
    assert totals == [2, None]


@pytest.mark.parametrize(
    ("scheme", "words"),
    [("grpc", "The port answers HTTP, not gRPC;"), ("https", "The port does not speak TLS;")],
)
def test_another_protocol_on_the_port_is_said_and_there_is_no_table_of_nothing(
    server: Server, capsys: pytest.CaptureFixture[str], scheme: str, words: str
) -> None:
    assert main([SEVEN, SEVEN, "--attempts=1", "--address", f"{scheme}://{server.http}"]) != 0
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Start a server" not in captured.err
    assert captured.out == ""
