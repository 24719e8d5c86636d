"""A worker's memory is bounded for any mix of requests, and goes back to the system."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import io
import json
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grpc
import h2.connection
import numpy as np
import onnx
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.foreign_models import FLOAT, model, node
from tests.e2e.unusual_models import shape_from_contents
from tests.hostile_pictures import other, pictures
from tests.service.linear_model import publish_linear

MIB = 1024 * 1024
# The most that a worker may take, in MB; docs/decisions/memory.md says what takes it.
LIMIT_MB = 256
OCTETS = "application/octet-stream"


FORM = "multipart/form-data; boundary=line"
FORM_BEGIN = b'--line\r\nContent-Disposition: form-data; name="image"; filename="a.bmp"\r\n\r\n'
FORM_END = b"\r\n--line--\r\n"


class Post(NamedTuple):
    """A request, with the statuses that are right for it when the worker is busy and when not."""

    path: str
    body: bytes
    headers: dict[str, str]
    statuses: set[int]


def memory_mb(server: Server, name: str = "VmRSS") -> float:
    """The resident memory of the only worker: now, or at most since `forget_peak` (VmHWM)."""
    (worker,) = server.worker_pids()
    for line in Path(f"/proc/{worker}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"/proc has no {name}.")


def send(server: Server, post: Post) -> int:
    connection = http.client.HTTPConnection(server.http, timeout=120)
    try:
        headers = {"connection": "close"} | post.headers
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", post.path, post.body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except ConnectionResetError:
        # The body was on its way when it was refused, and the answer is lost with the connection.
        return 503
    finally:
        connection.close()


def picture_posts() -> list[Post]:
    posts = []
    for name, body in pictures(4_000_000, 16_000_000):
        kind = f"image/{name.partition(',')[0].split()[0].lower()}"
        statuses = {413} if "large" in name else {400} if "text" in name else {200}
        posts.append(Post("/predict", body, {"content-type": kind}, statuses | {503}))
        # 413 also for a page of too many marks.
        posts.append(Post("/read", body, {"content-type": kind}, statuses | {413, 503}))
    return posts


def large_posts() -> list[Post]:
    """Bodies that are as large as a request may be, in every form, and what becomes large."""
    images = np.random.default_rng(0).integers(0, 256, (8 * MIB // 784, 28, 28), np.uint8)
    raw = images.tobytes()
    fewer = json.dumps(images[:550].tolist()).encode()
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [2000, 784],
                    "parameters": {"binary_data_size": 2000 * 784 * 4},
                }
            ]
        }
    ).encode()
    noise = io.BytesIO()
    Image.frombytes("RGB", (1600, 1600), raw[: 1600 * 1600 * 3]).save(noise, "BMP")
    form = FORM_BEGIN + noise.getvalue() + FORM_END
    url = base64.b64encode(noise.getvalue()[: MIB * 3 // 2 - 1000]).decode()
    return [
        Post("/predict", form, {"content-type": FORM}, {200, 503}),
        Post("/predict", form.replace(b"image", b"photo"), {"content-type": FORM}, {400, 503}),
        Post(
            "/predict?explain=true",
            json.dumps({"image": f"data:image/bmp;base64,{url}"}).encode(),
            {"content-type": "application/json"},
            {400, 503},
        ),
        Post("/predict", raw, {"content-type": OCTETS}, {200, 503}),
        Post("/predict?model=linear", raw, {"content-type": OCTETS}, {200, 503}),
        Post(
            "/predict",
            gzip.compress(raw, 1)[: 8 * MIB],
            {"content-type": OCTETS, "content-encoding": "gzip"},
            {200, 400, 503},
        ),
        Post(
            "/predict",
            gzip.compress(bytes(8 * MIB // 784 * 784)),
            {"content-type": OCTETS, "content-encoding": "gzip"},
            {200, 503},
        ),
        Post("/predict", fewer, {"content-type": "application/json"}, {200, 503}),
        Post(
            "/predict",
            b"[" + b"[0]," * 400_000 + b"[0]]",
            {"content-type": "application/json"},
            {400, 413, 503},
        ),
        Post(
            "/v2/models/linear/infer",
            header + bytes(2000 * 784 * 4),
            {"inference-header-content-length": str(len(header)), "content-type": OCTETS},
            {200, 503},
        ),
    ]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "mnist").symlink_to(SHIPPED_MODELS / "mnist")
    publish_linear(tmp_path, card={"output_kinds": {"scores": "logits"}})
    return tmp_path


def test_any_mix_of_requests_stays_within_the_promise_and_its_memory_returns(
    start_server: Callable[..., Server], models: Path
) -> None:
    server = start_server(models)
    posts = picture_posts() + large_posts() * 3
    small = Post("/predict", bytes(784), {"content-type": OCTETS}, {200})
    for _ in range(100):
        send(server, small)
    # The code of codecs, pipelines and transports is in memory from its first use on.
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        headers = {"content-type": f"image/{kind.lower()}"}
        for path in ("/predict", "/predict?explain=true", "/read"):
            assert send(server, Post(path, other(300, kind), headers, {200})) == 200
    few = json.dumps(np.zeros((50, 28, 28), int).tolist()).encode()
    for _ in range(10):
        assert (
            send(server, Post("/predict", few, {"content-type": "application/json"}, {200})) == 200
        )
    raw = {"content-type": OCTETS}
    for path in ("/predict", "/predict?model=linear"):
        assert send(server, Post(path, bytes(784 * 600), raw, {200})) == 200
    zipped = small._replace(
        body=gzip.compress(bytes(784)), headers=raw | {"content-encoding": "gzip"}
    )
    assert send(server, zipped) == 200
    with grpc.insecure_channel(server.grpc) as channel:
        stub = digits_pb2_grpc.DigitClassifierStub(channel)
        stub.Predict(digits_pb2.PredictRequest(pixels=bytes(784 * 600)), timeout=120)
    at_rest = memory_mb(server)
    wrong: list[tuple[int, Post]] = []

    def client(seed: int) -> None:
        order = random.Random(seed).sample(posts, len(posts))
        for post in order[::2]:
            if (status := send(server, post)) not in post.statuses:
                wrong.append((status, post))

    def grpc_client(seed: int) -> None:
        order = random.Random(seed).sample(posts, len(posts))
        with grpc.insecure_channel(server.grpc) as channel:
            stub = digits_pb2_grpc.DigitClassifierStub(channel)
            for post in order[::3]:
                kind = "pixels" if post.headers["content-type"] == OCTETS else "image"
                try:
                    stub.Predict(digits_pb2.PredictRequest(**{kind: post.body}), timeout=120)
                except grpc.RpcError as error:
                    if error.code() not in (
                        grpc.StatusCode.INVALID_ARGUMENT,
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        grpc.StatusCode.UNAVAILABLE,
                    ):
                        wrong.append((-1, post))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, seed) for seed in range(5)]
        clients += [pool.submit(grpc_client, seed) for seed in range(3)]
        for done in clients:
            done.result()
    assert not [(status, post.path, post.headers, len(post.body)) for status, post in wrong]
    assert memory_mb(server, "VmHWM") < LIMIT_MB
    server.wait_until(lambda: memory_mb(server) < 1.2 * at_rest, seconds=60)
    assert send(server, small) == 200


def test_half_sent_bodies_hold_no_more_than_the_budget_and_shut_nobody_out(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    at_rest = memory_mb(server)
    with contextlib.ExitStack() as on_exit:
        connections = []
        for _ in range(60):
            connection = socket.create_connection(("127.0.0.1", server.http_port))
            connections.append(on_exit.enter_context(connection))
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8000000\r\n"
                b"content-type: application/octet-stream\r\n\r\n"
            )
            connection.setblocking(False)
        for _ in range(20):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(bytes(MIB))
        small = Post("/predict", bytes(784), {"content-type": OCTETS}, {200})
        assert send(server, small) == 200
        # Those that are let in stall, so they give way to a body that does not.
        large = small._replace(body=bytes(2 * MIB // 784 * 784))
        server.wait_until(lambda: send(server, large) == 200, seconds=120)
        assert memory_mb(server, "VmHWM") - at_rest < 80
        text = server.get("/metrics")[1].decode()
        assert "mnist_inflight_refused_total" in text
        assert "mnist_inflight_bytes" in text
    server.wait_until(lambda: memory_mb(server) < 1.2 * at_rest)


def test_long_headers_of_requests_without_an_end_leave_room_for_others(
    start_server: Callable[..., Server],
) -> None:
    """Fifty connections with 128 requests each, whose headers have 60 KB and whose bodies wait."""
    server = start_server()
    at_rest = memory_mb(server)
    client = h2.connection.H2Connection()
    # Texts as they are: the Huffman code in Python takes most of a minute.
    client.encoder.encode = partial(client.encoder.encode, huffman=False)
    client.initiate_connection()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/predict")]
    fields += [(":authority", server.http), ("content-type", OCTETS)]
    fields += [(f"x-{number}", "a" * 3900) for number in range(15)]
    for stream in range(128):
        client.send_headers(2 * stream + 1, [*fields, ("x-stream", str(stream))])
    requests = client.data_to_send()
    with contextlib.ExitStack() as on_exit:
        for _ in range(50):
            connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=120)
            on_exit.enter_context(connection)
            with contextlib.suppress(OSError):
                connection.sendall(requests)
        small = Post("/predict", bytes(784), {"content-type": OCTETS}, {200})
        assert send(server, small) == 200
        assert memory_mb(server, "VmHWM") - at_rest < 60
        refused = 'mnist_inflight_refused_total{transport="http"}'
        metrics = server.get("/metrics")[1].decode().splitlines()
        (count,) = [line.split()[-1] for line in metrics if line.startswith(refused)]
        assert float(count) > 50 * 64  # most of them, so they arrived


ZEROS = "/v2/models/zeros/infer"


def zeros_server(
    start_server: Callable[..., Server], root: Path, **settings: object
) -> tuple[Server, Callable[..., socket.socket]]:
    """A server whose answers are as long as requests say, and a client that asks for N zeros.

    The client's socket takes next to nothing of the answer.
    """
    folder = root / "zeros" / "1"
    folder.mkdir(parents=True)
    onnx.save(shape_from_contents().model, folder / "model.onnx")
    server = start_server(root, model="zeros", **settings)

    def ask(count: int, **parameters: object) -> socket.socket:
        body = for_zeros(count, **parameters)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.http_port))
        head = f"POST {ZEROS} HTTP/1.1\r\nhost: localhost\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    return server, ask


def for_zeros(count: int, **parameters: object) -> bytes:
    """The body of a request for N zeros."""
    tensor = {"name": "x", "datatype": "INT64", "shape": [1], "data": [count]}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def test_answers_that_nobody_reads_hold_no_more_than_the_budget(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Forty clients ask for 8 MB; one that takes a byte now and then would be in time for good."""
    server, ask = zeros_server(start_server, tmp_path)
    with contextlib.ExitStack() as on_exit:
        for _ in range(40):
            connection = on_exit.enter_context(ask(2 * MIB, binary_data_output=True))
            assert connection.recv(1)  # one answer after the other is made
        post = Post(ZEROS, for_zeros(2 * MIB, binary_data_output=True), {}, {200})
        # Those who read get through: the others give way to them.
        server.wait_until(lambda: send(server, post) == 200, seconds=120)
        assert memory_mb(server, "VmHWM") < LIMIT_MB
        metrics = server.get("/metrics")[1].decode()
        assert 'mnist_inflight_refused_total{transport="http"}' in metrics


