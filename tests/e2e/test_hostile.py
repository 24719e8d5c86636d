"""Requests designed to be expensive: none of them delays or harms other requests."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc
from tritonclient.utils import InferenceServerException

from service.supervisor import process_cpu_s
from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.onnx_models import publish_identity, publish_slow_model
from tests.e2e.triton import Triton

JSON = "application/json"
INFER = "/v2/models/mnist/infer"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(SHIPPED_MODELS / "mnist", root / "mnist")
    publish_identity(root, "BYTES")
    publish_identity(root, "INT64")
    publish_identity(root, "FP32")
    publish_slow_model(root, "slow", size=256)
    return root


@pytest.fixture(scope="module")
def target(start_server: Callable[..., Server], models: Path) -> Server:
    return start_server(models)


class Delay:
    """How long the worker took, from now on.

    On a busy machine that is the CPU time that it used meanwhile; the rest went to others.
    """

    def __init__(self, server: Server) -> None:
        (self._worker,) = server.worker_pids()
        self._start, self._used = time.monotonic(), process_cpu_s(self._worker)

    def seconds(self) -> float:
        used = process_cpu_s(self._worker) - self._used
        return min(used, time.monotonic() - self._start)


class Pulse:
    """Polls liveness in a thread; `slowest` is the longest delay of an answer, in seconds."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self.slowest = 0.0

    def _beat(self) -> None:
        while not self._done.is_set():
            delay = Delay(self._server)
            assert self._server.get("/v2/health/live")[0] == 200
            self.slowest = max(self.slowest, delay.seconds())

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def reset_peak_memory(server: Server) -> int:
    """Start a new measurement of the worker's peak memory. Returns its memory now, in bytes.

    Without a reset, the peak of an earlier test would hide that of a later one.
    """
    (pid,) = server.worker_pids()
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_memory(server)


def peak_memory(server: Server) -> int:
    """The worker's largest resident set since the last reset, in bytes."""
    (pid,) = server.worker_pids()
    (line,) = (
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def tensor(data: Any, name: str = "image", datatype: str = "UINT8", shape: Any = None) -> bytes:
    fields = {"name": name, "datatype": datatype, "shape": shape or [1, 28, 28], "data": data}
    return json.dumps({"inputs": [fields]}).encode()


def test_long_string_among_many_is_rejected_without_delay(target: Server) -> None:
    before = reset_peak_memory(target)
    for long, count, code, said in (
        (300_000, 1500, 400, "numbers"),
        (1_500_000, 130_000, 400, "numbers"),  # about as much as JSON may have
        (4_000_000, 1_000_000, 413, "max_json_bytes"),
    ):
        with Pulse(target) as pulse:
            status, answer = target.post(INFER, tensor(["a" * long, *[""] * count]), JSON)
        assert status == code
        assert said in answer["error"]
        assert pulse.slowest < 1.5
    assert peak_memory(target) - before < 300e6


def test_deeply_nested_numbers_are_rejected(target: Server) -> None:
    nested: Any = 1
    for _ in range(500):
        nested = [nested]
    status, answer = target.post(INFER, tensor(nested), JSON)
    assert (status, "deeply" in answer["error"]) == (400, True)


def test_many_empty_gzip_members_are_rejected_without_delay(target: Server) -> None:
    body = gzip.compress(b"") * 100_000
    delay = Delay(target)
    headers = {"content-encoding": "gzip", "content-type": JSON}
    status, answer = target.request("POST", INFER, body, headers)
    assert status == 400
    assert b"members" in answer
    assert delay.seconds() < 2


@pytest.mark.parametrize("count", [2, 999_000])
def test_many_strings_do_not_delay_other_requests(target: Server, count: int) -> None:
    raw = struct.pack("<I", 0) * 1_998_000
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "BYTES",
                    "shape": [count, 2],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [{"name": "y", "parameters": {"classification": 1}}],
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(header))}
    path = "/v2/models/identity_bytes/infer"
    with Pulse(target) as pulse:
        status, _ = target.request("POST", path, header + raw, headers)
    assert status == 400  # too many elements, or no numbers to classify
    assert pulse.slowest < 1.5


