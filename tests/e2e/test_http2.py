"""The HTTP/2 front against hostile and unusual clients, frame by frame over real sockets.

Source: RFC 9113; the numbers in docstrings are its sections.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

from service.grpc.http2 import frames as wire
from tests.conftest import Mnist, Server
from tests.e2e.onnx_models import publish_slow_model

INFER = "/inference.GRPCInferenceService/ModelInfer"
NO_SETTINGS = wire.frame(wire.SETTINGS, 0, 0)


def headers(path: str = INFER, content_type: str = "application/grpc", **more: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "content-type": content_type,
        "te": "trailers",
    } | {name.replace("_", "-"): value for name, value in more.items()}
    return bytes(hpack.Encoder().encode(list(fields.items())))


def message(mnist: Mnist, count: int = 1) -> bytes:
    request = inference.ModelInferRequest(model_name="mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=[count, 28, 28])
    request.raw_input_contents.append(mnist.images[:count].tobytes())
    content = request.SerializeToString()
    return struct.pack(">BI", 0, len(content)) + content


class Peer:
    """A socket to the gRPC port; `frames` yields (type, flags, stream id, payload)."""

    def __init__(self, server: Server, start: bytes = wire.PREFACE + NO_SETTINGS) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=120)
        self._received = b""
        self.send(start)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield frames until the server closes the connection."""
        while True:
            while len(self._received) >= 9:
                high, low, kind, flags, stream = wire.FRAME_HEADER.unpack_from(self._received)
                end = 9 + (high << 8 | low)
                if len(self._received) < end:
                    break
                payload, self._received = self._received[9:end], self._received[end:]
                yield kind, flags, stream, payload
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                return
            if not more:
                return
            self._received += more

    def goaway(self) -> tuple[int, str]:
        """Return the code and the reason of GOAWAY once the server has closed the connection."""
        ended = None
        for kind, _, _, payload in self.frames():
            if kind == wire.GOAWAY:
                ended = struct.unpack_from(">I", payload, 4)[0], payload[8:].decode()
        assert ended is not None, "closed without GOAWAY"
        return ended

    def answer(self, stream: int) -> tuple[dict[str, str], bytes]:
        """Return the headers with the trailers, and the data; `reset` has the code of a reset."""
        decoder, fields, data = hpack.Decoder(), {}, b""
        for kind, flags, number, payload in self.frames():
            if kind == wire.HEADERS:
                block = dict(decoder.decode(payload))
                fields |= block if number == stream else {}
            elif kind == wire.DATA and number == stream:
                data += payload
            elif kind == wire.RST_STREAM and number == stream:
                return {"reset": str(struct.unpack(">I", payload)[0])} | fields, data
            if flags & wire.END_STREAM and number == stream and kind in (wire.HEADERS, wire.DATA):
                return fields, data
        raise AssertionError("the connection was closed")


def call(stream: int, block: bytes, *data: bytes) -> bytes:
    """Return the frames of a whole call."""
    flags = wire.END_HEADERS | (0 if data else wire.END_STREAM)
    frames = [wire.frame(wire.HEADERS, flags, stream, block)]
    for index, chunk in enumerate(data):
        end = wire.END_STREAM if index == len(data) - 1 else 0
        frames.append(wire.frame(wire.DATA, end, stream, chunk))
    return b"".join(frames)


def is_ok(answer: tuple[dict[str, str], bytes]) -> bool:
    fields, data = answer
    if fields.get("grpc-status") != "0":
        return False
    return inference.ModelInferResponse.FromString(data[5:]).model_name == "mnist"


@pytest.fixture(autouse=True)
def server_survives(server: Server, mnist: Mnist) -> Iterator[None]:
    """After each test the same process answers the next client and has logged no traceback."""
    before = server.worker_pids()
    yield
    with Peer(server) as peer:
        peer.send(call(1, headers(), message(mnist)))
        assert is_ok(peer.answer(1))
    assert server.worker_pids() == before
    assert "Traceback" not in server.log.read_text()


