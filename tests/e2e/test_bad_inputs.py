"""Every bad input of the table gets its code and a sentence that names the field.

The table is in tests/e2e/bad_inputs/. Each request is followed by a good one on the same
connection, unless HTTP says that the connection ends: then it ends. After all of them the process
is the same, ready and as large as before, and its log has no error of the server. The OpenAPI
document has every answer over HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from tritonclient.grpc import service_pb2 as pb

from service.grpc.http2 import frames as wire
from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.conftest import SHIPPED_MODELS, Server
from tests.e2e.bad_inputs import control, digits, grpc_framing, http_framing, inference, reading
from tests.e2e.bad_inputs.case import INFERENCE, Frames, Grpc, Http, framed
from tests.e2e.onnx_models import ELEMENT_TYPES, publish_identity, publish_scalar, publish_sum
from tests.e2e.openapi.conformance import check

CASES: list[Http | Grpc | Frames] = [
    *(*inference.CASES, *digits.CASES, *reading.CASES, *control.CASES, *http_framing.CASES),
    *(*grpc_framing.GRPC, *grpc_framing.FRAMES),
]
CODES = {
    "OK": 0,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAUTHENTICATED": 16,
}
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
_SECONDS = 30
_QUOTED_LINES = ("a\x1b[31m\nb", "a\nb")  # what a sentence may quote of the table's own names


def test_the_table_has_at_least_250_names() -> None:
    assert len({case.name for case in CASES}) >= 250


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def errors_in_log(server: Server) -> list[str]:
    lines = server.log.read_text().splitlines()
    records = [json.loads(line) for line in lines]  # every line is one record
    return [
        line
        for line, record in zip(lines, records, strict=True)
        if "Traceback" in line
        or (
            record["level"] not in ("debug", "info")
            # It reports a busy machine as well.
            and record["logger"] != "service.observe.loop_lag"
        )
    ]


@pytest.fixture(scope="module")
def start(
    start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[bool], Server]]:
    """A function that starts a server per gRPC front; at the end all of them are unharmed."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(SHIPPED_MODELS / "mnist", root / "mnist")
    for datatype in ELEMENT_TYPES:
        publish_identity(root, datatype)
    publish_sum(root)
    publish_scalar(root)
    key = f"mnist-bad-inputs-{os.getpid()}"
    memory = Path("/dev/shm") / key
    memory.write_bytes(bytes(1000))
    started: dict[bool, tuple[Server, list[int], int]] = {}

    def of(fast_grpc: bool) -> Server:
        if fast_grpc in started:
            return started[fast_grpc][0]
        server = start_server(root, shared_memory_regions=3, fast_grpc=fast_grpc, workers=1)
        server.is_grpcio = not fast_grpc
        for region in ("pixels", "second"):
            path = f"/v2/systemsharedmemory/region/{region}/register"
            body = json.dumps({"key": key, "byte_size": 1000}).encode()
            assert server.post(path, body, "application/json")[0] == 200
        # What later requests need is allocated: threads, buffers, the codecs of pictures.
        for case in (*digits.CASES, *inference.CASES)[::2]:
            if isinstance(case, Http):
                _http(server, case)
        (pid,) = server.worker_pids()
        started[fast_grpc] = server, [pid], resident_bytes(pid)
        return server

    yield of
    memory.unlink()
    for server, pids, before in started.values():
        assert server.worker_pids() == pids
        assert server.is_ready()
        assert errors_in_log(server) == []
        # The memory of large requests is returned once the worker is idle.
        server.wait_until(lambda pid=pids[0], most=1.2 * before: resident_bytes(pid) < most)


def _key(content: bytes) -> bytes:
    """A request with the name of the shared memory object in place of `{key}`."""
    key = f"mnist-bad-inputs-{os.getpid()}".encode()
    if b'"{key}"' not in content:
        return content
    content = content.replace(b'"{key}"', b'"' + key + b'"')
    head, _, body = content.partition(b"\r\n\r\n")
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + (
        b"\r\n\r\n" + body
    )