def test_large_json_does_not_delay_other_requests(target: Server) -> None:
    for data, datatype, code in (
        ([7] * 690_000, "UINT8", 400),  # about as much as JSON may have
        ([2**63 - 1, -1] * 83_000, "INT64", 400),
        ([7] * 2_000_000, "UINT8", 413),
        ([2**63 - 1, -1] * 150_000, "INT64", 413),
    ):
        name = "image" if datatype == "UINT8" else "x"
        body = tensor(data, name, datatype, [1, 28, 28] if name == "image" else [1, 2])
        path = INFER if name == "image" else "/v2/models/identity_int64/infer"
        with Pulse(target) as pulse:
            assert target.post(path, body, JSON)[0] == code
        assert pulse.slowest < 1.5


def test_stream_whose_answers_are_not_read_holds_little_memory(target: Server) -> None:
    """The server reads only some of 60 requests of 2 MB before their answers are read."""
    before = reset_peak_memory(target)
    request = inference.ModelInferRequest(model_name="identity_fp32")
    request.inputs.add(name="x", datatype="FP32", shape=[262_144, 2])
    request.raw_input_contents.append(bytes(2_097_152))
    sent = threading.Event()

    def requests() -> Iterator[Any]:
        for _ in range(60):
            yield request
        sent.set()

    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target.grpc, options=options) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        stream = stub.ModelStreamInfer(requests())
        next(stream)
        sent.wait(2)  # a server that reads everything is done by then; a correct one never is
        stream.cancel()
        assert not sent.is_set()
    assert peak_memory(target) - before < 120e6


def test_loading_delays_neither_health_nor_metadata(target: Server) -> None:
    path = "/v2/repository/models/slow/load"
    loading = [threading.Thread(target=target.post, args=(path, b"", JSON)) for _ in range(9)]
    for thread in loading:
        thread.start()
    delay = Delay(target)
    assert target.get("/v2/health/ready")[0] == 200
    assert target.get("/v2/models/mnist")[0] == 200
    assert delay.seconds() < 1.5
    assert any(thread.is_alive() for thread in loading)
    for thread in loading:
        thread.join()


def test_web_pages_of_other_servers_change_nothing(target: Server) -> None:
    unload = "/v2/repository/models/slow/unload"
    own = {"origin": f"http://{target.http}"}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://evil.example", "host": "evil.example"},
        {"host": "evil.example:8000"},
    ):
        for path in (unload, unload.replace("unload", "load"), "/v2/logging"):
            status, body = target.request("POST", path, b"{}", headers)
            assert status == 403, body
    assert target.get("/v2/models/slow/ready")[0] == 200
    assert target.request("POST", unload, b"", own)[0] == 200
    load = unload.replace("unload", "load")
    assert target.request("POST", load, b"", {"host": f"localhost:{target.http_port}"})[0] == 200


def test_get_with_a_body_changes_nothing(target: Server) -> None:
    before = target.get("/v2/logging")
    assert target.request("GET", "/v2/logging", b'{"log_verbose_level": 1}') == before
    assert target.request("GET", "/v2/trace/setting", b'{"trace_level": "TENSORS"}')[0] == 200
    assert target.get("/v2/logging") == before


@pytest.fixture(scope="module")
def pair(start_server: Callable[..., Server], models: Path) -> Server:
    server = start_server(models, workers=2, poll_interval=0.1, shared_memory_regions=2)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    return server


def states(server: Server, path: str) -> set[int]:
    return {server.get(path)[0] for _ in range(16)}