def test_padding_priority_and_continuation_are_understood(server: Server, mnist: Mnist) -> None:
    block, body = headers(), message(mnist)
    with Peer(server) as peer:
        flags = wire.PADDED | wire.PRIORITISED
        first = bytes([3]) + bytes(5) + block[:7] + bytes(3)
        peer.send(wire.frame(wire.HEADERS, flags, 1, first))
        peer.send(wire.frame(wire.CONTINUATION, 0, 1, block[7:9]))
        peer.send(wire.frame(wire.CONTINUATION, wire.END_HEADERS, 1, block[9:]))
        padded = bytes([10]) + body + bytes(10)
        peer.send(wire.frame(wire.DATA, wire.PADDED | wire.END_STREAM, 1, padded))
        peer.send(wire.frame(wire.PRIORITY, 0, 1, bytes(5)) + wire.frame(0xBE, 0xFF, 0, b"new"))
        assert is_ok(peer.answer(1))


def test_a_call_that_arrives_byte_by_byte_is_answered(server: Server, mnist: Mnist) -> None:
    with Peer(server, b"") as peer:
        for byte in wire.PREFACE + NO_SETTINGS + call(1, headers(), message(mnist)):
            peer.send(bytes([byte]))
        assert is_ok(peer.answer(1))


def test_a_ping_is_answered(server: Server) -> None:
    with Peer(server) as peer:
        peer.send(wire.frame(wire.PING, 0, 0, b"12345678"))
        assert (wire.PING, wire.ACK, 0, b"12345678") in (frame for frame in peer.frames())


def test_many_calls_share_a_connection_and_its_hpack_table(server: Server, mnist: Mnist) -> None:
    """The client's table changes on the way: the same block then means something else."""
    encoder = hpack.Encoder()
    with Peer(server) as peer:
        decoder, fields = hpack.Decoder(), {}
        for index in range(60):
            block = encoder.encode(
                [
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", INFER),
                    ("content-type", "application/grpc"),
                    ("x-request-id", f"call-{index // 3}"),
                ]
            )
            peer.send(call(2 * index + 1, bytes(block), message(mnist)))
        for kind, flags, stream, payload in peer.frames():
            if kind == wire.HEADERS:
                block = dict(decoder.decode(payload))
                if flags & wire.END_STREAM:
                    fields[stream] = block
            if len(fields) == 60:
                break
    for index in range(60):
        assert fields[2 * index + 1]["grpc-status"] == "0"
        assert fields[2 * index + 1]["x-request-id"] == f"call-{index // 3}"


