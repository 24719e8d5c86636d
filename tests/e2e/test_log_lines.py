"""The log of a real server under hostile requests: every line is one of its own, and printable."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from onnx import TensorProto, helper

from tests.conftest import ROOT, SHIPPED_MODELS, Server
from tests.e2e.onnx_models import publish

FORGED = "a\n12:00:00 ERROR   forged\r\x1b[2J\x9b31m\u2028\u2029\u202e"
TEXT_LINE = re.compile(r"\d\d:\d\d:\d\d (INFO   |WARNING|ERROR  ) \S.*")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, and `pick`, whose run fails if its index is out of range."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(SHIPPED_MODELS / "mnist", root / "mnist")
    publish(
        root,
        "pick",
        [helper.make_node("Gather", ["x", "i"], ["y"])],
        [("x", TensorProto.FLOAT, [4]), ("i", TensorProto.INT64, [1])],
        [("y", TensorProto.FLOAT, [1])],
    )
    return root


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_request_forges_a_line(
    start_server: Callable[..., Server], models: Path, log_format: str
) -> None:
    server = start_server(models, log_format=log_format)
    before = len(server.log.read_text().splitlines())

    assert server.get(f"/v2/models/{quote(FORGED)}")[0] == 404
    assert (
        server.post("/v2/logging", json.dumps({FORGED: 1}).encode(), "application/json")[0] == 400
    )
    server.request("POST", "/predict", b"x", {"content-type": "text/\x9b31m"})
    # Pillow warns of an animation without frames (chunk acTL, behind the header of 33 bytes).
    png = (ROOT / "docs" / "seven.png").read_bytes()
    frames = b"acTL" + bytes(8)
    chunk = struct.pack(">I", 8) + frames + struct.pack(">I", zlib.crc32(frames))
    assert server.post("/predict", png[:33] + chunk + png[33:], "image/png")[0] == 200
    # ONNX Runtime reports the error of this run, and so does the server.
    tensors = [
        {"name": "x", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]},
        {"name": "i", "datatype": "INT64", "shape": [1], "data": [9]},
    ]
    body = json.dumps({"inputs": tensors}).encode()
    assert server.post("/v2/models/pick/infer", body, "application/json")[0] == 500

    assert server.stop() == 0
    # splitlines() splits at every line separator of Unicode, as an editor may.
    lines = server.log.read_text().splitlines()[before:]
    assert lines == server.log.read_text().removesuffix("\n").split("\n")[before:]
    assert all(line.isprintable() for line in lines)
    for line in lines:
        if log_format == "json":
            assert json.loads(line)["time"]
        else:
            assert TEXT_LINE.fullmatch(line), line
    assert not any(line.startswith("12:00:00") for line in lines)
    for sentence in ("UserWarning: Invalid APNG", "out of data bounds"):
        assert sum(sentence in line for line in lines) == 1
