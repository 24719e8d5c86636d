"""What an installation holds: serving never brings torch, the stubs are those of proto/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path

from service.settings import markdown
from tests.conftest import ROOT, SHIPPED_MODELS, free_ports


def run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_serving_installation_has_no_torch_and_serves(tmp_path: Path) -> None:
    wheel = build_release(tmp_path / "dist")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")
    packages = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert "onnxruntime==" in packages
    assert "torch" not in packages

    http, grpc = free_ports(2)
    server = subprocess.Popen(
        tmp_path / "venv" / "bin" / "mnist-serve",
        env=os.environ
        | {
            "MNIST_MODELS": str(SHIPPED_MODELS),
            "MNIST_HTTP_PORT": str(http),
            "MNIST_GRPC_PORT": str(grpc),
        },
        cwd=tmp_path,
    )
    try:
        predict = tmp_path / "venv" / "bin" / "mnist-predict"
        wait_for(f"http://127.0.0.1:{http}/v2/health/ready", server)
        image = ROOT / "docs" / "seven.png"
        for port, how in ((http, []), (grpc, ["--grpc"])):
            address = ["--address", f"127.0.0.1:{port}"]
            assert '"digit": 7' in run(predict, image, "--json", *how, *address, cwd=tmp_path)
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0


def build_release(folder: Path) -> Path:
    """Build the sdist, and the wheel from the sdist, as a release does. Returns the wheel."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("mnist_service-*.tar.gz")
    (wheel,) = folder.glob("mnist_service-*.whl")
    version = wheel.name.split("-")[1]
    assert sdist.name == f"mnist_service-{version}.tar.gz"
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert "training/data/bundled/train-images-idx3-ubyte.gz" in names
    assert "service/py.typed" in names
    # Tests and benchmarks are no part of what is installed.
    packages = {name.split("/")[0] for name in names if not name.startswith("mnist_service-")}
    assert packages == {"service", "training", "clients"}
    return wheel


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            continue
    raise AssertionError("the server ended by itself")


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    return {name.split(".")[0] for name in run(sys.executable, "-c", code).split()}


def test_service_imports_neither_torch_nor_training() -> None:
    assert not loaded_by("service.worker") & {"torch", "training"}
    assert not loaded_by("clients.cli") & {"torch", "training"}


def test_the_supervisor_imports_nothing_heavy() -> None:
    assert not loaded_by("service.cli") & {"onnxruntime", "grpc", "flask", "numpy"}


def test_training_imports_no_transport() -> None:
    assert not loaded_by("training.commands.train") & {"flask", "grpc", "granian", "service"}


def test_the_stubs_are_made_from_the_protos(tmp_path: Path) -> None:
    protos = sorted(path.relative_to(ROOT / "proto") for path in (ROOT / "proto").rglob("*.proto"))
    run(
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-Iservice/stubs={ROOT / 'proto'}",
        f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        *[f"service/stubs/{proto}" for proto in protos],
    )
    made = sorted(tmp_path.rglob("*.py"))
    assert len(made) == 2 * len(protos)
    for path in made:
        assert path.read_text() == (ROOT / path.relative_to(tmp_path)).read_text(), path


def test_messages_equal_those_of_the_public_protocol() -> None:
    """Names, numbers and types of every field, message by message, against tritonclient's."""
    code = """
import importlib, json, sys
def walk(message):
    fields[message.full_name] = sorted(
        (f.name, f.number, f.type, f.is_repeated, f.message_type and f.message_type.full_name)
        for f in message.fields)
    for nested in message.nested_types: walk(nested)
fields = {}
for message in importlib.import_module(sys.argv[1]).DESCRIPTOR.message_types_by_name.values():
    walk(message)
print(json.dumps(fields))
"""
    ours, theirs = (
        json.loads(run(sys.executable, "-W", "ignore", "-c", code, module))
        for module in ("service.stubs.inference.inference_pb2", "tritonclient.grpc.service_pb2")
    )
    assert len(ours) > 20
    for name, fields in ours.items():
        assert fields == theirs[name], name


def test_the_documented_settings_are_the_real_ones() -> None:
    assert markdown() in (ROOT / "docs" / "settings.md").read_text()
