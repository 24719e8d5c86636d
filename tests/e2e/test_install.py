"""What an installation holds, and that it serves: from a wheel, in a folder of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.supply import sbom
from service.http.openapi.viewer import STATIC as VIEWER
from service.http.playground.pages import STATIC
from service.settings import markdown
from tests.conftest import ROOT, SHIPPED_MODELS, Server, free_ports
from tests.supply.test_sbom import assert_valid

SEVEN = ROOT / "docs" / "seven.png"
# Of the text at apache.org/licenses/LICENSE-2.0.txt.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


class Release(NamedTuple):
    sdist: Path
    wheel: Path
    client: Path  # the client's wheel


def run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The sdist, and the wheel that is built from it, as in a release."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT / "clients" / "python")
    (sdist,) = folder.glob("mnist_service-*.tar.gz")
    (wheel,) = folder.glob("mnist_service-*.whl")
    (client,) = folder.glob("mnist_client-*.whl")
    return Release(sdist, wheel, client)


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ folder of a fresh environment with the wheel and ONNX Runtime."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    wheels = f"{release.wheel}[cpu]", f"{release.client}[grpc]"
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *wheels)
    return folder / "bin"


class Addresses(NamedTuple):
    http: str
    grpc: str
    log: Path


@contextlib.contextmanager
def serving(folder: Path, *command: object, **environ: str) -> Iterator[Addresses]:
    """Run a command that starts mnist-serve in `folder`, until it has stopped with status 0."""
    http, grpc = free_ports(2)
    log = folder / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | {"MNIST_HTTP_PORT": str(http), "MNIST_GRPC_PORT": str(grpc)} | environ,
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(f"http://127.0.0.1:{http}/v2/health/ready", server, log)
        yield Addresses(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log)
    finally:
        server.terminate()
        assert server.wait(timeout=120) == 0


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"the server ended by itself:\n{log.read_text()}")


def version_that_finds_the_seven(cwd: Path, addresses: Addresses, *predict: object) -> str:
    """Predict over HTTP and gRPC with mnist-predict. Returns the version of the model."""
    versions = set()
    for options in (["--address", addresses.http], ["--grpc", "--address", addresses.grpc]):
        answer = json.loads(run(*predict, SEVEN, "--json", *options, cwd=cwd))
        assert answer["digit"] == 7
        versions.add(answer["model_version"])
    (version,) = versions
    return version


def test_a_serving_installation_has_no_torch_and_serves(installed: Path, tmp_path: Path) -> None:
    packages = run(installed / "python", "-m", "pip", "list", "--format=freeze").lower()
    assert "onnxruntime==" in packages
    assert "torch" not in packages
    models = str(SHIPPED_MODELS)
    with serving(tmp_path, installed / "mnist-serve", MNIST_MODELS=models) as addresses:
        version_that_finds_the_seven(tmp_path, addresses, installed / "mnist-predict")
        assert "comes with the package" not in addresses.log.read_text()


def test_the_bill_of_materials_of_the_wheel_is_what_its_installation_has(
    release: Release, installed: Path
) -> None:
    policy = tomllib.loads((ROOT / "deploy" / "supply" / "licences.toml").read_text())
    document = sbom.of_wheel(release.wheel, installed / "python", policy)
    assert_valid(document)
    subject = document["metadata"]["component"]
    digest = hashlib.sha256(release.wheel.read_bytes()).hexdigest()
    assert subject["hashes"] == [{"alg": "SHA-256", "content": digest}]
    freeze = run(installed / "python", "-m", "pip", "list", "--format=freeze").lower().split()
    described = {f"{part['name']}=={part['version']}".lower() for part in document["components"]}
    assert described <= set(freeze)
    names = {canonicalize_name(part["name"]) for part in document["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, [*project["dependencies"], "onnxruntime"])
    assert {canonicalize_name(requirement.name) for requirement in requirements} <= names
    assert {"werkzeug", "markupsafe"} <= names  # what packages require that the service requires
    assert not {"pip", "httpx", "mnist-client"} & names  # beside it in this environment
    assert all(part["licenses"] for part in document["components"])


def test_without_a_repository_the_packaged_model_is_served_until_there_is_one(
    installed: Path, tmp_path: Path
) -> None:
    predict = installed / "mnist-predict"
    with serving(tmp_path, installed / "mnist-serve") as addresses:
        assert version_that_finds_the_seven(tmp_path, addresses, predict) == "2"
        assert "serving the model that comes with the package" in addresses.log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["serve.log"]

    # As mnist-train publishes it: what is in ./models replaces the packaged model as a whole.
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "models" / "mnist" / "5")
    with serving(tmp_path, installed / "mnist-serve") as addresses:
        assert version_that_finds_the_seven(tmp_path, addresses, predict) == "5"
        assert "comes with the package" not in addresses.log.read_text()


def test_pipx_starts_a_server_from_the_wheel_alone(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = tmp_path / "empty"
    monkeypatch.setenv("PIPX_HOME", str(tmp_path / "pipx"))
    monkeypatch.setenv("PIPX_DEFAULT_PYTHON", sys.executable)
    cwd.mkdir()
    pipx = [sys.executable, "-m", "pipx", "run", "--spec"]
    serve = [*pipx, f"{release.wheel}[cpu]", "mnist-serve"]
    run(*serve, "--help", cwd=cwd)  # installs it
    client = [*pipx, f"{release.client}[grpc]", "mnist-predict"]
    with serving(cwd, *serve) as addresses:
        assert version_that_finds_the_seven(cwd, addresses, *client) == "2"


def test_the_client_installs_and_works_without_the_server(
    release: Release, server: Server, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    bin_ = tmp_path / "venv" / "bin"
    install = (bin_ / "python", "-m", "pip", "install", "--quiet")
    run(*install, release.client)
    packages = json.loads(run(bin_ / "python", "-m", "pip", "list", "--format=json"))
    names = {package["name"].lower() for package in packages}
    assert {"mnist-client", "httpx", "numpy"} <= names
    assert not names & {"mnist-service", "grpcio", "protobuf", "pillow", "rich", "onnxruntime"}
    code = """