def test_no_more_is_sent_than_the_peers_windows_allow(server: Server, mnist: Mnist) -> None:
    """5.2: a client with a small window gets its answer in small pieces."""
    config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    client = h2.connection.H2Connection(config)
    client.local_settings = h2.settings.Settings(
        client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100}
    )
    client.initiate_connection()
    with Peer(server, client.data_to_send()) as peer:
        client.send_headers(1, list(hpack.Decoder().decode(headers())))
        client.send_data(1, message(mnist, 20), end_stream=True)
        peer.send(client.data_to_send())
        data, chunks = b"", 0
        ended = False
        while not ended:
            for event in client.receive_data(peer.socket.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    data += event.data or b""
                    chunks += 1
                    client.acknowledge_received_data(event.flow_controlled_length or 0, 1)
                ended |= isinstance(event, h2.events.StreamEnded)
            peer.send(client.data_to_send())
    response = inference.ModelInferResponse.FromString(data[5:])
    assert response.outputs[0].shape == [20, 10]
    assert chunks > 10


def test_a_large_batch_is_received_and_answered(server: Server) -> None:
    count = 9000  # 7 MB in, 0.7 MB out
    with grpc.insecure_channel(server.grpc) as channel:
        request = inference.ModelInferRequest(model_name="mnist")
        request.inputs.add(name="image", datatype="UINT8", shape=[count, 28, 28])
        request.raw_input_contents.append(bytes(784 * count))
        answer = inference_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    rows = np.frombuffer(answer.raw_output_contents[1], np.float32).reshape(count, 10)
    assert (rows == rows[0]).all()


@pytest.mark.parametrize(
    ("frames", "code", "word"),
    [
        (wire.frame(wire.PING, 0, 0, b"short"), wire.FRAME_SIZE_ERROR, "PING"),
        (wire.frame(wire.SETTINGS, 0, 0, b"short"), wire.FRAME_SIZE_ERROR, "SETTINGS"),
        (wire.frame(wire.SETTINGS, 0, 1), wire.PROTOCOL_ERROR, "SETTINGS"),
        (wire.settings({wire.INITIAL_WINDOW_SIZE: 2**31}), wire.FLOW_CONTROL_ERROR, "window"),
        (wire.settings({wire.MAX_FRAME_SIZE: 1}), wire.PROTOCOL_ERROR, "frame size"),
        (wire.window_update(0, 0), wire.PROTOCOL_ERROR, "window"),
        (wire.window_update(0, 2**31 - 1), wire.FLOW_CONTROL_ERROR, "window"),
        (wire.frame(wire.WINDOW_UPDATE, 0, 0, b"x"), wire.FRAME_SIZE_ERROR, "size"),
        (wire.frame(wire.DATA, 0, 1, b"x"), wire.PROTOCOL_ERROR, "data"),
        (wire.frame(wire.DATA, 0, 0, b"x"), wire.PROTOCOL_ERROR, "data"),
        (wire.reset(1, 0), wire.PROTOCOL_ERROR, "reset"),
        (wire.frame(wire.PUSH_PROMISE, 0, 1, bytes(4)), wire.PROTOCOL_ERROR, "push"),
        (wire.frame(wire.CONTINUATION, 0, 1), wire.PROTOCOL_ERROR, "continuation"),
        (call(2, headers()), wire.PROTOCOL_ERROR, "number"),
        (call(3, headers()) + call(1, headers()), wire.PROTOCOL_ERROR, "number"),
        (wire.frame(wire.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"), wire.COMPRESSION_ERROR, ""),
        (wire.frame(wire.HEADERS, 4, 1, b"\xc5"), wire.COMPRESSION_ERROR, ""),
        (wire.frame(wire.HEADERS, 12, 1, bytes([9, 1])), wire.PROTOCOL_ERROR, "padding"),
        (wire.frame(wire.HEADERS, 0, 1, b"x") + NO_SETTINGS, wire.PROTOCOL_ERROR, "interrupted"),
        (wire.FRAME_HEADER.pack(0xFFFF, 0xFF, 0, 0, 1), wire.FRAME_SIZE_ERROR, "larger"),
        (wire.frame(wire.SETTINGS, wire.ACK, 0, bytes(6)), wire.FRAME_SIZE_ERROR, "payload"),
        (wire.frame(wire.PRIORITY, 0, 0, bytes(5)), wire.PROTOCOL_ERROR, "PRIORITY"),
        (wire.frame(wire.GOAWAY, 0, 1, bytes(8)), wire.PROTOCOL_ERROR, "GOAWAY"),
        (wire.window_update(1, 1), wire.PROTOCOL_ERROR, "never opened"),
    ],
)
def test_a_breach_of_http2_ends_the_connection_with_a_reason(
    server: Server, frames: bytes, code: int, word: str
) -> None:
    with Peer(server) as peer:
        peer.send(frames)
        received, reason = peer.goaway()
        assert received == code, reason
        assert word in reason


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PRI * HTTP/1"])
def test_a_client_of_another_protocol_learns_what_this_port_speaks(
    server: Server, start: bytes
) -> None:
    with Peer(server, start) as peer:
        assert peer.goaway() == (wire.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")


def test_data_past_the_windows_ends_the_connection(server: Server, mnist: Mnist) -> None:
    """A client that reads no answers gets no more window; if it keeps sending, it is cut off."""
    silent = wire.PREFACE + wire.settings({wire.INITIAL_WINDOW_SIZE: 0})
    stream = wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers(INFER[:-5] + "StreamInfer"))
    requests = wire.frame(wire.DATA, 0, 1, message(mnist, 20))
    with Peer(server, silent) as peer:
        peer.send(stream)
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                peer.send(requests)
        assert peer.goaway() == (wire.FLOW_CONTROL_ERROR, "more data than allowed")


def test_headers_that_never_end_end_the_connection(server: Server) -> None:
    """CVE-2024-27316: a flood of CONTINUATION frames."""
    with Peer(server) as peer:
        peer.send(wire.frame(wire.HEADERS, 0, 1, headers()))
        for _ in range(9):
            peer.send(wire.frame(wire.CONTINUATION, 0, 1, bytes(16_000)))
        assert peer.goaway() == (wire.ENHANCE_YOUR_CALM, "headers larger than allowed")


def test_a_header_bomb_ends_the_connection(server: Server) -> None:
    """One header of 4,000 bytes in HPACK's table, repeated a thousand times with one byte each."""
    block = hpack.Encoder().encode([("x", "y" * 4000)])
    with Peer(server) as peer:
        peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, bytes(block) + b"\xbe" * 1000))
        assert peer.goaway()[0] == wire.COMPRESSION_ERROR


def test_a_rapid_reset_attack_ends_the_connection(server: Server) -> None:
    """CVE-2023-44487: calls without end, each reset at once."""
    block = headers()
    with Peer(server) as peer:
        with contextlib.suppress(ConnectionError):
            for first in range(1, 2_000_000, 1000):
                calls = [
                    wire.frame(wire.HEADERS, wire.END_HEADERS, stream, block)
                    + wire.reset(stream, wire.CANCEL)
                    for stream in range(first, first + 1000, 2)
                ]
                peer.send(b"".join(calls))
        assert peer.goaway() == (wire.ENHANCE_YOUR_CALM, "too many calls given up")


def test_calls_given_up_after_a_while_leave_the_others_on_their_connection(
    start_server: Callable[..., Server], tmp_path: Path, mnist: Mnist
) -> None:
    """A proxy's connection under overload: 3,000 calls end by the timeouts of their clients."""
    publish_slow_model(tmp_path)
    slow = start_server(tmp_path)
    stream = 1
    with Peer(slow) as peer:
        for _ in range(6):
            streams = range(stream, stream + 1000, 2)
            stream += 1000
            block = headers(INFER[:-5] + "StreamInfer")
            for number in streams:
                peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, number, block))
            time.sleep(0.1)
            peer.send(b"".join(wire.reset(number, wire.CANCEL) for number in streams))
        peer.send(call(stream, headers(), message(mnist)))
        assert is_ok(peer.answer(stream))


