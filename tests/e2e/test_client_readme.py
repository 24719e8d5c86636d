"""Runs every snippet and command of the client's README, and of its section in docs/api.md."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from mnist_client.command.main import parser

from tests.clients.python.certificates import Certificates
from tests.clients.python.scripted import Reply, http
from tests.conftest import ROOT, Server

README = (ROOT / "clients" / "python" / "README.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
INSTALL, COMMANDS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PRINTED = [
    r"7 True 0\.99\d+\n",
    r"7 \[Box\(left=\d+, top=\d+, right=\d+, bottom=\d+\)\]\n",
    "1000 0\n",
    "7\n7\n7\n",
    "7\n",
    "7\n",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "seven.png", tmp_path / "docs")
    return tmp_path


def run(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_snippet_prints_what_it_should(server: Server, folder: Path) -> None:
    certificates = Certificates(folder)  # writes the files that the snippet names
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca_file)
    context.load_cert_chain(*certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED
    with http(Reply(), tls=context) as secure:
        for snippet, printed in zip(SNIPPETS, PRINTED, strict=True):
            code = (
                snippet.replace("127.0.0.1:8000", server.http)
                .replace("127.0.0.1:8001", server.grpc)
                .replace("https://127.0.0.1:8443", secure.address)
            )
            assert re.fullmatch(printed, run(folder, sys.executable, "-c", code)), snippet
    assert secure.asked[0].headers["authorization"] == "Bearer the key"


def test_the_snippet_of_the_api_runs(server: Server, folder: Path) -> None:
    (snippet,) = re.findall(r"^```py\n(.*?)^```", API, re.MULTILINE | re.DOTALL)
    code = snippet.replace("127.0.0.1:8000", server.http)
    assert run(folder, sys.executable, "-c", code) == "7\n7\n"


def test_every_command_runs(server: Server, folder: Path) -> None:
    for command in COMMANDS.splitlines():
        line = command.replace("mnist-predict", f"mnist-predict --address {server.http}")
        assert "7" in run(folder, "bash", "-ec", line), command
    assert (folder / "boxes.png").exists()


def test_the_extras_are_those_of_the_project() -> None:
    project = (ROOT / "clients" / "python" / "pyproject.toml").read_text()
    (extras,) = re.findall(r"^pip install 'mnist-client\[(.*)\]'$", INSTALL, re.MULTILINE)
    for extra in extras.split(","):
        assert f"\n{extra} = [" in project


def test_the_statuses_are_those_of_the_help() -> None:
    documented = re.findall(r"^\| (\d) \| (.*) \|$", README, re.MULTILINE)
    helped = re.findall(r"^  (\d)  (.*)$", parser().format_help(), re.MULTILINE)
    assert [(code, text.replace("`", "")) for code, text in documented] == helped
