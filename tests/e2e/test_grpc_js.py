"""A real @grpc/grpc-js client. Needs node and npm (Debian: nodejs, npm)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2 as inference

from tests.conftest import ROOT, Mnist, Server

OK, CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED = (
    0,
    1,
    3,
    4,
    8,
    12,
)


@pytest.fixture(scope="session")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside the packages that the example for Node pins."""
    for program in ("node", "npm"):
        assert shutil.which(program), f"{program} is not installed; .ci/run installs it."
    folder = tmp_path_factory.mktemp("grpc-js")
    script = folder / "sequences.mjs"
    shutil.copy(ROOT / "tests" / "e2e" / "grpc_js" / "sequences.mjs", script)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "clients" / "examples" / "node-grpc" / name, folder)
    install = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=folder, check=True, timeout=300)
    return script


def test_sequences_of_a_grpc_js_client(
    server: Server, sequences: Path, mnist: Mnist, tmp_path: Path
) -> None:
    request = inference.ModelInferRequest(model_name="mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    request.raw_input_contents.append(mnist.images[:1].tobytes())
    file = tmp_path / "request.bin"
    file.write_bytes(request.SerializeToString())
    run = subprocess.run(
        ["node", sequences, server.grpc, file],
        cwd=sequences.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    outcomes = json.loads(run.stdout)
    code, size = outcomes.pop("unary")
    assert (code, size > 100) == (OK, True)
    # A call that is given up may have been answered before.
    assert set(outcomes.pop("cancelled")) <= {OK, CANCELLED}
    assert set(outcomes.pop("cancelledLater")) <= {CANCELLED, INVALID_ARGUMENT}
    assert outcomes == {
        "parallel": [OK],
        "gzip": OK,
        "large": INVALID_ARGUMENT,
        "garbage": INVALID_ARGUMENT,
        "unknown": UNIMPLEMENTED,
        "metadata": RESOURCE_EXHAUSTED,
        "deadline": DEADLINE_EXCEEDED,
        "stream": [OK, 50],
        "streamCancelled": [CANCELLED, 1],
        "streamEmpty": [OK, 0],
        "keepalive": [OK],
        "still": [OK],
    }