@pytest.mark.parametrize(
    ("fields", "more", "expected"),
    [
        ({"x_large": "y" * 60_000}, b"", {"grpc-status": "8"}),
        ({"grpc_timeout": "soon"}, b"", {"grpc-status": "13"}),
        ({"content_type": "application/grpc-web"}, b"", {":status": "415"}),
        ({"connection": "close"}, b"", {"reset": str(wire.PROTOCOL_ERROR)}),
        ({}, wire.window_update(3, 0), {"reset": str(wire.PROTOCOL_ERROR)}),
        ({}, wire.window_update(3, 2**31 - 1), {"reset": str(wire.FLOW_CONTROL_ERROR)}),
    ],
)
def test_the_fault_of_one_call_stays_its_own(
    server: Server, mnist: Mnist, fields: dict[str, str], more: bytes, expected: dict[str, str]
) -> None:
    """A proxy's connection: one call is halfway through its message when another is faulty."""
    whole = message(mnist)
    with Peer(server) as peer:
        peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers()))
        peer.send(wire.frame(wire.DATA, 0, 1, whole[:100]))
        peer.send(wire.headers(0, 3, headers(**fields), wire.DEFAULT_FRAME) + more)
        received, _ = peer.answer(3)
        assert expected.items() <= received.items(), received
        peer.send(wire.frame(wire.DATA, wire.END_STREAM, 1, whole[100:]))
        assert is_ok(peer.answer(1))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content_type": "application/json"}, {":status": "415"}),
        ({"content_type": "application/grpc+proto", "path": "/none"}, {"grpc-status": "12"}),
        ({"grpc_encoding": "br"}, {"grpc-status": "12"}),
        ({"grpc_encoding": "identity"}, {"grpc-status": "13"}),
        ({"grpc_encoding": "gzip"}, {"grpc-status": "3"}),
    ],
)
def test_an_error_in_a_call_is_reported_in_its_answer(
    server: Server, fields: dict[str, str], expected: dict[str, str]
) -> None:
    with Peer(server) as peer:
        compressed = struct.pack(">BI", 1, 4) + b"none"
        peer.send(call(1, headers(**fields), compressed))
        fields_received, _ = peer.answer(1)
        assert expected.items() <= fields_received.items(), fields_received


