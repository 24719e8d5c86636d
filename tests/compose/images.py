"""The images: their base images, how they are built, and what is checked in them."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import yaml

from deploy.supply import digests, sbom
from tests.compose.bridge import bridge_address
from tests.compose.engine import ROOT, CommandFailed, Docker, EngineUnavailable, say
from tests.compose.stack import NEXT
from tests.e2e.onnx_models import publish_lower_case
from tests.supply.test_sbom import assert_valid

(_PYTHON,) = digests.images((ROOT / "Dockerfile").read_text())
_CACHE = Path(os.environ.get("MNIST_ENGINE_CACHE", "/var/cache/mnist-engine"))
_MOST_ABOVE_BASE_MB = 300


def make_base_images(docker: Docker, *names: str) -> None:
    """Build the missing base images, of Debian packages, under their official names."""
    docker.environ["DOCKER"] = docker.client
    try:
        output = docker.run(str(ROOT / "deploy/engine/base-images.sh"), *names)
    except CommandFailed as error:  # no Debian mirror or no debootstrap: not a failed test
        raise EngineUnavailable(f"The base images cannot be built here. {error}") from error
    for line in output.splitlines():
        say(line)


@contextlib.contextmanager
def wheels_for_builds(docker: Docker, *locks: str) -> Iterator[str]:
    """The path of a pip configuration with which a build finds the locked wheels.

    This machine's own pip downloads them, from the index that it is configured for. While images
    are built, a file server on the engine's bridge serves them.
    """
    folder = _CACHE / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    for lock in locks:
        path = ROOT / f"deploy/locks/{lock}.txt"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--only-binary", ":all:", "--dest", str(folder)]
        done = subprocess.run(
            [*command, "-r", str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            end = done.stderr[-2000:]
            raise EngineUnavailable(f"pip cannot download the packages of {path}:\n{end}")
    address = bridge_address(docker("network", "inspect", "bridge"))
    with (
        wheel_server(address, folder) as url,
        tempfile.NamedTemporaryFile("w", prefix="pip-", suffix=".conf") as configuration,
    ):
        configuration.write(
            f"[global]\nno-index = true\nfind-links = {url}\ntrusted-host = {address}\n"
        )
        configuration.flush()
        yield configuration.name


@contextlib.contextmanager
def wheel_server(address: IPv4Address, folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on one address; the URL. Raises ValueError for 0.0.0.0."""
    if address.is_unspecified:
        raise ValueError("The file server must not listen on every interface.")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer((str(address), 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            yield f"http://{address}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            serving.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in the base class)
        pass


def build_all(docker: Docker, targets: list[str], *, online: bool) -> None:
    """Build these targets; with `train`, also the image for the rolling update."""
    train = "train" in targets
    wheels: contextlib.AbstractContextManager[str | None]
    if online:
        docker.environ["PYTHON_IMAGE"] = "@".join(filter(None, _PYTHON))
        docker("pull", docker.environ["PYTHON_IMAGE"])
        wheels = contextlib.nullcontext(None)
    else:
        make_base_images(docker, "python", "envoy")
        use_tags(docker)
        wheels = wheels_for_builds(docker, "build", "serve", *["train-cpu"] * train)
    with wheels as pip_configuration:
        for target in targets:
            build(docker, target, pip_configuration)
        if train:
            # The same sources under another version: only the last layers are new.
            environ = dict(docker.environ)
            docker.environ |= NEXT
            build(docker, "serve", pip_configuration)
            docker.environ = environ


def use_tags(docker: Docker) -> None:
    """Let Compose and builds name the images of others by tag: substitutes have no digests."""
    docker.environ["PYTHON_IMAGE"] = _PYTHON.tagged
    services: dict[str, Any] = {}
    for name, service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
        "services"
    ].items():
        if "build" in service:
            services[name] = {"build": {"args": {"PYTHON_IMAGE": _PYTHON.tagged}}}
        elif found := digests.images(f"    image: {service['image']}"):
            services[name] = {"image": found[0].tagged}
    override = _CACHE / "tags.yml"
    override.write_text(json.dumps({"services": services}))  # JSON is YAML
    docker.environ["COMPOSE_FILE"] = f"{ROOT / 'docker-compose.yml'}:{override}"


def build(docker: Docker, target: str, pip_configuration: str | None) -> None:
    """Build one target with the build arguments of docker-compose.yml."""
    environ = docker.environ
    command = ["build", "--target", target, "--tag", f"mnist-{target}:{environ['TAG']}"]
    if pip_configuration:
        command += ["--secret", f"id=pip,src={pip_configuration}"]
    for name in ("VERSION", "REVISION", "CREATED", "TRAIN_LOCK", "PYTHON_IMAGE"):
        command += ["--build-arg", f"{name}={environ[name]}"]
    docker(*command, ".")
    base = environ["PYTHON_IMAGE"]
    above = (size(docker, f"mnist-{target}:{environ['TAG']}") - size(docker, base)) / 1e6
    say(f"Built mnist-{target}:{environ['TAG']}, {above:.0f} MB above {base}.")


def size(docker: Docker, image: str) -> int:
    """Size of an image in bytes, unpacked."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def check_serve(docker: Docker) -> None:
    """Check size, user, health check, labels, packages and SBOM of the serving image."""
    image = f"mnist-serve:{docker.environ['TAG']}"
    above = (size(docker, image) - size(docker, docker.environ["PYTHON_IMAGE"])) / 1e6
    assert above < _MOST_ABOVE_BASE_MB, f"{image} is {above:.0f} MB above its base image"
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))
    assert config["User"] == "10001:10001", config["User"]
    assert config["Healthcheck"]["Test"] == ["CMD", "mnist-probe"]
    assert config["Labels"]["org.opencontainers.image.version"] == docker.environ["VERSION"]
    contents = docker(
        "run", "--rm", "--read-only", "--network", "none", "--entrypoint", "python", image, "-c",
        "import importlib.util as u, os; "
        "print([n for n in ('torch', 'training', 'pip') if u.find_spec(n)], os.getuid())",
    )  # fmt: skip
    # The base image has a pip; the environment that serves has none.
    assert contents == "[] 10001", contents
    check_locale(docker, image)
    policy = tomllib.loads((ROOT / "deploy" / "supply" / "licences.toml").read_text())
    document = sbom.of_image(image, policy, client=docker.client)
    assert_valid(document)
    versions = {part["name"].lower(): part["version"] for part in document["components"]}
    locked = (ROOT / "deploy" / "locks" / "serve.txt").read_text()
    assert f"\nonnxruntime=={versions['onnxruntime']} " in locked
    assert versions["libc6"]
    say(f"Its SBOM is valid and has {len(versions)} components.")


def check_locale(docker: Docker, image: str) -> None:
    """Check that a model of texts that are not ASCII runs: ONNX Runtime needs a locale for it."""
    with tempfile.TemporaryDirectory() as folder:
        publish_lower_case(Path(folder))
        Path(folder).chmod(0o755)
        printed = docker(
            "run", "--rm", "--read-only", "--network", "none", "--volume", f"{folder}:/lower:ro",
            "--entrypoint", "python", image, "-c",
            "import onnxruntime as o; s = o.InferenceSession('/lower/lower/1/model.onnx'); "
            "print(*s.run(None, {'x': ['GRÜSSE', 'ÉCOLE', 'ΑΘΗΝΑ', 'МИР']})[0])",
        )  # fmt: skip
    assert printed == "grüsse école αθηνα мир", printed
    say("It changes the case of texts that are not ASCII.")
