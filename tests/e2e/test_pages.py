"""Every command and snippet of docs/ runs: here as a reader follows a page, or in another test.

NOT_RUN is the one list of what does not run in CI, with the reason.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from subprocess import DEVNULL

import joblib
import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from docs.site.reference import parsers
from tests.collector import Collector
from tests.conftest import ROOT, Server, free_ports
from tests.e2e.following import DOCS, Reader, blocks, commands
from tests.service.classifiers import publish_mixing
from tests.service.composition import Operations
from tests.service.linear_model import run_with_operations

GPU = "needs a GPU; make test-gpu serves and trains on one"
CLUSTER = "needs a cluster; make test-kubernetes checks the manifests, in CI"
DOCKER = "needs a Docker engine; tests.compose runs the stack, in CI"
SECRETS = "test-kubernetes runs it, and compares its Secrets with the manifests, in CI"
TRAINING = (
    "half a minute of CPU time per command at the least; the options are checked here, and "
    "tests/training runs each command on few images"
)
# Page -> the beginning of a block or command -> why it does not run in CI. "" is all of a page.
NOT_RUN = {
    "CONTRIBUTING.md": {"": "these are the commands of CI itself, and of a release"},
    "deployment.md": {
        "cp .env.example": DOCKER,
        "docker": DOCKER,
        "export COMPOSE_FILE": DOCKER,
        "python3 deploy/swarm": DOCKER,
        "mnist-keys add alice --file": SECRETS,
        "mnist-keys revoke alice --file": CLUSTER,
        "kubectl": CLUSTER,
        "mnist-serve --check": "test_check.py runs it",
    },
    "howto/gpu.md": {"": GPU},
    "howto/kubernetes.md": {"": CLUSTER},
    "howto/tls.md": {"docker compose": DOCKER},
    "howto/traces.md": {
        "pip install": "this test's environment has both",
        "docker run": "needs a Docker engine; the test has a collector of its own",
        "py-spy": "test_traces.py runs it on a worker",
    },
    "performance.md": {"": "takes minutes to hours; tests/benchmarks runs the commands in short"},
    "scaling.md": {"": CLUSTER},
    "training.md": {
        "mnist-train --resume": TRAINING,
        "mnist-train --config": TRAINING,
        "mnist-evaluate runs": TRAINING,
        "mnist-search": TRAINING,
        "torchrun": "tests/training/test_processes.py runs two processes",
    },
    "tutorial.md": {
        "make setup": "downloads 3 GB; this test's environment is what it makes",
        "source ": "this test's environment is active",
    },
}
# Page -> the test that runs its blocks.
RUN_BY = {
    "api.md": "test_docs.py",
    "models.md": "test_pages.py",
    "own-model.md": "test_own_model.py",
    "pictures.md": "test_docs.py",
    "protocol.md": "test_docs.py",
}
FOLLOWED = (
    "deployment.md",
    "training.md",
    "tutorial.md",
    "howto/clients.md",
    "howto/from-fastapi.md",
    "howto/from-torchserve.md",
    "howto/from-triton.md",
    "howto/keys.md",
    "howto/network.md",
    "howto/tls.md",
    "howto/traces.md",
)
LANGUAGES = {"sh", "python", "js", "yaml", "json"}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.stop()


def follow(reader: Reader, page: str) -> list[str]:
    return reader.follow(page, tuple(NOT_RUN.get(page, {})))


def test_every_page_with_commands_is_run_somewhere_or_listed_with_a_reason() -> None:
    pages = {
        path.relative_to(DOCS).as_posix()
        for path in DOCS.rglob("*.md")
        if any(block.language in LANGUAGES for block in blocks(path))
    }
    not_run = {page for page, parts in NOT_RUN.items() if "" in parts}
    assert pages == not_run | RUN_BY.keys() | set(FOLLOWED)
    for page, test in RUN_BY.items():
        assert page in (ROOT / "tests" / "e2e" / test).read_text()


def test_every_exception_is_on_its_page() -> None:
    for page, parts in NOT_RUN.items():
        texts = [block.text for block in blocks(DOCS / page)]
        lines = [command for block in blocks(DOCS / page) for command in commands(block)]
        for part, reason in parts.items():
            assert reason
            assert any(text.startswith(part) for text in texts + lines), (page, part)


def test_what_does_not_run_here_names_what_exists() -> None:
    """Options of our commands, targets, files, services, profiles and folders."""
    known = parsers()
    compose = {
        name: service
        for path in sorted(ROOT.glob("docker-compose*.yml"))  # docker-compose.yml is the last
        for name, service in yaml.safe_load(path.read_text())["services"].items()
    }
    profiles = {name for each in compose.values() for name in each.get("profiles", ())}
    checked: Counter[str] = Counter()
    for page, parts in NOT_RUN.items():
        for block in [each for each in blocks(DOCS / page) if each.language == "sh"]:
            chosen = [each for each in commands(block) if each.startswith(tuple(parts))]
            for command in [one for each in chosen for one in each.split(" && ")]:
                words = [
                    word for word in shlex.split(command, comments=True) if word[:1] != ">"
                ] or [""]
                name = Path(words[0]).name
                checked[name] += 1
                if name in known:
                    known[name].parse_args(words[1:])  # exits with 2 if it does not know one
                elif name == "make":
                    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, stdout=DEVNULL)
                elif name == "python" and words[2].startswith("benchmarks"):
                    is_package = (ROOT / words[2].replace(".", "/")).is_dir()
                    module = importlib.import_module(words[2] + ".__main__" * is_package)
                    if hasattr(module, "parser"):
                        module.parser().parse_args(words[3:])
                elif words[:2] == ["docker", "compose"]:
                    for option, value in pairwise(words):
                        assert option != "-f" or (ROOT / value).is_file(), command
                        assert option != "--profile" or value in profiles, command
                        assert option != "--scale" or value.partition("=")[0] in compose, command
                    if "run" in words:
                        words = [word for word in words if word != "-T"]
                        service, *arguments = words[words.index("--rm") + 1 :]
                        (program,) = compose[service].get("entrypoint", ["mnist-train"])
                        known[program].parse_args(arguments)
                elif words[:3] == ["kubectl", "apply", "-k"]:
                    assert (ROOT / words[3] / "kustomization.yaml").is_file(), command
    assert checked["docker"] > 5
    assert min(checked["kubectl"], checked["make"]) > 4
    assert min(checked["mnist-train"], checked["mnist-search"]) > 1


def test_the_tutorial_leads_from_training_to_an_update(reader: Reader) -> None:
    _, measured, _, shown, answer, blank, _, versions = follow(reader, "tutorial.md")
    assert (reader.folder / "models" / "mnist" / "3" / "model.onnx").exists()
    assert (reader.folder / "report" / "report.html").exists()
    assert "accuracy" in measured
    assert "It is a" in shown
    assert len(json.loads(answer)["predictions"][0]["probabilities"]) == 10
    assert blank.startswith("False blank")
    end = time.monotonic() + 180
    while "4" not in json.loads(versions)["versions"]:
        assert time.monotonic() < end, versions
        time.sleep(0.1)
        versions = reader.run(f"curl -s http://127.0.0.1:{reader.http}/v2/models/mnist")


def test_models_are_trained_once_more_or_not_and_evaluated(reader: Reader) -> None:
    *trained, unless_published, evaluated = follow(reader, "training.md")
    versions = [path.parent.name for path in reader.folder.glob("models/mnist/*/model.onnx")]
    assert sorted(versions)[-len(trained) :] == ["3", "4", "5"]
    assert "Published" not in unless_published
    assert "accuracy" in evaluated


def test_clients_in_three_languages_get_the_seven(tmp_path: Path, server: Server) -> None:
    printed = follow(Reader(tmp_path, server), "howto/clients.md")
    form, body, package, plain, tensors, javascript = printed
    for answer in (form, body):
        assert json.loads(answer)["predictions"][0]["digit"] == 7
    assert package.splitlines() == ["7 (7,) True", "['blank', 'blank', 'blank']"]
    assert plain.split() == ["7", "[7]", "True"]
    assert tensors.split() == ["[False", "False", "False]"]
    assert javascript.strip() == "7"


def test_a_web_page_gets_answers_once_its_origin_is_listed(
    start_server: Callable[..., Server],
) -> None:
    text = (DOCS / "howto" / "clients.md").read_text()
    (flag, origin) = re.findall(r"`mnist-serve (--allowed-origins) (\S+)`", text)[0]
    server = start_server(arguments=[flag, origin])
    url = f"http://{server.http}/v2/health/ready"
    request = urllib.request.Request(url, headers={"Origin": origin})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert server.request("GET", "/v2", headers={"Origin": "https://other.example"})[0] == 403


def test_a_repository_and_a_client_of_triton_work_as_they_are(reader: Reader) -> None:
    *_, result = follow(reader, "howto/from-triton.md")
    assert result.split()[:3] == ["[[", "0", "2"]


def test_a_network_from_torchserve_answers_with_its_labels(reader: Reader) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(reader.folder / "photo.png")
    *_, answer = follow(reader, "howto/from-torchserve.md")
    assert set(json.loads(answer)["predictions"][0]["probabilities"]) == {"cat", "dog"}


def test_a_service_on_fastapi_its_move_and_fastapi_in_front(reader: Reader) -> None:
    *_, moved, _, in_front = follow(reader, "howto/from-fastapi.md")
    (row,) = json.loads(moved)["predictions"]
    assert row["label"] == "class_0"
    assert json.loads(in_front) == row
    lacking = "-d '{\"alcohol\": 13.2}' -s -H 'Content-Type: application/json'"
    refused = reader.run(f"curl {lacking} 'http://127.0.0.1:{reader.http}/predict?model=wine'")
    assert "malic_acid" in json.loads(refused)["error"]
    refused = reader.run(f"curl {lacking} http://127.0.0.1:{reader.tls}/wines")
    assert "malic_acid" in json.loads(refused)["detail"]
    # The service of the section "Before" gave the same probabilities.
    wine = load_wine()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    joblib.dump(pipeline.fit(wine.data[:, :3], wine.target), reader.folder / "wine.joblib")
    (reader.tls,) = free_ports(1)
    reader.run(f"uvicorn app:app --port {reader.tls}")
    before = reader.run(
        f"curl -s -H 'Content-Type: application/json' http://127.0.0.1:{reader.tls}/predict "
        """-d '{"alcohol": 13.2, "malic_acid": 1.78, "ash": 2.14}'"""
    )
    assert json.loads(before)["label"] == "class_0"
    probabilities = sorted(row["probabilities"].values())
    assert sorted(json.loads(before)["probabilities"]) == pytest.approx(probabilities, abs=1e-5)


def test_keys_are_made_used_and_taken_back(reader: Reader) -> None:
    _, _, listed, _, predicted, scraped, metadata, revoked, added = follow(reader, "howto/keys.md")
    assert "monitoring  read,metrics  2099-01-31T00:00:00Z" in listed
    assert json.loads(predicted)["predictions"][0]["digit"] == 7
    assert "mnist_request_seconds" in scraped
    assert "mnist-service" in metadata
    assert revoked == added == ""
    names = [line.split()[0] for line in (reader.folder / "keys").read_text().splitlines()]
    assert names == ["#", "monitoring", "gateway"]


def test_the_server_has_tls_keys_and_client_certificates(reader: Reader) -> None:
    made, _, http, package, command, again, _, _, _, by_certificate, by_key = follow(
        reader, "howto/tls.md"
    )
    assert made == again
    assert json.loads(http)["predictions"][0]["digit"] == 7
    assert package.split() == ["7", "7"]
    assert "7" in command
    assert "7" in by_key
    assert by_certificate.strip() == "7"


def test_the_recipe_of_deployment_without_docker_or_a_cluster_works(reader: Reader) -> None:
    _, _, behind_proxy = follow(reader, "deployment.md")
    assert json.loads(behind_proxy)["predictions"][0]["digit"] == 7


def test_the_three_ways_to_serve_a_network_work(reader: Reader) -> None:
    printed = follow(reader, "howto/network.md")
    _, _, _, alone, command, _, _, ingress, _, _, service = printed
    assert json.loads(alone)["predictions"][0]["digit"] == 7
    assert "It is a 7" in command
    assert json.loads(ingress)["predictions"][0]["digit"] == 7
    assert service.strip() == "7"
    # Without a certificate, not even health is answered on the port with TLS.
    url = f"https://127.0.0.1:{reader.http}/v2/health/ready"
    curl = ["curl", "-s", "--cacert", "deploy/secrets/ca.pem", url]
    refused = subprocess.run(curl, cwd=reader.folder, check=False)
    assert refused.returncode in (35, 55, 56)  # an alert: in the handshake, or soon after it


def test_the_declaration_of_batching_in_models_md_is_obeyed(tmp_path: Path) -> None:
    (declaration,) = [each.text for each in blocks(DOCS / "models.md") if each.language == "json"]
    publish_mixing(tmp_path, **json.loads(declaration))

    async def scenario(operations: Operations) -> None:
        assert operations.inference.repository.get("mixing", "").session.batchable

    run_with_operations(tmp_path, scenario)


def test_a_collector_gets_the_traces_of_the_manual(reader: Reader) -> None:
    with Collector() as collector:
        reader.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        for answer in follow(reader, "howto/traces.md")[1:]:
            assert json.loads(answer)["predictions"][0]["digit"] == 7
        collector.wait_for("POST /predict", "receive", "decode", "queue", "run", "batch", "encode")
        collector.wait_for("run", trace_id="0af7651916cd43dd8448eb211c80319c")


def test_snippets_that_do_not_run_are_at_least_python() -> None:
    for page in NOT_RUN:
        for block in blocks(DOCS / page):
            if block.language == "python":
                compile(block.text, page, "exec")
