"""The documents against the code: nothing is left out, links lead somewhere, examples run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from service.core.errors import ServiceError
from service.http.routes import ROUTES
from service.stubs.digits.v1 import digits_pb2
from tests.conftest import ROOT, Mnist, Server

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
PICTURES = (ROOT / "docs" / "pictures.md").read_text()


def test_every_http_endpoint_is_documented() -> None:
    # `/x[/y]/z` stands for `/x/z` and `/x/y/z`.
    documented = {
        path.replace("{m}", "<model>")
        .replace("{v}", "<version>")
        .replace("{r}", "<region>")
        .replace("{file}", "<file>")
        for whole in re.findall(r"`((?:GET|POST) /[^` ]*)", PROTOCOL + API)
        for path in (re.sub(r"\[[^]]*\]", "", whole), whole.replace("[", "").replace("]", ""))
    }
    served = {f"{route.method} {route.path}" for route in ROUTES if route.path != "/"}
    assert served - documented == set()


def test_every_grpc_method_is_documented() -> None:
    proto = (ROOT / "proto" / "inference" / "inference.proto").read_text()
    methods = re.findall(r"rpc (\w+)\(", proto)
    assert len(methods) == 20
    assert [method for method in methods if f"`{method}`" not in PROTOCOL] == []
    for service in digits_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            assert f"{service.name}/{method.name}" in API


def test_every_error_code_is_documented() -> None:
    table = API.split("## Errors")[1]
    codes = [
        (status.strip(), grpc_codes)
        for _, _, status, grpc_codes, _ in (
            line.split("|") for line in table.splitlines() if line.startswith("| ")
        )
    ]
    kinds = [ServiceError]  # grows by the subclasses of each while it is read
    for kind in kinds:
        kinds += kind.__subclasses__()
        # A row without a gRPC code is about HTTP alone.
        assert any(
            status == str(kind.http_status) and (f"`{kind.grpc_code}`" in code or not code.strip())
            for status, code in codes
        ), kind


def test_every_metric_is_documented() -> None:
    source = (ROOT / "service" / "observe" / "metrics.py").read_text()
    names = set(re.findall(r'"(mnist_[a-z_]+)"', source))
    assert names
    assert names == set(re.findall(r"^\| `(mnist_[a-z_]+)`", API, re.MULTILINE))


def test_links_between_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert len(documents) > 40
    broken = []
    for document in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            path, _, anchor = target.partition("#")
            linked = document.parent / path if path else document
            # A code host serves the state of a workflow two levels above the file that it shows.
            if "://" in target or target.startswith("../../actions/"):
                continue
            if linked.exists() and (not anchor or anchor in anchors(linked)):
                continue
            broken.append(f"{document.name}: {target}")
    assert broken == []


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_protocol_page_has_no_open_items() -> None:
    assert "to do" not in PROTOCOL.lower()
    rows = [line for line in PROTOCOL.splitlines() if line.startswith("| ")]
    assert len(rows) > 50


def test_the_examples_run_as_written(server: Server, mnist: Mnist, tmp_path: Path) -> None:
    def here(text: str) -> str:
        return text.replace("127.0.0.1:8000", server.http)

    (snippet,) = re.findall(r"```python\n(.*?)```", API, re.DOTALL)
    example = subprocess.run(
        [sys.executable, "-c", here(snippet)], capture_output=True, text=True, check=True
    )
    assert example.stdout.startswith("[[")
    (tmp_path / "digits.raw").write_bytes(mnist.images[:2].tobytes())
    (command,) = re.findall(r"```sh\n(.*?)```", PROTOCOL, re.DOTALL)
    assert shutil.which("curl")
    raw = subprocess.run(
        ["bash", "-c", here(command)], capture_output=True, cwd=tmp_path, check=True
    )
    assert b'"shape":[2,10]' in raw.stdout


def test_the_commands_of_the_page_on_pictures_run(server: Server, tmp_path: Path) -> None:
    calls, commands = re.findall(r"```sh\n(.*?)```", PICTURES, re.DOTALL)
    for line in calls.splitlines():
        call = line.replace("http://127.0.0.1:8000", f"http://{server.http}")
        answer = subprocess.run(["bash", "-c", call], capture_output=True, cwd=ROOT, check=True)
        assert json.loads(answer.stdout)["predictions"][0]["digit"] == 7, line
        assert ("explain" in line) == (b'"steps"' in answer.stdout)

    figures = set()
    for line in commands.splitlines():
        command = line.partition("#")[0].replace(".venv/bin/python", sys.executable)
        if "--sheet" in command:
            sheet = tmp_path / "sheet.png"
            subprocess.run(
                shlex.split(command.replace("docs/pictures.png", str(sheet))), check=True
            )
            assert sheet.stat().st_size > 10_000
        else:
            # Of the runs for all figures, each is tried with few pictures.
            command = command.replace("--quick", "").replace("DIR", "models/mnist/1").strip()
            figures.add(f"{command} --quick --results {tmp_path}")
    assert len(figures) == 2
    for command in figures:
        run = subprocess.run(
            shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert re.search(r"\d+ of \d+ bars hold\.", run.stdout)
