"""The stack with TLS and keys, as the recipe of docs/deployment.md starts it, and attacks on it.

The recipe's own commands run, with the ports of the test, a folder of its own for secrets, and
without the services that the short form has no images for.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import ssl
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from deploy import certificates
from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.compose import images, stack
from tests.compose.engine import ROOT, Docker, say
from tests.compose.load import IMAGE
from tests.compose.observability import targets, value
from tests.compose.stack import GRPC_PORT, HTTP_PORT, PROJECT, SETTINGS

HEADING = "### One machine, with TLS and keys"
_SERVICES = ("serve", "envoy")
_PROMETHEUS = ("--profile", "observability")
_BURST = 4
_KEY = re.compile(r"mnist_[\w-]{43}")

# Runs in a container of the network: requests without a key, each from a caller that it makes up,
# to the targets in its arguments, such as https://envoy:8000; prints their statuses.
_FORGER = """
import ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile="/ca.pem")
for number, target in enumerate(sys.argv[1:]):
    request = urllib.request.Request(target + "/predict", bytes(784), {
        "content-type": "application/octet-stream", "x-forwarded-for": f"203.0.113.{number}",
        "forwarded": f"for=203.0.113.{number}",
        "x-forwarded-client-cert": 'Subject="CN=client";DNS=client'})
    try:
        with urllib.request.urlopen(request, context=context) as response:
            print(response.status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
_ENVOY, _SERVE = "https://envoy:8000", "http://serve:8000"


class Secured:
    """The stack of the recipe: its secrets, and requests to it through Envoy."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker
        self.folder = Path(tempfile.mkdtemp(prefix="mnist-secrets-"))
        self.folder.chmod(0o755)  # containers read it as users of their own
        self.keys: dict[str, str] = {}
        docker.environ |= {
            "TLS_CERTIFICATE": f"{self.folder}/server.pem",
            "TLS_KEY": f"{self.folder}/server.key",
            "TLS_CLIENT_CA": f"{self.folder}/ca.pem",
            "PROMETHEUS_KEY": f"{self.folder}/prometheus.key",
        }
        self._tags = docker.environ.get("COMPOSE_FILE", "").partition(":")[2]
        self._ca = str(self.folder / "ca.pem")

    def follow(self, number: int) -> list[str]:
        """Run a block of the recipe; what each command printed."""
        text = (ROOT / "docs" / "deployment.md").read_text().partition(HEADING)[2]
        block = text.split("```sh\n")[number + 1].split("```")[0]
        return [self._run(line) for line in block.splitlines()]

    def _run(self, line: str) -> str:
        if line.startswith("export COMPOSE_FILE="):
            self.use(line.partition("=")[2].split(":"))
            return ""
        if line.startswith("make secrets certificates"):  # the other secret is Grafana's
            names = re.findall(r'ARGS="([^"]*)"', line)[0].split()
            assert not certificates.main([*names, "envoy", "--folder", str(self.folder)])
            return ""
        if line == "docker compose build":
            return ""  # images.build_all has built them
        words = line.split()
        if words[-2:] == ["up", "--detach"]:
            line = f"{line} --no-build --no-deps {' '.join((*_SERVICES, 'prometheus'))}"
        line = line.replace("docker compose", " ".join(self._docker.compose_command))
        line = line.replace("127.0.0.1:8000", f"127.0.0.1:{HTTP_PORT}")
        line = line.replace("deploy/secrets", str(self.folder))
        line = re.sub(r"(?<![\w/])(\w+\.key)\b", rf"{self.folder}/\1", line)
        if words[0] == "curl":
            self.wait_for_envoy()
        printed = self._docker.run("bash", "-ec", line, quiet=False)
        for file in self.folder.glob("*.key"):
            if key := _KEY.fullmatch(file.read_text().strip()):
                self.keys[file.stem] = key[0]
        return printed

    def use(self, files: list[str]) -> None:
        """Let Compose use these files, and the substitutes of base images."""
        chosen = [str(ROOT / file) for file in files] + [self._tags] * bool(self._tags)
        self._docker.environ["COMPOSE_FILE"] = ":".join(chosen)

    def up(self, *services: str) -> None:
        """Start services, or replace those whose settings have changed."""
        options = ["up", "--detach", "--no-build", "--no-deps", *services]
        self._docker.compose(*_PROMETHEUS, *options, quiet=False)

    def http(
        self,
        method: str,
        path: str,
        key: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        certificate: bool = False,
        has_tls: bool = True,
    ) -> tuple[int, bytes]:
        """A request through Envoy's HTTP port; POST sends docs/seven.png."""
        connection = http.client.HTTPConnection("127.0.0.1", HTTP_PORT, timeout=10)
        if has_tls:
            context = ssl.create_default_context(cafile=self._ca)
            if certificate:
                context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
            connection = http.client.HTTPSConnection(
                "127.0.0.1", HTTP_PORT, timeout=10, context=context
            )
        sent = dict(headers or {}) | ({"authorization": f"Bearer {key}"} if key else {})
        body = None
        if method == "POST":
            body, sent["content-type"] = IMAGE, "image/png"
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def grpc(self, method: str, key: str = "", metadata: Mapping[str, str] | None = None) -> str:
        """The status of a call over TLS through Envoy's gRPC port."""
        credentials = grpc.ssl_channel_credentials(Path(self._ca).read_bytes())
        sent = [*(metadata or {}).items(), *[("authorization", f"Bearer {key}")] * bool(key)]
        with grpc.secure_channel(f"127.0.0.1:{GRPC_PORT}", credentials) as channel:
            stub: Any = digits_pb2_grpc.DigitClassifierStub(channel)
            triton: Any = inference_grpc.GRPCInferenceServiceStub(channel)
            calls: dict[str, Callable[[], Any]] = {
                "Predict": lambda: stub.Predict(
                    digits_pb2.PredictRequest(image=IMAGE), metadata=sent, timeout=10
                ),
                "ServerReady": lambda: triton.ServerReady(
                    inference.ServerReadyRequest(), metadata=sent, timeout=10
                ),
                "RepositoryModelUnload": lambda: triton.RepositoryModelUnload(
                    inference.RepositoryModelUnloadRequest(model_name="mnist"),
                    metadata=sent,
                    timeout=10,
                ),
            }
            try:
                answer = calls[method]()
            except grpc.RpcError as error:
                return str(error.code().name)
            assert method != "Predict" or answer.predictions[0].digit == 7
            return "OK"

    def forge(self, *targets: str) -> list[int]:
        """The statuses of requests from one container of the network, with forged addresses."""
        printed = self._docker(
            "run", "--rm", "--network", f"{PROJECT}_default", "--volume",
            f"{self._ca}:/ca.pem:ro", "--entrypoint", "python", f"mnist-serve:{SETTINGS['TAG']}",
            "-c", _FORGER, *targets,
        )  # fmt: skip
        return [int(line) for line in printed.splitlines()]

    def wait_for_envoy(self, *, has_tls: bool = True) -> None:
        """Wait until Envoy answers from a replica, over HTTP and gRPC."""
        stack.wait_until(
            "an answer through Envoy",
            lambda: (
                self.http("GET", "/v2/health/ready", has_tls=has_tls)[0] == 200
                and stack.envoy_sees(self._docker, 1)
            ),
        )

    def close(self) -> None:
        """Remove the secrets."""
        shutil.rmtree(self.folder)


def steps(docker: Docker, *, online: bool) -> tuple[Secured, list[Callable[[Docker], None]]]:
    """The steps of `python -m tests.compose` with TLS and keys, and what to close after them."""
    secured = Secured(docker)
    first = partial(check_recipe, secured, online=online)
    others = (check_refusals, check_changes, check_scrapes, check_callers, check_without_tls)
    return secured, [first, *(partial(check, secured) for check in others)]


def check_recipe(secured: Secured, docker: Docker, *, online: bool) -> None:
    """Up with TLS and keys, by the recipe of docs/deployment.md: alice predicts with her key."""
    if not online:
        images.make_base_images(docker, "prometheus")
    docker.compose("down")  # without keys; the volume with the model stays
    *_, answer = secured.follow(0)
    assert json.loads(answer)["predictions"][0]["digit"] == 7, answer
    say("Every command of the recipe works.")


def check_refusals(secured: Secured, docker: Docker) -> None:
    """Without a key 401, without the scope 403, over HTTP and gRPC; health is open."""
    alice, metrics = secured.keys["alice"], secured.keys["prometheus"]
    for method, path, key, expected in (
        ("GET", "/v2/health/ready", "", 200),
        ("POST", "/predict", "", 401),
        ("POST", "/predict", alice[:-1], 401),
        ("POST", "/predict", metrics, 403),
        ("POST", "/predict", alice, 200),
        ("GET", "/metrics", "", 401),
        ("GET", "/metrics", alice, 403),
        ("GET", "/metrics", metrics, 200),
        ("POST", "/v2/repository/models/mnist/unload", "", 401),
        ("POST", "/v2/repository/models/mnist/unload", alice, 403),
    ):
        status, body = secured.http(method, path, key)
        assert status == expected, f"{method} {path}: {status} {body[:200]!r}, not {expected}"
    for call, key, code in (
        ("ServerReady", "", "OK"),
        ("Predict", "", "UNAUTHENTICATED"),
        ("Predict", alice[:-1], "UNAUTHENTICATED"),
        ("Predict", metrics, "PERMISSION_DENIED"),
        ("Predict", alice, "OK"),
        ("RepositoryModelUnload", alice, "PERMISSION_DENIED"),
    ):
        answered = secured.grpc(call, key)
        assert answered == code, f"{call}: {answered}, not {code}"
    try:
        status, _ = secured.http("POST", "/predict", alice, has_tls=False)
        raise AssertionError(f"Envoy answers {status} without TLS.")
    except (OSError, http.client.HTTPException):
        say("Neither port answers without TLS, a key and its scope; health needs no key.")


def check_changes(secured: Secured, docker: Docker) -> None:
    """Keys are added and revoked while the replica runs; a certificate counts, a forged one not."""
    (replica,) = stack.replicas(docker)
    began = docker("inspect", "--format", "{{.State.StartedAt}}", replica)
    alice = secured.keys["alice"]
    *_, listed, _ = secured.follow(1)
    assert [line.split()[0] for line in listed.splitlines()] == [
        "NAME", "alice", "prometheus", "ci", "gateway",
    ], listed  # fmt: skip
    stack.wait_until(
        "the changes to count",
        lambda: (
            secured.http("POST", "/predict", secured.keys["ci"])[0] == 200
            and secured.http("POST", "/predict", alice)[0] == 401
        ),
        20,
    )
    assert secured.grpc("Predict", secured.keys["ci"]) == "OK"
    assert secured.grpc("Predict", alice) == "UNAUTHENTICATED"
    assert secured.http("POST", "/predict", certificate=True)[0] == 200
    forged = {"x-forwarded-client-cert": 'Subject="CN=client";DNS=client'}
    assert secured.http("POST", "/predict", headers=forged)[0] == 401
    assert secured.grpc("Predict", metadata=forged) == "UNAUTHENTICATED"
    assert secured.forge(_ENVOY, _SERVE) == [401, 401]
    assert docker("inspect", "--format", "{{.State.StartedAt}}", replica) == began
    logs = docker.compose("logs", "serve", "envoy")
    assert not _KEY.search(logs), "A key is in the log."
    assert docker.works("exec", replica, "test", "-r", "/keys/keys")
    assert not docker.works("exec", replica, "test", "-w", "/keys/keys"), "A server can add keys."
    say("A new key, a certificate and a revoked key count at once; the replica was not restarted.")


def check_scrapes(secured: Secured, docker: Docker) -> None:
    """Prometheus scrapes the replica with its key, and Envoy; a scrape without a key gets 401."""
    (replica,) = stack.replicas(docker)
    address = stack.address(docker, replica)
    for path, expected in (("/metrics", 401), ("/v2/health/ready", 200), ("/v2/health/live", 200)):
        status, _ = stack.get(8002, path, address)
        assert status == expected, f"{path} of the health port answers {status}."
    # Not by queries: for five minutes, they know the replicas from before a stop.
    stack.wait_until(
        "the replica and Envoy in Prometheus",
        lambda: targets() == {("serve", "up"), ("envoy", "up")},
    )
    stack.wait_until(
        "the refusals in Prometheus", lambda: value("sum(mnist_access_refused_total)") > 0
    )
    say(f"Prometheus counts {value('sum(mnist_access_refused_total)'):.0f} refusals.")


def check_callers(secured: Secured, docker: Docker) -> None:
    """A caller stays who it is, whatever addresses it forges; keys have limits of their own."""
    docker.environ |= {
        "ANONYMOUS_SCOPES": "predict",
        "MAX_REQUESTS_PER_SECOND": "0.001",
        "REQUEST_BURST": str(_BURST),
    }
    secured.up("serve")
    secured.wait_for_envoy()
    statuses = [
        secured.http("POST", "/predict", headers={"x-forwarded-for": f"203.0.113.{number}"})[0]
        for number in range(_BURST + 2)
    ]
    assert statuses == [200] * _BURST + [429] * 2, statuses
    forged = {"x-forwarded-for": "203.0.113.99"}
    assert secured.grpc("Predict", metadata=forged) == "RESOURCE_EXHAUSTED"
    assert secured.http("POST", "/predict", secured.keys["ci"])[0] == 200
    # Another client, through Envoy and past it: one caller, neither Envoy nor this machine.
    statuses = secured.forge(_ENVOY, _SERVE, _ENVOY, _SERVE, _ENVOY, _SERVE)
    assert statuses == [200] * _BURST + [429] * 2, statuses
    say(f"Two clients got {_BURST} answers each, over HTTP and gRPC together, and a key its own.")


def check_without_tls(secured: Secured, docker: Docker) -> None:
    """Keys without TLS: the other override alone."""
    for name in ("ANONYMOUS_SCOPES", "MAX_REQUESTS_PER_SECOND", "REQUEST_BURST"):
        del docker.environ[name]
    secured.use(["docker-compose.yml", "docker-compose.keys.yml"])
    secured.up(*_SERVICES)
    secured.wait_for_envoy(has_tls=False)
    for key, expected in (("", 401), (secured.keys["ci"], 200)):
        status, _ = secured.http("POST", "/predict", key, has_tls=False)
        assert status == expected, status
    say("Keys work without TLS.")
