"""`mnist-serve FILE.onnx` and `mnist-serve FOLDER`: a model as an exporter leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Server
from tests.e2e.onnx_models import external_model


def products(server: Server) -> Any:
    """What the model makes of 1 and 2."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    body = json.dumps({"inputs": [tensor]}).encode()
    status, answer = server.post("/v2/models/net/infer", body, "application/json")
    assert status == 200
    return answer["outputs"][0]["data"]


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "folder"])
def test_a_bare_file_is_served_and_its_weights_are_followed(
    start_server: Callable[..., Server], tmp_path: Path, is_file: bool
) -> None:
    file, weights = tmp_path / "net.onnx", tmp_path / "net.onnx.data"
    external_model(file, weights.name)
    weights.write_bytes(np.float32(3).tobytes())
    server = start_server(arguments=[str(file if is_file else tmp_path)], poll_interval=0.1)
    assert products(server) == [3, 6]
    replacement = tmp_path / "new"
    replacement.write_bytes(np.float32(5).tobytes())
    replacement.rename(weights)
    server.wait_until(lambda: products(server) == [5, 10])
    index = json.loads(server.request("POST", "/v2/repository/index", b"{}")[1])
    assert [(each["name"], each["version"], each["state"]) for each in index] == [
        ("net", "1", "READY")
    ]
