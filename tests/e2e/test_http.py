"""The HTTP front over real sockets: answers, rejections, and agreement with Flask."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, Mnist, Server

RAW = "application/octet-stream"
JSON = "application/json"


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def test_every_form_of_an_image_yields_the_same_digit(server: Server, mnist: Mnist) -> None:
    image = mnist.images[0]
    forms = [
        (image.tobytes(), RAW),
        (json.dumps(image.tolist()).encode(), JSON),
        (json.dumps(image.ravel().tolist()).encode(), JSON),
        (json.dumps({"image": [image.tolist()]}).encode(), JSON),
        (encoded(image, "PNG"), "image/png"),
        (encoded(image, "JPEG"), "image/jpeg"),
        (encoded(image, "WEBP"), "image/webp"),
        (encoded(image, "BMP"), "image/bmp"),
        (encoded(image, "GIF"), "image/gif"),
        (form(encoded(image, "PNG")), FORM),
        (encoded(255 - image.repeat(10, 0).repeat(10, 1), "PNG"), "image/png"),
    ]
    for body, content_type in forms:
        status, answer = server.post("/predict", body, content_type)
        assert status == 200, answer
        (prediction,) = answer["predictions"]
        assert prediction["digit"] == mnist.labels[0] == 7
        assert len(prediction["probabilities"]) == 10
        assert abs(sum(prediction["probabilities"]) - 1) < 1e-6
        assert 0 <= prediction["entropy_bits"] < 3.33


def test_curl_sends_a_picture_as_a_form(server: Server) -> None:
    picture = ROOT / "docs" / "seven.png"
    command = ["curl", "-sS", "-F", f"image=@{picture}", f"http://{server.http}/predict"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["predictions"][0]["digit"] == 7


def test_black_on_white_drawings_are_recognised(server: Server, mnist: Mnist) -> None:
    correct = 0
    for image, label in zip(mnist.images[:100], mnist.labels[:100], strict=True):
        drawing = Image.fromarray(255 - image).resize((200, 200), Image.Resampling.BICUBIC)
        page = Image.new("L", (400, 300), 255)
        page.paste(drawing, (180, 60))
        buffer = io.BytesIO()
        page.save(buffer, "PNG")
        _, answer = server.post("/predict", buffer.getvalue(), "image/png")
        correct += answer["predictions"][0]["digit"] == label
    assert correct >= 95


WRONG = [
    ("/predict", b"", RAW, 400, "pixels"),
    ("/predict", bytes(783), RAW, 400, "pixels"),
    ("/predict", b"", JSON, 400, "body"),
    ("/predict", b"{", JSON, 400, "JSON"),
    ("/predict", b"[NaN]", JSON, 400, "JSON"),
    ("/predict", b"{}", JSON, 400, "image"),
    ("/predict", b"7", JSON, 400, "image"),
    ("/predict", b"[[1,2],[3]]", JSON, 400, "image"),
    ("/predict", b"[1,2,3]", JSON, 400, "image"),
    ("/predict", json.dumps([0.5] * 784).encode(), JSON, 400, "image"),
    ("/predict", json.dumps([256] * 784).encode(), JSON, 400, "image"),
    ("/predict", json.dumps(["a"] * 784).encode(), JSON, 400, "image"),
    ("/predict", b"GIF89a", "image/png", 400, "image"),
    ("/predict", b"", "image/jpeg", 400, "image"),
    ("/predict", b"x", "text/plain", 415, "Content-Type"),
    ("/predict?model=none", bytes(784), RAW, 404, "none"),
    ("/predict?version=99", bytes(784), RAW, 404, "99"),
    ("/predict?version=one", bytes(784), RAW, 400, "one"),
    ("/v2/models/none/infer", b'{"inputs":[{}]}', JSON, 400, "inputs[0].name"),
    ("/v2/models/mnist/infer", b"[]", JSON, 400, "object"),
    ("/v2/models/mnist/infer", b'{"inputs":[]}', JSON, 400, "inputs"),
    (
        "/v2/models/mnist/infer",
        b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,28,28],"data":[0]}]}',
        JSON,
        400,
        "UINT8",
    ),
    (
        "/v2/models/mnist/infer",
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,28],"data":[0]}]}',
        JSON,
        400,
        "image",
    ),
    (
        "/v2/models/mnist/infer",
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,28,28],"data":[0]}]}',
        JSON,
        400,
        "image",
    ),
    (
        "/v2/models/none/infer",
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,28,28],"data":[0]}]}',
        JSON,
        404,
        "none",
    ),
]


@pytest.mark.parametrize(("path", "body", "content_type", "status", "message"), WRONG)
def test_wrong_request_is_rejected_with_one_sentence_that_names_the_field(
    server: Server, path: str, body: bytes, content_type: str, status: int, message: str
) -> None:
    answered, answer = server.post(path, body, content_type)
    assert answered == status, answer
    assert list(answer) == ["error"]
    assert message in answer["error"]


def test_rejected_request_leaves_the_connection_usable(server: Server, mnist: Mnist) -> None:
    connection = http.client.HTTPConnection(server.http, timeout=120)
    for body, status in ((b"[1]", 400), (mnist.images[0].tobytes(), 200)):
        kind = JSON if status == 400 else RAW
        connection.request("POST", "/predict", body, {"content-type": kind})
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


def test_infer_follows_the_open_inference_protocol(server: Server, mnist: Mnist) -> None:
    request = {
        "id": "abc",
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": [2, 28, 28],
                "data": mnist.images[:2].ravel().tolist(),
                "parameters": {"unknown": 1},
            }
        ],
        "outputs": [{"name": "probabilities"}, {"name": "logits"}],
        "unknown": True,
    }
    status, answer = server.post("/v2/models/mnist/infer", json.dumps(request).encode(), JSON)
    assert status == 200
    assert (answer["model_name"], answer["id"]) == ("mnist", "abc")
    assert [output["name"] for output in answer["outputs"]] == ["probabilities", "logits"]
    output = answer["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("FP32", [2, 10])
    digits = np.array(output["data"]).reshape(2, 10).argmax(axis=1)
    assert (digits == mnist.labels[:2]).all()


def test_metadata_and_health_endpoints_answer(server: Server) -> None:
    for path in ("/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/mnist/ready"):
        assert server.get(path)[0] == 200
    status, body = server.get("/v2/models/mnist")
    metadata = json.loads(body)
    assert status == 200
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert metadata["parameters"]["execution_provider"].endswith("ExecutionProvider")
    assert server.get("/v2/models/mnist/versions/99")[0] == 404
    assert server.get("/v2/models/none/ready")[0] == 404


def test_metrics_count_requests_and_name_the_provider(server: Server) -> None:
    server.post("/predict", bytes(784), RAW)
    _, body = server.get("/metrics")
    text = body.decode()
    assert 'mnist_request_seconds_count{code="200",operation="predict",transport="http"}' in text
    assert "mnist_batch_images_count" in text
    assert 'provider="CPUExecutionProvider"' in text


def test_request_id_is_returned_and_logged(server: Server) -> None:
    connection = http.client.HTTPConnection(server.http, timeout=120)
    headers = {"content-type": RAW, "x-request-id": "mine-42"}
    connection.request("POST", "/predict", bytes(784), headers)
    assert connection.getresponse().getheader("x-request-id") == "mine-42"
    connection.close()
    server.wait_until(lambda: '"request_id": "mine-42"' in server.log.read_text())
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "mine-42"]
    assert (line["code"], line["operation"], line["level"]) == ("200", "predict", "info")


@pytest.fixture(scope="module")
def small_server(start_server: Callable[..., Server]) -> Server:
    return start_server(max_request_bytes=2048, body_timeout=0.3)


def test_body_over_the_limit_is_rejected_with_413(small_server: Server) -> None:
    status, answer = small_server.post("/predict", bytes(784 * 10), RAW)
    assert status == 413
    assert "max_request_bytes" in answer["error"]


def test_chunked_body_is_read_up_to_the_limit(small_server: Server) -> None:
    for count, status in ((2, 200), (50, 413)):
        connection = http.client.HTTPConnection(small_server.http, timeout=120)
        chunks = (bytes(784) for _ in range(count))
        # The server may reject the body before the last chunk is sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(
                "POST", "/predict", chunks, {"content-type": RAW}, encode_chunked=True
            )
        assert connection.getresponse().status == status
        connection.close()


def test_body_that_never_arrives_is_rejected_with_408(small_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", small_server.http_port), timeout=120) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/octet-stream\r\ncontent-length: 784\r\n\r\nabc"
        )
        assert b"408" in client.recv(4096).split(b"\r\n")[0]


FORM = "multipart/form-data; boundary=----Line"


def form(picture: bytes, field: str = "image") -> bytes:
    """A form as browsers and curl send it."""
    return (
        (
            f'------Line\r\nContent-Disposition: form-data; name="{field}"; filename="7.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        + picture
        + b"\r\n------Line--\r\n"
    )


def corpus(mnist: Mnist) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    for path, body, content_type, *_ in WRONG:
        yield "POST", path, body, {"content-type": content_type}
    image = mnist.images[3]
    yield "POST", "/predict", image.tobytes(), {"content-type": RAW}
    yield "POST", "/predict?model=mnist&version=", image.tobytes(), {"content-type": RAW}
    yield "POST", "/predict", encoded(image, "PNG"), {"content-type": "image/png; q=1"}
    yield "POST", "/predict", json.dumps(image.tolist()).encode(), {"content-type": JSON}
    for kind in ("JPEG", "WEBP", "BMP", "GIF"):
        yield "POST", "/predict", encoded(image, kind), {"content-type": f"image/{kind.lower()}"}
    png = encoded(image.repeat(3, 0).repeat(3, 1), "PNG")
    yield "POST", "/predict?explain=true", png, {"content-type": "image/png"}
    yield "POST", "/predict?explain=perhaps", png, {"content-type": "image/png"}
    url = {"image": f"data:image/png;base64,{base64.b64encode(png).decode()}"}
    yield "POST", "/predict", json.dumps(url).encode(), {"content-type": JSON}
    for body in (form(png), form(png)[:-9], form(png, "photo"), b""):
        for boundary in (FORM, "multipart/form-data"):
            yield "POST", "/predict", body, {"content-type": boundary}
    yield "POST", "/predict/", image.tobytes(), {"content-type": RAW}
    yield "POST", "/predict", bytes(9 * 1024 * 1024), {"content-type": RAW}
    yield "PUT", "/predict", b"", {}
    yield "GET", "/predict", b"", {}
    yield "GET", "/nowhere", b"", {}
    yield "GET", "/v2/models/mnist/infer", b"", {}
    yield "GET", "/v2/health/ready", b"", {}
    infer = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": [1, 28, 28],
                "data": image.ravel().tolist(),
            }
        ]
    }
    for path in ("/v2/models/mnist/infer", "/v2/models/mnist/versions/1/infer"):
        yield "POST", path, json.dumps(infer).encode(), {"content-type": JSON}
    yield "POST", "/v2/models/mn%69st/infer", json.dumps(infer).encode(), {"content-type": JSON}


def answer_of(server: Server, request: tuple[str, str, bytes, dict[str, str]]) -> Any:
    method, path, body, headers = request
    connection = http.client.HTTPConnection(server.http, timeout=120)
    # The server may reject the body by its length before it is sent.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, headers | {"x-request-id": "same"})
    response = connection.getresponse()
    headers_of_all = ((name.lower(), value) for name, value in response.getheaders())
    # Times differ; that they are told does not.
    returned = [
        (name, "" if name == "server-timing" else value)
        for name, value in headers_of_all
        if name not in ("date", "server")  # Granian names itself
    ]
    content = response.read()
    connection.close()
    return response.status, sorted(returned), content


@pytest.mark.parametrize("other", [{"fast_lane": False}, {"fast_http": False}])
def test_flask_and_granian_give_the_same_answers(
    server: Server, start_server: Callable[..., Server], mnist: Mnist, other: dict[str, bool]
) -> None:
    compared = start_server(**other)
    for request in corpus(mnist):
        assert answer_of(server, request) == answer_of(compared, request), request[:2]
