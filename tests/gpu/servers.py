"""Servers on CUDA: both fronts, two workers, new versions under load, a hidden device."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.compose.load import Load, no_failures
from tests.conftest import Server, read_mnist
from tests.gpu.check import Check, Place
from tests.gpu.sessions import ROOT, SHIPPED, load_cpu

_RAW = "application/octet-stream"
_READY_WITHIN_S = 60.0


@contextmanager
def _server(place: Place, models: Path, **settings: object) -> Iterator[Any]:
    server = Server(place.folder, models, **settings)
    try:
        server.wait_until(server.is_ready, _READY_WITHIN_S)
        yield server
    finally:
        server.stop()


def server_with_cuda(place: Place) -> str:
    """`--provider cuda`: HTTP and gRPC answer as the CPU does and report CUDA."""
    return _compare_with_cpu(place, "cuda" if place.on_cuda else "cpu")


def server_with_auto(place: Place) -> str:
    """`--provider auto` chooses CUDA and reports it."""
    return _compare_with_cpu(place, "auto")


def _compare_with_cpu(place: Place, provider: str) -> str:
    import grpc

    from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
    from service.stubs.inference import inference_pb2, inference_pb2_grpc

    images, _ = read_mnist()
    expected = load_cpu(SHIPPED).run([images])[1].argmax(1).tolist()
    name = "CUDAExecutionProvider" if place.on_cuda else "CPUExecutionProvider"
    start = time.monotonic()
    with _server(place, ROOT / "models", provider=provider) as server:
        ready = time.monotonic() - start
        over_http: list[int] = []
        over_grpc: list[int] = []
        with grpc.insecure_channel(server.grpc) as channel:
            stub: Any = digits_pb2_grpc.DigitClassifierStub(channel)
            for count in (1, 3, 64, 65, 500, 1000):
                chosen = images[len(over_http) : len(over_http) + count]
                status, answer = server.post("/predict", chosen.tobytes(), _RAW)
                assert status == 200, answer
                over_http += [prediction["digit"] for prediction in answer["predictions"]]
                request = digits_pb2.PredictRequest(pixels=chosen.tobytes())
                reply = stub.Predict(request, timeout=30)
                over_grpc += [prediction.digit for prediction in reply.predictions]
            inference: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            config = inference.ModelConfig(
                inference_pb2.ModelConfigRequest(name="mnist"), timeout=30
            )
        _, metadata = server.get("/v2/models/mnist")
        _, metrics = server.get("/metrics")
        log = server.log.read_text()
    differ = [sum(a != b for a, b in zip(expected, digits, strict=False))
              for digits in (over_http, over_grpc)]  # fmt: skip
    assert max(differ) <= 1, f"{differ} of {len(over_http)} digits differ from the CPU's"
    assert name.encode() in metadata, metadata
    assert f'provider="{name}"'.encode() in metrics, "mnist_model_info has another provider"
    configured = config.config.parameters["execution_provider"].string_value
    assert configured == name, configured
    assert f"Loaded mnist version 1 on {name}" in log, log
    assert "WARNING" not in log.upper(), log
    assert server.process.returncode == 0, server.process.returncode
    images_each = f"{len(over_http)} images over each transport"
    return f"{name}, ready after {ready:.1f} s, {images_each}, {differ} differ"


def all_served_by(load: Load, version: str) -> bool:
    return load.last_versions() == {version}


def reload_under_load(place: Place) -> str:
    """New versions appear under load: no request fails, and every version has its graphs."""
    models = place.folder / "models"
    shutil.copytree(SHIPPED.parent, models / "mnist" / "1")
    provider = "cuda" if place.on_cuda else "cpu"
    with _server(place, models, provider=provider, poll_interval=0.1) as server:
        with no_failures(server.http_port, server.grpc_port) as load:
            server.wait_until(lambda: load.answered > 200, 40)
            for version in ("2", "3", "4"):
                hidden = models / f".{version}"
                shutil.copytree(SHIPPED.parent, hidden)
                hidden.rename(models / "mnist" / version)
                server.wait_until(partial(all_served_by, load, version), 40)
        log = server.log.read_text()
    assert "without CUDA graphs" not in log, log
    assert server.process.returncode == 0, server.process.returncode
    return f"versions 1 to 4: {load.counted()}"


def two_workers(place: Place) -> str:
    """Two worker processes share the device."""
    images, _ = read_mnist()
    provider = "cuda" if place.on_cuda else "cpu"
    expected = load_cpu(SHIPPED).run([images[:64]])[1].argmax(1).tolist()
    with _server(place, ROOT / "models", provider=provider, workers=2) as server:
        for _ in range(50):
            status, answer = server.post("/predict", images[:64].tobytes(), _RAW)
            assert status == 200, answer
            digits = [prediction["digit"] for prediction in answer["predictions"]]
            assert digits == expected, digits
    assert server.process.returncode == 0, server.process.returncode
    return "50 calls of 64 images"


def without_device(place: Place) -> str:
    """With a hidden device, `auto` serves on the CPU and says why; `cuda` does not start."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    with _server(place, ROOT / "models", provider="auto") as server:
        _, metadata = server.get("/v2/models/mnist")
        log = server.log.read_text()
    assert b"CPUExecutionProvider" in metadata, metadata
    assert "runs without CUDA" in log, log
    refused = Server(place.folder, ROOT / "models", provider="cuda")
    try:
        status = refused.process.wait(40)
    finally:
        refused.process.kill()
    last = refused.log.read_text().strip().splitlines()[-1:]
    assert status != 0, last
    if place.on_cuda:
        assert "the NVIDIA driver shows no CUDA device" in log, log
        assert "the NVIDIA driver shows no CUDA device" in last[0], last
    return f"`cuda` exits with {status}: {' '.join(last)[:300]}"


CHECKS = (
    Check("serve-cuda", server_with_cuda, 90),
    Check("serve-auto", server_with_auto, 90),
    Check("serve-reload", reload_under_load, 100, alone=True),
    Check("serve-two-workers", two_workers, 90),
    Check("serve-without-device", without_device, 90),
)