def test_a_damaged_compressed_message_ends_its_stream_with_the_reason(server: Server) -> None:
    with Peer(server) as peer:
        damaged = struct.pack(">BI", 1, 4) + b"none"
        path = INFER[:-5] + "StreamInfer"
        peer.send(call(1, headers(path, grpc_encoding="gzip"), damaged))
        fields, _ = peer.answer(1)
        assert (fields["grpc-status"], "gzip" in fields["grpc-message"]) == ("3", True)


def test_bytes_after_the_message_of_a_call_end_it_at_once(server: Server, mnist: Mnist) -> None:
    with Peer(server) as peer:
        peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers()))
        peer.send(wire.frame(wire.DATA, 0, 1, message(mnist) + b"x"))
        fields, _ = peer.answer(1)
        assert (fields["grpc-status"], "one whole" in fields["grpc-message"]) == ("13", True)


def test_an_answer_before_the_end_of_a_request_stops_it(server: Server) -> None:
    """8.1: after the whole answer, RST_STREAM asks the client to stop sending."""
    with Peer(server) as peer:
        peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers()))
        peer.send(wire.frame(wire.DATA, 0, 1, struct.pack(">BI", 0, 1 << 30)))
        fields, _ = peer.answer(1)
        assert fields["grpc-status"] == "8"
        assert next(peer.frames()) == (wire.RST_STREAM, 0, 1, bytes(4))  # NO_ERROR
        peer.send(wire.frame(wire.DATA, 0, 1, bytes(1000)))  # sent before the reset arrived


@pytest.fixture(scope="module")
def small_server(start_server: Callable[..., Server]) -> Server:
    return start_server(body_timeout=0.3, header_timeout=0.3, max_connections=4)


def test_a_message_that_never_arrives_times_out(small_server: Server, mnist: Mnist) -> None:
    with Peer(small_server) as peer:
        peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers()))
        peer.send(wire.frame(wire.DATA, 0, 1, message(mnist)[:100]))
        fields, _ = peer.answer(1)
        assert fields["grpc-status"] == "3"
        assert "body_timeout" in fields["grpc-message"]


def test_a_preface_that_never_arrives_times_out(small_server: Server) -> None:
    with Peer(small_server, b"PRI") as peer:
        assert peer.goaway() == (wire.PROTOCOL_ERROR, "no preface came")


def test_more_calls_than_allowed_are_refused_for_a_retry(
    small_server: Server, mnist: Mnist
) -> None:
    with Peer(small_server) as peer:
        for stream in (1, 3, 5, 7, 9):
            peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, headers()))
        assert peer.answer(9)[0] == {"reset": str(wire.REFUSED_STREAM)}
        peer.send(wire.frame(wire.DATA, wire.END_STREAM, 7, message(mnist)))
        assert is_ok(peer.answer(7))


