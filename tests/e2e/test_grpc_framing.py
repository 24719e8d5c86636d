"""gRPC frame by frame, by an HTTP/2 client of its own: what is wrong costs its own call only.

Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md), "Length-Prefixed-Message".
"""

from __future__ import annotations

import socket
import struct

import h2.config
import h2.connection
import h2.events
import pytest
from tritonclient.grpc import service_pb2 as inference

from tests.conftest import Mnist, Server

INFER = "/inference.GRPCInferenceService/ModelInfer"


class Connection:
    """One HTTP/2 connection that sends whatever it is told to."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, *data: bytes, path: str = INFER, **headers: str) -> tuple[int, str, bytes]:
        """The status, its message and the data of a call whose body is `data`, frame by frame."""
        return self._answer(self.send(*data, path=path, **headers))

    def reset(self, stream: int) -> None:
        self._h2.reset_stream(stream)
        self._flush()

    def send(self, *data: bytes, path: str = INFER, **headers: str) -> int:
        """Send a call; the number of its stream."""
        stream = self._h2.get_next_available_stream_id()
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "x",
            "content-type": "application/grpc",
            "te": "trailers",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        self._h2.send_headers(stream, list(fields.items()))
        for frame in data:
            self._h2.send_data(stream, frame)
        self._h2.end_stream(stream)
        self._flush()
        return stream

    def _answer(self, stream: int) -> tuple[int, str, bytes]:
        answered, content = {}, b""
        while True:
            received = self._socket.recv(65536)
            assert received, "the server closed the connection"
            for event in self._h2.receive_data(received):
                if getattr(event, "stream_id", stream) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    answered |= dict(event.headers or ())
                elif isinstance(event, h2.events.DataReceived):
                    content += event.data or b""
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self._flush()
                    status = int(answered.get("grpc-status", -1))
                    return status, answered.get("grpc-message", ""), content
            self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


@pytest.fixture
def good(mnist: Mnist) -> bytes:
    request = inference.ModelInferRequest(model_name="mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    request.raw_input_contents.append(mnist.images[0].tobytes())
    return request.SerializeToString()


OK, INVALID, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 8, 12, 13


def test_wrong_messages_fail_their_own_call_alone(grpc_server: Server, good: bytes) -> None:
    with Connection(grpc_server) as connection:
        for data, expected in (
            ([framed(b"\xff\xff\xff")], {INVALID}),
            ([framed(good[:-1])], {INVALID}),
            ([framed(good, length=0xFFFFFFFF)], {EXHAUSTED}),
            ([framed(good, flag=1)], {INTERNAL, UNIMPLEMENTED}),
        ):
            status, message, _ = connection.call(*data)
            assert status in expected, (data, status, message)
            status, _, content = connection.call(framed(good))
            assert status == OK
            assert inference.ModelInferResponse.FromString(content[5:]).model_name == "mnist"


def test_a_call_cut_short_disturbs_no_other(grpc_server: Server, good: bytes) -> None:
    """grpcio gives it no answer, so there it ends with its connection, its reset or deadline."""
    with Connection(grpc_server) as connection:
        for data in ([framed(good, length=len(good) + 1)], [b"\0\0"], [], [framed(good)] * 2):
            if not grpc_server.is_grpcio:
                status, message, _ = connection.call(*data)
                assert status == INTERNAL
                assert "whole message" in message
            elif data != [framed(good)] * 2:
                cut = connection.send(*data)
                assert connection.call(framed(good))[0] == OK
                connection.reset(cut)
            assert connection.call(framed(good))[0] == OK


def test_a_message_may_come_in_pieces(grpc_server: Server, good: bytes) -> None:
    with Connection(grpc_server) as connection:
        whole = framed(good)
        status, _, _ = connection.call(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
        assert status == OK


def test_calls_of_nothing_are_unimplemented(grpc_server: Server, good: bytes) -> None:
    with Connection(grpc_server) as connection:
        for path in ("/inference.GRPCInferenceService/Nothing", "/nowhere", "/"):
            assert connection.call(framed(good), path=path)[0] == UNIMPLEMENTED
        assert connection.call(framed(good))[0] == OK


def test_what_is_not_http2_ends_its_own_connection_only(grpc_server: Server, good: bytes) -> None:
    with Connection(grpc_server) as other:
        for garbage in (
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        ):
            with socket.create_connection(("127.0.0.1", grpc_server.grpc_port), timeout=10) as raw:
                raw.sendall(garbage)
                while raw.recv(65536):
                    pass  # until it is closed
            assert other.call(framed(good))[0] == OK
