"""What the documents say of the protocol: that nothing is left out, and that examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from service.http.routes import ROUTES
from service.stubs.digits.v1 import digits_pb2
from tests.conftest import ROOT, Mnist, Server

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()


def test_every_http_endpoint_is_documented() -> None:
    # `/x[/y]/z` stands for `/x/z` and `/x/y/z`.
    said = {
        path.replace("{m}", "<model>").replace("{v}", "<version>").replace("{r}", "<region>")
        for whole in re.findall(r"`((?:GET|POST) /[^` ]*)", PROTOCOL + API)
        for path in (re.sub(r"\[[^]]*\]", "", whole), whole.replace("[", "").replace("]", ""))
    }
    served = {f"{route.method} {route.path}" for route in ROUTES if route.path != "/"}
    assert served - said == set()


def test_every_grpc_method_is_documented() -> None:
    proto = (ROOT / "proto" / "inference" / "inference.proto").read_text()
    methods = re.findall(r"rpc (\w+)\(", proto)
    assert len(methods) == 20
    assert [method for method in methods if f"`{method}`" not in PROTOCOL] == []
    for service in digits_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            assert f"{service.name}/{method.name}" in API


def test_nothing_of_the_protocol_is_left_to_do() -> None:
    assert "to do" not in PROTOCOL.lower()
    rows = [line for line in PROTOCOL.splitlines() if line.startswith("| ")]
    assert len(rows) > 50


def test_the_examples_run_as_they_are_written(server: Server, mnist: Mnist, tmp_path: Path) -> None:
    def here(text: str) -> str:
        return text.replace("127.0.0.1:8000", server.http)

    (snippet,) = re.findall(r"```python\n(.*?)```", API, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", here(snippet)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("[[")
    (tmp_path / "digits.raw").write_bytes(mnist.images[:2].tobytes())
    (command,) = re.findall(r"```sh\n(.*?)```", PROTOCOL, re.DOTALL)
    assert shutil.which("curl")
    shown = subprocess.run(
        ["bash", "-c", here(command)], capture_output=True, cwd=tmp_path, check=True
    )
    assert b'"shape":[2,10]' in shown.stdout