import sys
import numpy as np
from mnist_client import Client
with Client(sys.argv[1]) as client:
    assert client.predict(sys.argv[2]).digit == 7
    assert client.predict(np.zeros((28, 28), np.uint8)).reason == "blank"
    assert client.read(np.zeros((60, 60, 3), np.uint8)).text == ""
assert not {"service", "grpc", "PIL"} & {name.split(".")[0] for name in sys.modules}
"""
    run(bin_ / "python", "-c", code, f"http://{server.http}", SEVEN, cwd=tmp_path)
    shown = run(bin_ / "mnist-predict", SEVEN, "--address", server.http, cwd=tmp_path)
    assert "It is a 7" in shown  # without Pillow, there is no thumbnail
    run(*install, f"{release.client}[grpc]")
    addresses = Addresses(server.http, server.grpc, server.log)
    version_that_finds_the_seven(tmp_path, addresses, bin_ / "mnist-predict")


def test_a_release_holds_its_licences_its_data_and_the_shipped_model(release: Release) -> None:
    _, version, *_ = release.wheel.name.split("-")
    assert release.sdist.name == f"mnist_service-{version}.tar.gz"
    licences = {name: (ROOT / name).read_bytes() for name in ("LICENSE", "NOTICE")}
    assert hashlib.sha256(licences["LICENSE"]).hexdigest() == APACHE_2
    with zipfile.ZipFile(release.wheel) as wheel:
        info = f"mnist_service-{version}.dist-info"
        assert b"\nLicense-Expression: Apache-2.0\n" in wheel.read(f"{info}/METADATA")
        for name, text in licences.items():
            assert wheel.read(f"{info}/licenses/{name}") == text
        for file in ("model.onnx", "model.json"):
            packaged = wheel.read(f"service/shipped_models/mnist/2/{file}")
            assert packaged == (SHIPPED_MODELS / "mnist" / "2" / file).read_bytes()
        names = wheel.namelist()
    assert len([name for name in names if name.startswith("service/shipped_models/")]) == 2
    assert "training/data/bundled/train-images-idx3-ubyte.gz" in names
    assert "service/py.typed" in names
    packaged = {name for name in names if "/static/" in name}
    files = [*STATIC.iterdir(), *VIEWER.iterdir()]
    assert packaged == {path.relative_to(ROOT).as_posix() for path in files}
    # Tests and benchmarks are not installed.
    packages = {name.split("/")[0] for name in names if not name.startswith("mnist_service-")}
    assert packages == {"service", "training"}
    with tarfile.open(release.sdist) as sdist:
        for name, text in licences.items():
            file = sdist.extractfile(f"mnist_service-{version}/{name}")
            assert file is not None
            assert file.read() == text


def test_the_clients_wheel_holds_its_licence_its_types_and_nothing_else(release: Release) -> None:
    with zipfile.ZipFile(release.client) as wheel:
        names = wheel.namelist()
        (licence,) = (name for name in names if name.endswith("licenses/LICENSE"))
        assert hashlib.sha256(wheel.read(licence)).hexdigest() == APACHE_2
    assert "mnist_client/py.typed" in names
    assert "mnist_client/stubs/digits/v1/digits_pb2.pyi" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mnist_client"}
    assert release.client.name.split("-")[1] == release.wheel.name.split("-")[1]


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    return {name.split(".")[0] for name in run(sys.executable, "-c", code).split()}


def test_service_imports_neither_torch_nor_training() -> None:
    assert not loaded_by("service.worker") & {"torch", "training"}
    assert not loaded_by("clients.demo") & {"torch", "training"}


def test_the_supervisor_imports_nothing_heavy() -> None:
    assert not loaded_by("service.supervisor") & {"onnxruntime", "grpc", "flask", "numpy"}


def test_the_client_imports_nothing_heavy_and_nothing_of_the_server() -> None:
    heavy = {"asyncio", "httpx", "numpy", "grpc", "google", "PIL", "ssl"}
    assert not loaded_by("mnist_client") & (heavy | {"service"})
    # All modules together: only what the extras and the dependencies bring.
    assert "service" not in loaded_by("mnist_client.command.main, mnist_client.aio")


def test_training_imports_no_transport() -> None:
    assert not loaded_by("training.commands.train") & {"flask", "grpc", "granian", "service"}


def test_the_stubs_are_generated_from_the_protos(tmp_path: Path) -> None:
    """As `make proto` does it: from a copy in the folders of the package."""
    copies, stubs = tmp_path / "protos", tmp_path / "stubs"
    stubs.mkdir()
    shutil.copytree(ROOT / "proto", copies / "service" / "stubs")
    protos = sorted(copies.rglob("*.proto"))
    for proto in protos:
        text = proto.read_text()
        proto.write_text(text.replace('import "inference/', 'import "service/stubs/inference/'))
    run(
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{copies}",
        f"--python_out={stubs}",
        f"--grpc_python_out={stubs}",
        *[str(proto.relative_to(copies)) for proto in protos],
    )
    generated = sorted(stubs.rglob("*.py"))
    assert len(generated) == 2 * len(protos)
    for path in generated:
        assert path.read_text() == (ROOT / path.relative_to(stubs)).read_text(), path


def test_the_clients_stubs_are_generated_from_the_protos(tmp_path: Path) -> None:
    script = ROOT / "clients" / "python" / "generate_stubs.sh"
    run(script, sys.executable, tmp_path)
    generated = sorted(tmp_path.rglob("*_pb2.py*"))
    assert len(generated) == 6
    for path in generated:
        kept = ROOT / "clients" / "python" / path.relative_to(tmp_path)
        assert path.read_text() == kept.read_text(), path


def test_messages_equal_those_of_the_public_protocol() -> None:
    """Names, numbers and types of every field, message by message, against tritonclient's.

    Ours have KServe's properties of a model too, which Triton's lack.
    """
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
    metadata = "inference.ModelMetadataResponse"
    assert ours.pop(f"{metadata}.PropertiesEntry")
    (properties,) = (field for field in ours[metadata] if field[0] == "properties")
    assert properties[1] == 6
    ours[metadata].remove(properties)
    for name, fields in ours.items():
        assert fields == theirs[name], name


def test_the_documented_settings_are_the_real_ones() -> None:
    assert markdown() in (ROOT / "docs" / "settings.md").read_text()