@pytest.mark.parametrize("transport", ["HTTP", "gRPC"])
def test_small_requests_with_large_outputs_hold_no_more_than_the_budget(
    start_server: Callable[..., Server], tmp_path: Path, transport: str
) -> None:
    """A hundred clients at a time whose outputs have 2 MB; before, a worker of 670 MB."""
    (tmp_path / "wide" / "1").mkdir(parents=True)
    factors = {"w": np.ones((1, 500_000), np.float32)}
    product = model(
        [node("Mul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 1])],
        [("y", FLOAT, ["n", 500_000])],
        factors,
    )
    onnx.save(product, tmp_path / "wide" / "1" / "model.onnx")
    server = start_server(tmp_path, model="wide")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    post = Post("/v2/models/wide/infer", body, {}, {200})
    message = inference.ModelInferRequest(model_name="wide", raw_input_contents=[bytes(4)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])

    def is_answered() -> bool:
        """A client that takes its answer slowly, as on a busy machine, may be refused."""
        if transport == "HTTP":
            return send(server, post) == 200
        with grpc.insecure_channel(server.grpc) as channel:
            stub = inference_grpc.GRPCInferenceServiceStub(channel)
            try:
                (output,) = stub.ModelInfer(message).raw_output_contents
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                return False
            return len(output) == 2_000_000

    def client(_: int) -> None:
        server.wait_until(is_answered, seconds=120)

    with ThreadPoolExecutor(100) as pool:
        for _ in pool.map(client, range(200)):
            pass
    assert memory_mb(server, "VmHWM") < LIMIT_MB


def test_a_client_that_does_not_read_its_answer_loses_its_connection(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    # The request is short: body_timeout is for requests too.
    server, ask = zeros_server(start_server, tmp_path, body_timeout=1)
    with ask(4 * MIB) as connection:  # as much JSON as the kernel's buffers cannot hold
        port = connection.getsockname()[1]
        server.wait_until(lambda: not has_connection_to(port))


def has_connection_to(port: int) -> bool:
    """Whether any socket is connected to this port of a client.

    The client itself may not hear of the end: TCP_USER_TIMEOUT sends nothing.
    """
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[2].endswith(f":{port:04X}") for line in lines)


@pytest.mark.parametrize("transport", ["HTTP", "gRPC"])
def test_refused_requests_leave_no_bodies_behind(
    start_server: Callable[..., Server], transport: str
) -> None:
    """Each of them stayed until the next garbage collection: 20 bodies of 8 MB."""
    server = start_server(max_queue=64)
    body = bytes(8 * MIB // 784 * 784)
    post = Post("/predict", body, {"content-type": OCTETS}, {200, 503})

    def client(number: int) -> None:
        if transport == "HTTP":
            for _ in range(6):
                assert send(server, post) in post.statuses
            return
        with grpc.insecure_channel(server.grpc) as channel:
            stub = digits_pb2_grpc.DigitClassifierStub(channel)
            for _ in range(6):
                with contextlib.suppress(grpc.RpcError):
                    stub.Predict(digits_pb2.PredictRequest(pixels=body), timeout=120)

    at_rest = memory_mb(server)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client, range(4)))
    assert memory_mb(server, "VmHWM") - at_rest < 80