def test_failed_load_leaves_the_model_unloaded_in_every_worker(pair: Server, models: Path) -> None:
    model = "/v2/repository/models/identity_int64"
    ready = "/v2/models/identity_int64/ready"
    assert pair.post(f"{model}/unload", b"", JSON)[0] == 200
    broken = models / "identity_int64" / "2"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    status, answer = pair.post(f"{model}/load", b"", JSON)
    assert status == 400
    assert "failed to load" in answer["error"]
    assert states(pair, ready) == {404}
    shutil.rmtree(broken)
    assert pair.post(f"{model}/load", b"", JSON)[0] == 200
    assert states(pair, ready) == {200}


def test_change_whose_client_gives_up_applies_to_all_workers_or_none(pair: Server) -> None:
    triton = Triton("grpc", pair)
    for attempt in range(20):
        call = triton.unload_model if attempt % 2 == 0 else triton.load_model
        with contextlib.suppress(InferenceServerException):
            call("identity_fp32", client_timeout=0.0004 * (attempt + 1))
        pair.wait_until(lambda: len(states(pair, "/v2/models/identity_fp32/ready")) == 1)
    triton.load_model("identity_fp32")
    triton.close()


def test_region_whose_memory_is_gone_is_unregistered_everywhere_when_a_worker_restarts(
    pair: Server,
) -> None:
    memory = Path("/dev/shm/mnist-service-test-gone")
    memory.write_bytes(bytes(100))
    region = "/v2/systemsharedmemory/region/r"
    body = json.dumps({"key": memory.name, "offset": 0, "byte_size": 100}).encode()
    assert pair.post(f"{region}/register", body, JSON)[0] == 200
    assert states(pair, f"{region}/status") == {200}
    memory.unlink()
    starts = pair.log.read_text().count("Serving mnist")
    os.kill(pair.worker_pids()[0], signal.SIGKILL)
    pair.wait_until(lambda: pair.log.read_text().count("Serving mnist") == starts + 1)
    assert states(pair, f"{region}/status") == {404}
    assert "gone" in pair.log.read_text()


def test_statistics_answer_many_clients_at_once(pair: Server) -> None:
    triton = Triton("grpc.aio", pair)

    async def many() -> Any:
        ask = triton.client.get_inference_statistics
        return await asyncio.gather(*(ask("mnist") for _ in range(300)))

    assert len(triton.run(many())) == 300
    triton.close()


def test_expired_requests_are_counted_as_failed(target: Server) -> None:
    def failed() -> int:
        _, body = target.get("/v2/models/slow/stats")
        return int(json.loads(body)["model_stats"][0]["inference_stats"]["fail"]["count"])

    before = failed()
    request = json.loads(tensor(np.zeros((96, 28, 28), int).tolist(), shape=[96, 28, 28]))
    request["parameters"] = {"timeout": 20_000}
    status, _ = target.post("/v2/models/slow/infer", json.dumps(request).encode(), JSON)
    assert status == 504
    target.wait_until(lambda: failed() == before + 1)


@pytest.mark.parametrize("fast_grpc", [True, False])
def test_idle_streams_do_not_delay_a_stop(
    start_server: Callable[..., Server], fast_grpc: bool
) -> None:
    server = start_server(fast_grpc=fast_grpc, stop_timeout=600)

    async def stop_beside_idle_streams() -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            stream = inference_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
            await stream.write(inference.ModelInferRequest(model_name="none"))
            assert "none" in (await stream.read()).error_message  # the server has the stream
            # Both reads begin before the stop: when a connection ends, the client drops the
            # messages that it has received and that no read is waiting for.
            last, broken = (asyncio.ensure_future(call.read()) for call in (watch, stream))
            await asyncio.sleep(0)
            assert await asyncio.to_thread(server.stop) == 0  # fails after 60 s
            assert (await last).status == health_pb2.HealthCheckResponse.NOT_SERVING
            for reading in (watch.read(), broken):
                with pytest.raises(grpc.RpcError) as caught:
                    await reading
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(stop_beside_idle_streams())
