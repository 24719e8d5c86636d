"""The control plane with the real tritonclient, on a server of two workers that must agree."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from tests.conftest import SHIPPED_MODELS, Mnist, Server
from tests.e2e.triton import Triton, fixture_of

# Requests on this many new connections almost surely reach both workers.
ENOUGH = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for version in ("1", "2", "3"):
        shutil.copytree(SHIPPED_MODELS / "mnist" / "1", root / "mnist" / version)
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", root / "other" / "1")
    return root


@pytest.fixture(scope="module")
def two_workers(start_server: Callable[..., Server], models: Path) -> Server:
    server = start_server(models, workers=2, poll_interval=0.05)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    return server


triton = fixture_of("two_workers")


def plain(answer: Any) -> Any:
    """An answer as the dictionary or list that HTTP returns."""
    if isinstance(answer, dict | list):
        return answer
    return json_format.MessageToDict(answer, preserving_proto_field_name=True)


def states(triton: Triton) -> dict[tuple[str, str], str]:
    index = plain(triton.get_model_repository_index())
    entries = index["models"] if triton.is_grpc else index
    return {(e["name"], e["version"]): e["state"] for e in entries}


def answers(server: Server, path: str) -> set[int]:
    return {server.get(path)[0] for _ in range(ENOUGH)}


def test_health_and_metadata(triton: Triton) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("mnist")
    assert triton.is_model_ready("mnist", "3")
    assert not triton.is_model_ready("mnist", "1")
    assert not triton.is_model_ready("none")
    server = plain(triton.get_server_metadata())
    assert server["name"] == "mnist-service"
    assert {"binary_tensor_data", "classification", "statistics"} <= set(server["extensions"])
    assert "system_shared_memory" not in server["extensions"]
    metadata = plain(triton.get_model_metadata("mnist"))
    assert metadata["versions"] == ["3", "2"]
    (image,) = metadata["inputs"]
    shape = [int(size) for size in image["shape"]]
    assert (image["name"], image["datatype"], shape) == ("image", "UINT8", [-1, 28, 28])
    assert plain(triton.get_model_metadata("mnist", "2"))["versions"] == ["2"]


def test_configuration_describes_how_the_model_is_served(triton: Triton) -> None:
    answer = plain(triton.get_model_config("mnist"))
    config = answer["config"] if triton.is_grpc else answer
    assert (config["name"], config["platform"]) == ("mnist", "onnxruntime_onnx")
    assert config["max_batch_size"] == 64
    (image,) = config["input"]
    dims = [int(size) for size in image["dims"]]
    assert (image["name"], image["data_type"], dims) == ("image", "TYPE_UINT8", [28, 28])
    assert [output["name"] for output in config["output"]] == ["logits", "probabilities"]
    assert config["instance_group"][0]["count"] == 2
    assert config["version_policy"]["latest"]["num_versions"] == 2
    assert "default_queue_policy" in config["dynamic_batching"]
    assert len(config["parameters"]["sha256"]["string_value"]) == 64


def test_statistics_cover_the_requests_of_all_workers(
    triton: Triton, two_workers: Server, mnist: Mnist
) -> None:
    def counts(*names: str) -> tuple[int, int, int]:
        (model,) = plain(triton.get_inference_statistics(*names))["model_stats"]
        stats = model["inference_stats"]
        for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            assert int(stats[part]["count"]) == int(stats["success"]["count"])
        assert int(stats["compute_infer"].get("ns", 0)) <= int(stats["success"].get("ns", 0))
        sizes = {int(b["batch_size"]) for b in model["batch_stats"]}
        assert sizes <= {3}
        return (
            int(model.get("inference_count", 0)),
            int(model.get("execution_count", 0)),
            int(stats["success"]["count"]),
        )

    two_workers.post("/predict?model=other", bytes(784 * 3), "application/octet-stream")
    before = counts("other")
    for _ in range(ENOUGH):
        body = mnist.images[:3].tobytes()
        two_workers.post("/predict?model=other", body, "application/octet-stream")
    after = counts("other", "1")
    assert [b - a for a, b in zip(before, after, strict=True)] == [3 * ENOUGH, ENOUGH, ENOUGH]
    every = plain(triton.get_inference_statistics())["model_stats"]
    assert {(m["name"], m["version"]) for m in every} == {
        ("mnist", "3"),
        ("mnist", "2"),
        ("other", "1"),
    }
    with pytest.raises(InferenceServerException, match="none"):
        triton.get_inference_statistics("none")


def test_models_are_unloaded_and_loaded_in_every_worker(
    triton: Triton, two_workers: Server
) -> None:
    path = "/v2/models/other/ready"
    assert states(triton)["other", "1"] == "READY"
    assert states(triton)["mnist", "1"] == "UNAVAILABLE"
    triton.unload_model("other")
    assert states(triton)["other", "1"] == "UNAVAILABLE"
    assert answers(two_workers, path) == {404}
    triton.load_model("other")
    assert answers(two_workers, path) == {200}
    assert states(triton)["other", "1"] == "READY"
    for call in (triton.load_model, triton.unload_model):
        with pytest.raises(InferenceServerException, match="none") as caught:
            call("none")
        assert triton.code(caught.value) == "NOT_FOUND"


def test_respawned_worker_has_the_state_of_the_others(two_workers: Server) -> None:
    def control(verb: str) -> int:
        path = f"/v2/repository/models/other/{verb}"
        return two_workers.post(path, b"", "application/json")[0]

    assert control("unload") == 200
    starts = two_workers.log.read_text().count("Serving mnist")
    os.kill(two_workers.worker_pids()[0], signal.SIGKILL)
    two_workers.wait_until(lambda: two_workers.log.read_text().count("Serving mnist") == starts + 1)
    assert answers(two_workers, "/v2/models/other/ready") == {404}
    assert control("load") == 200
    assert answers(two_workers, "/v2/models/other/ready") == {200}


def test_failed_load_is_reported_and_changes_nothing(triton: Triton, models: Path) -> None:
    broken = models / "mnist" / "4"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    try:
        with pytest.raises(InferenceServerException, match=r"failed to load 'mnist', .*: 4 "):
            triton.load_model("mnist")
        assert triton.is_model_ready("mnist", "3")
        assert states(triton)["mnist", "4"] == "UNAVAILABLE"
    finally:
        shutil.rmtree(broken)
    for options in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}):
        with pytest.raises(InferenceServerException, match=r"parameter (config|file)") as caught:
            triton.load_model("mnist", **options)
        assert triton.code(caught.value) == "UNIMPLEMENTED"


def test_log_level_changes_in_every_worker(triton: Triton, two_workers: Server) -> None:
    def levels() -> set[str]:
        return {two_workers.get("/v2/logging")[1].decode() for _ in range(ENOUGH)}

    def settings(answer: Any) -> dict[str, Any]:
        fields = plain(answer)
        if triton.is_grpc:
            return {k: next(iter(v.values())) for k, v in fields["settings"].items()}
        return dict(fields)

    first = settings(triton.get_log_settings())
    assert (first["log_info"], first["log_verbose_level"]) == (True, 0)
    assert settings(triton.update_log_settings({"log_info": False}))["log_info"] is False
    (everywhere,) = levels()
    assert json.loads(everywhere)["log_warning"] is True
    assert json.loads(everywhere)["log_info"] is False
    back = triton.update_log_settings({"log_info": None, "log_verbose_level": 0})
    assert settings(back) == first
    for wrong, word in (
        ({"log_warning": False}, "log_warning"),
        ({"log_level": 3}, "log_level"),
        ({"log_file": "/tmp/x"}, "log_file"),
    ):
        with pytest.raises(InferenceServerException, match=word):
            triton.update_log_settings(wrong)


def test_trace_settings_are_off_and_stay_off(triton: Triton) -> None:
    for answer in (triton.get_trace_settings(), triton.get_trace_settings("mnist")):
        fields = plain(answer)
        level = (
            fields["settings"]["trace_level"]["value"] if triton.is_grpc else fields["trace_level"]
        )
        assert level == ["OFF"]
    triton.update_trace_settings(settings={"trace_level": ["OFF"]})
    with pytest.raises(InferenceServerException, match="trace_level") as caught:
        triton.update_trace_settings(model_name="mnist", settings={"trace_level": ["TIMESTAMPS"]})
    assert triton.code(caught.value) == "UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match="none"):
        triton.get_trace_settings("none")


@pytest.mark.parametrize(
    "settings",
    [{"model_control_mode": "poll"}, {"model_control_mode": "none"}, {"host": "0.0.0.0"}],
)
def test_server_without_control_rejects_changes(
    start_server: Callable[..., Server], settings: dict[str, object]
) -> None:
    server = start_server(**settings)
    for path, body in (
        ("/v2/repository/models/mnist/unload", b""),
        ("/v2/repository/models/mnist/load", b""),
        ("/v2/logging", b'{"log_info": false}'),
    ):
        status, answer = server.post(path, body, "application/json")
        assert status == 403
        assert "is not allowed" in answer["error"]
    assert server.get("/v2/models/mnist/ready")[0] == 200
    assert server.get("/v2/logging")[0] == 200
    assert server.post("/v2/repository/index", b"", "application/json")[0] == 200


def test_without_model_control_what_was_there_at_the_start_stays(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Beside a server that polls, which shows when the change would have been seen."""
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", tmp_path / "mnist" / "1")
    fixed, polling = (
        start_server(tmp_path, model_control_mode=mode, poll_interval=0.05)
        for mode in ("none", "poll")
    )
    shutil.copytree(tmp_path / "mnist" / "1", tmp_path / ".new")
    (tmp_path / ".new").rename(tmp_path / "mnist" / "2")
    polling.wait_until(lambda: polling.get("/v2/models/mnist/versions/2/ready")[0] == 200)
    assert fixed.get("/v2/models/mnist/versions/2/ready")[0] == 404
    index = fixed.post("/v2/repository/index", b"", "application/json")[1]
    assert [(entry["version"], entry["state"], entry["reason"]) for entry in index] == [
        ("2", "UNAVAILABLE", "it has not been loaded so far"),
        ("1", "READY", ""),
    ]