class HttpConnection:
    """One connection that sends any bytes and reads answers."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.http_port), _SECONDS)

    def send(self, content: bytes) -> tuple[int, str, bytes]:
        """Status, content type and body of the answer."""
        with contextlib.suppress(
            ConnectionError
        ):  # an answer may come before the whole body is sent
            self.socket.sendall(content)
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.headers.get("content-type", ""), response.read()

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


def _http(server: Server, case: Http) -> tuple[int, str, bytes]:
    """The answer to a case; then its connection is as it must be."""
    connection = HttpConnection(server)
    try:
        answer = connection.send(_key(case.content))
        if case.is_request:
            method, target, _ = case.content.split(b" ", 2)
            check(method.decode(), target.decode(), answer[0], connection.headers, answer[2])
        if case.closes:
            assert connection.is_closed()
        else:
            assert connection.send(LIVE)[0] == 200, "the connection is not usable afterwards"
    finally:
        connection.socket.close()
    return answer


def check_sentence(sentence: str, words: str) -> None:
    assert words in sentence
    for quoted in _QUOTED_LINES:
        sentence = sentence.replace(quoted, "")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) <= 1000


def names(cases: Sequence[Http | Grpc | Frames]) -> list[str]:
    return [case.name for case in cases]


HTTP = [case for case in CASES if isinstance(case, Http)]
GRPC = [case for case in CASES if isinstance(case, Grpc)]
ON_GRPCIO = [case for case in GRPC if case.fronts == "both"]
FRAMES = [case for case in CASES if isinstance(case, Frames)]


@pytest.mark.parametrize("case", HTTP, ids=names(HTTP))
def test_http(start: Callable[[bool], Server], case: Http) -> None:
    status, content_type, body = _http(start(True), case)
    assert status == case.status, body[:500]
    assert content_type == "application/json"
    check_sentence(json.loads(body)["error"], case.words)


@pytest.mark.parametrize("case", digits.BLANK, ids=[case.name for case in digits.BLANK])
def test_a_blank_picture_is_answered_and_not_accepted(
    start: Callable[[bool], Server], case: digits.Blank
) -> None:
    server = start(True)
    status, answer = server.post(digits.PREDICT, case.content, "image/png")
    assert status == 200, answer
    (prediction,) = answer["predictions"]
    assert (prediction["accepted"], prediction["reason"]) == (False, "blank")
    assert prediction["hint"].endswith(("?", "."))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = digits_pb2_grpc.DigitClassifierStub(channel)
        (same,) = stub.Predict(digits_pb2.PredictRequest(image=case.content)).predictions
    assert (same.accepted, same.reason) == (False, "blank")
    assert same.hint == prediction["hint"]


class GrpcConnection:
    """One HTTP/2 connection on which calls with any frames are made."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.grpc_port), _SECONDS)
        # Without this, each small write waits for the acknowledgement of the one before.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()

    def close(self) -> None:
        self._socket.close()

    def call(self, case: Grpc) -> tuple[int, str, bytes]:
        """Status, its message and the data of a call."""
        stream = self._h2.get_next_available_stream_id()
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": case.path,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        } | dict(case.headers)
        self._h2.send_headers(stream, [(k, v) for k, v in fields.items() if v is not None])
        answer: dict[str, str] = {}
        content = b""
        ended = False
        for data in case.data:
            sent = 0
            while sent < len(data) and not ended:
                size = min(len(data) - sent, self._h2.local_flow_control_window(stream), 16_384)
                if size:
                    self._h2.send_data(stream, data[sent : sent + size])
                    sent += size
                else:
                    content, ended = self._receive(stream, answer, content)
        if not ended:
            self._h2.end_stream(stream)
        while not ended:
            content, ended = self._receive(stream, answer, content)
        return int(answer.get("grpc-status", -1)), unquote(answer.get("grpc-message", "")), content

    def _receive(self, stream: int, answer: dict[str, str], content: bytes) -> tuple[bytes, bool]:
        """Send what waits, read once; the data so far, and whether the call has ended."""
        self._socket.sendall(self._h2.data_to_send())
        received = self._socket.recv(65536)
        assert received, "the server closed the connection"
        ended = False
        for event in self._h2.receive_data(received):
            if getattr(event, "stream_id", stream) != stream:
                continue
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                answer |= dict(event.headers or ())
            elif isinstance(event, h2.events.DataReceived):
                content += event.data or b""
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                ended = True
        self._socket.sendall(self._h2.data_to_send())
        return content, ended