WATCH = "/grpc.health.v1.Health/Watch"
WATCHED = struct.pack(">BI", 0, 0)  # the whole server


def watch(peer: Peer) -> None:
    """Open a stream and wait for its first message."""
    peer.send(call(1, headers(WATCH), WATCHED))
    assert wire.DATA in (kind for kind, *_ in peer.frames())


def test_more_connections_than_allowed_are_refused_with_the_reason(
    start_server: Callable[..., Server],
) -> None:
    """If all of them have an open call, and none has been silent for body_timeout."""
    full = start_server(max_connections=4)
    with Peer(full) as one, Peer(full) as two, Peer(full) as three, Peer(full) as four:
        for peer in (one, two, three, four):
            watch(peer)
        with Peer(full) as fifth:
            assert "max_connections" in fifth.goaway()[1]


def closed_connections(server: Server) -> dict[str, float]:
    """Counts of mnist_grpc_connections_closed_total by reason."""
    pattern = r'^mnist_grpc_connections_closed_total{reason="(\w+)"} (\S+)$'
    text = server.get("/metrics")[1].decode()
    return {reason: float(count) for reason, count in re.findall(pattern, text, re.MULTILINE)}


def test_idle_connections_shut_nobody_out(
    start_server: Callable[..., Server], mnist: Mnist
) -> None:
    """Before, 1,024 of them did for as long as they liked."""
    full = start_server(max_connections=16)
    idle = [Peer(full) for _ in range(16)]
    with Peer(full) as used:
        used.send(call(1, headers(), message(mnist)))
        assert is_ok(used.answer(1))
        time.sleep(1.1)  # unused connections give way after a second
        for _ in range(10):
            with Peer(full) as newcomer:
                newcomer.send(call(1, headers(), message(mnist)))
                assert is_ok(newcomer.answer(1))
            idle.append(Peer(full))
        used.send(call(3, headers(), message(mnist)))
        assert is_ok(used.answer(3))
    code, reason = idle[0].goaway()
    assert (code, "max_connections" in reason) == (wire.NO_ERROR, True)
    for peer in idle:
        peer.socket.close()
    full.wait_until(lambda: closed_connections(full).get("displaced", 0) >= 10)


def test_calls_that_never_end_shut_nobody_out(
    start_server: Callable[..., Server], mnist: Mnist
) -> None:
    """Half-sent calls whose bytes trickle in: none of them brings a whole message."""
    full = start_server(max_connections=8, body_timeout=1.0)
    trickling = [Peer(full) for _ in range(8)]
    path = INFER[:-5] + "StreamInfer"
    for peer in trickling:
        peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers(path)))
        peer.send(wire.frame(wire.DATA, 0, 1, message(mnist)[:10]))

    def is_served() -> bool:
        for peer in trickling:
            with contextlib.suppress(ConnectionError):
                peer.send(wire.frame(wire.DATA, 0, 1, b"x"))
        with Peer(full) as newcomer, contextlib.suppress(AssertionError, ConnectionError):
            newcomer.send(call(1, headers(), message(mnist)))
            return is_ok(newcomer.answer(1))
        return False

    full.wait_until(is_served)
    for peer in trickling:
        peer.socket.close()


def test_headers_that_trickle_end_their_connection(small_server: Server) -> None:
    with Peer(small_server) as peer:
        peer.send(wire.frame(wire.HEADERS, 0, 1, headers()))
        code, reason = peer.goaway()
        assert (code, "header_timeout" in reason) == (wire.ENHANCE_YOUR_CALM, True)