GOOD = Grpc("live", f"{INFERENCE}/ServerLive", [framed(b"")], "OK", "")


def check_call(server: Server, case: Grpc) -> None:
    connection = GrpcConnection(server)
    case = case._replace(data=[_message_with_key(data) for data in case.data])
    try:
        status, message, content = connection.call(case)
        assert status == CODES[case.code], message
        if case.code == "OK":  # a stream that reports the error of one of its messages
            message = pb.ModelStreamInferResponse.FromString(content[5:]).error_message
        check_sentence(message, case.words)
        assert connection.call(GOOD)[0] == 0, "the connection is not usable afterwards"
    finally:
        connection.close()


def _message_with_key(data: bytes) -> bytes:
    """The DATA of a registration with the name of the shared memory object for `{key}`."""
    if b"{key}" not in data:
        return data
    message = pb.SystemSharedMemoryRegisterRequest.FromString(data[5:])
    message.key = f"mnist-bad-inputs-{os.getpid()}"
    return framed(message)


@pytest.mark.parametrize("case", GRPC, ids=names(GRPC))
def test_grpc(start: Callable[[bool], Server], case: Grpc) -> None:
    check_call(start(True), case)


@pytest.mark.parametrize("case", ON_GRPCIO, ids=names(ON_GRPCIO))
def test_grpcio(start: Callable[[bool], Server], case: Grpc) -> None:
    check_call(start(False), case)


@pytest.mark.parametrize("case", FRAMES, ids=names(FRAMES))
def test_frames(start: Callable[[bool], Server], case: Frames) -> None:
    server = start(True)
    kind, _, number = case.reaction.partition(" ")
    live = wire.frame(wire.HEADERS, wire.END_HEADERS, 101, _block_of_live())
    live += wire.frame(wire.DATA, wire.END_STREAM, 101, framed(b""))
    reader = wire.FrameReader(1 << 24, 1 << 24)
    list(reader.frames(wire.PREFACE))
    received: list[wire.Frame] = []
    with socket.create_connection(("127.0.0.1", server.grpc_port), _SECONDS) as client:
        client.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0) + case.content + live)
        while not _is_answered(received):
            content = client.recv(65536)
            if not content:
                break
            received += reader.frames(content)
    if kind == "goaway":
        (payload,) = [frame[3] for frame in received if frame[0] == wire.GOAWAY]
        assert struct.unpack_from(">I", payload, 4)[0] == int(number), payload
        assert payload[8:]
        return
    assert _is_answered(received), "the connection is not usable afterwards"
    resets = [struct.unpack(">I", f[3])[0] for f in received if f[0] == wire.RST_STREAM]
    if kind == "reset":
        assert resets == [int(number)]
    else:
        (headers,) = [f[3] for f in received if f[0] == wire.HEADERS and f[2] == 1]
        assert number.encode() in headers
        assert resets == [wire.NO_ERROR]


def _block_of_live() -> bytes:
    from tests.service.grpc.http2.client import literal_block

    return literal_block(list(grpc_framing.REQUEST.items()))


def _is_answered(received: list[wire.Frame]) -> bool:
    """Whether the good call that follows a case is answered."""
    return any(frame[0] == wire.DATA and frame[2] == 101 for frame in received)