@pytest.mark.parametrize("fast_grpc", [True, False])
def test_connections_without_calls_and_silent_ones_end(
    start_server: Callable[..., Server], mnist: Mnist, fast_grpc: bool
) -> None:
    brief = start_server(
        fast_grpc=fast_grpc, idle_timeout=1.0, keepalive_interval=2.0, keepalive_timeout=1.0
    )
    with Peer(brief) as idle, Peer(brief) as silent:
        silent.send(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers(WATCH)))
        idle.send(call(1, headers(), message(mnist)))
        assert is_ok(idle.answer(1))
        assert wire.GOAWAY in [kind for kind, *_ in idle.frames()]
        kinds = [kind for kind, *_ in silent.frames()]  # until the server closes
        assert wire.PING in kinds
    if fast_grpc:
        brief.wait_until(lambda: closed_connections(brief).keys() >= {"idle", "keepalive"})


@pytest.mark.parametrize("fast_grpc", [True, False])
def test_no_call_is_lost_when_connections_reach_their_age(
    start_server: Callable[..., Server], mnist: Mnist, fast_grpc: bool
) -> None:
    aging = start_server(fast_grpc=fast_grpc, max_connection_age=0.5)
    request = inference.ModelInferRequest(model_name="mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    request.raw_input_contents.append(mnist.images[:1].tobytes())
    with grpc.insecure_channel(aging.grpc) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)

        def aged() -> bool:
            return not fast_grpc or closed_connections(aging).get("age", 0) >= 3

        # grpcio's own server does not count them: three seconds are six times the age.
        end = time.monotonic() + 3
        give_up = end + 60
        while time.monotonic() < end or not aged():
            assert time.monotonic() < give_up
            calls = [stub.ModelInfer.future(request, wait_for_ready=True) for _ in range(20)]
            assert all(each.result().model_name == "mnist" for each in calls)


def test_a_flood_of_pings_ends_its_connection(server: Server) -> None:
    with Peer(server) as peer:
        with contextlib.suppress(ConnectionError):
            peer.send(wire.frame(wire.PING, 0, 0, bytes(8)) * 5000)
        assert peer.goaway() == (wire.ENHANCE_YOUR_CALM, "too_many_pings")


def test_a_client_that_closes_its_side_gets_its_answers(server: Server, mnist: Mnist) -> None:
    """TCP closes each direction by itself (RFC 9293, 3.6); the half-sent call 41 is given up."""
    streams = range(1, 41, 2)
    content = message(mnist, 16)
    with Peer(server) as peer:
        for stream in streams:
            peer.send(call(stream, headers(), content))
        peer.send(call(41, headers(), content)[:-1])
        peer.socket.shutdown(socket.SHUT_WR)
        decoder, statuses = hpack.Decoder(), {}
        for kind, _, stream, payload in peer.frames():
            if kind == wire.HEADERS:
                statuses[stream] = dict(decoder.decode(payload)).get("grpc-status")
        assert statuses == dict.fromkeys(streams, "0")


def test_stopping_answers_open_calls_and_refuses_new_ones(
    start_server: Callable[..., Server], tmp_path: Path, mnist: Mnist
) -> None:
    publish_slow_model(tmp_path)
    slow = start_server(tmp_path)
    with Peer(slow) as peer:
        peer.send(call(1, headers(), message(mnist, 8)))
        peer.send(wire.frame(wire.PING, 0, 0, b"received"))
        assert (wire.PING, wire.ACK, 0, b"received") in (frame for frame in peer.frames())
        stopping = threading.Thread(target=slow.stop)
        stopping.start()
        kinds = []
        for kind, _, stream, payload in peer.frames():
            kinds.append((kind, stream))
            if kind == wire.PING:  # after the announcement, which a call may cross
                confirmation = wire.frame(wire.PING, wire.ACK, 0, payload)
                peer.send(call(3, headers(), message(mnist)) + confirmation)
            elif kind == wire.GOAWAY and kinds.count((wire.GOAWAY, 0)) == 2:
                peer.send(call(5, headers(), message(mnist)))
        stopping.join()
        assert (wire.RST_STREAM, 5) in kinds
        for stream in (1, 3):
            assert kinds.count((wire.HEADERS, stream)) == 2  # headers and trailers
        assert slow.process.returncode == 0


BDP_PING = bytes([2, 4, 16, 16, 9, 14, 7, 7])  # gRPC-Go's, to measure the bandwidth
KEEPALIVE_PING = bytes(8)


def test_frames_as_grpc_go_sends_them(start_server: Callable[..., Server], mnist: Mnist) -> None:
    """Frames of 16 KB, a PING and window updates for answers, CANCEL, keepalive in a stream."""
    patient = start_server(max_queue_seconds=60)
    streams = range(3, 303, 2)
    given_up = set(streams[1::3])
    sizes = {stream: 1 + 60 * (stream % 25 == 0) for stream in streams}  # 48 KB, or one image
    start = wire.PREFACE + wire.settings({wire.INITIAL_WINDOW_SIZE: 65_535})
    with Peer(patient, start) as peer:
        peer.send(
            wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers(INFER[:-5] + "StreamInfer"))
        )
        for stream in streams:
            peer.send(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, headers()))
            content = message(mnist, sizes[stream])
            for index in range(0, len(content), wire.DEFAULT_FRAME):
                part = content[index : index + wire.DEFAULT_FRAME]
                peer.send(wire.frame(wire.DATA, 0, stream, part))
            if stream in given_up:
                peer.send(wire.reset(stream, wire.CANCEL))
            else:
                peer.send(wire.frame(wire.DATA, wire.END_STREAM, stream))
            if stream % 100 == 1:
                peer.send(wire.frame(wire.PING, 0, 0, KEEPALIVE_PING))
        status, pongs, decoder = {}, 0, hpack.Decoder()
        expected = set(streams) - given_up
        for kind, flags, stream, payload in peer.frames():
            if kind == wire.DATA:
                peer.send(wire.frame(wire.PING, 0, 0, BDP_PING))
                peer.send(wire.window_update(0, len(payload)))
            elif kind == wire.HEADERS:
                fields = dict(decoder.decode(payload))
                if flags & wire.END_STREAM:
                    status[stream] = fields["grpc-status"]
            elif kind == wire.PING:
                assert (flags, payload in (BDP_PING, KEEPALIVE_PING)) == (wire.ACK, True)
                pongs += 1
            assert kind != wire.GOAWAY, payload
            if expected <= status.keys() and pongs >= len(expected):
                break
        assert {status[stream] for stream in expected} == {"0"}
        # The stream that was open all the time still answers.
        peer.send(wire.frame(wire.DATA, 0, 1, message(mnist)))
        assert next(kind for kind, _, number, _ in peer.frames() if number == 1) == wire.HEADERS


def test_h2load_gets_an_answer_to_every_call(server: Server, mnist: Mnist, tmp_path: Path) -> None:
    body = tmp_path / "body.bin"
    body.write_bytes(message(mnist))
    command = ["h2load", "--requests", "3000", "--clients", "8", "--max-concurrent-streams", "32"]
    command += ["--data", str(body), "--header", "content-type: application/grpc"]
    command += ["--header", "te: trailers", f"http://{server.grpc}{INFER}"]
    # .ci/run installs h2load; without it the test fails.
    report = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "3000 succeeded, 0 failed, 0 errored, 0 timeout" in report, report
    assert "3000 2xx" in report, report


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 11),
            st.integers(0, 255),
            st.sampled_from([0, 1, 3, 5, 2**31 - 1]),
            st.binary(max_size=60) | st.just(headers()) | st.just(struct.pack(">I", 70_000)),
        ),
        max_size=12,
    ),
    st.binary(max_size=20),
)
def test_arbitrary_frames_do_not_harm_the_server(
    server: Server, frames: list[tuple[int, int, int, bytes]], tail: bytes
) -> None:
    with Peer(server) as peer:
        peer.send(b"".join(wire.frame(*each) for each in frames) + tail)
        peer.socket.shutdown(socket.SHUT_WR)
        for _ in peer.frames():
            pass  # until the server closes the connection
