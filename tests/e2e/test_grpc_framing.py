"""Malformed gRPC, frame by frame from a bare HTTP/2 client: an error ends only its own call.

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
    """One HTTP/2 connection that sends any frames, correct or not."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=120)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, *data: bytes, path: str = INFER, **headers: str) -> tuple[int, str, bytes]:
        """Return status, status message and data of a call with one DATA frame per argument."""
        return self._answer(self.send(*data, path=path, **headers))

    def reset(self, stream: int) -> None:
        self._h2.reset_stream(stream)
        self._flush()

    def send(self, *data: bytes, path: str = INFER, **headers: str) -> int:
        """Send a call and return its stream id."""
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
        fields, content = {}, b""
        while True:
            received = self._socket.recv(65536)
            assert received, "the server closed the connection"
            for event in self._h2.receive_data(received):
                if getattr(event, "stream_id", stream) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    fields |= dict(event.headers or ())
                elif isinstance(event, h2.events.DataReceived):
                    content += event.data or b""
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self._flush()
                    status = int(fields.get("grpc-status", -1))
                    return status, fields.get("grpc-message", ""), content
            self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


@pytest.fixture
def valid_message(mnist: Mnist) -> bytes:
    request = inference.ModelInferRequest(model_name="mnist")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    request.raw_input_contents.append(mnist.images[0].tobytes())
    return request.SerializeToString()


OK, INVALID, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 8, 12, 13


def test_a_malformed_message_fails_only_its_own_call(
    grpc_server: Server, valid_message: bytes
) -> None:
    with Connection(grpc_server) as connection:
        for data, expected in (
            ([framed(b"\xff\xff\xff")], {INVALID}),
            ([framed(valid_message[:-1])], {INVALID}),
            ([framed(valid_message, length=0xFFFFFFFF)], {EXHAUSTED}),
            ([framed(valid_message, flag=1)], {INTERNAL, UNIMPLEMENTED}),
        ):
            status, message, _ = connection.call(*data)
            assert status in expected, (data, status, message)
            status, _, content = connection.call(framed(valid_message))
            assert status == OK
            assert inference.ModelInferResponse.FromString(content[5:]).model_name == "mnist"


def test_a_call_cut_short_disturbs_no_other_call(grpc_server: Server, valid_message: bytes) -> None:
    """grpcio does not answer it: there it ends with a reset, its deadline or its connection."""
    with Connection(grpc_server) as connection:
        for data in (
            [framed(valid_message, length=len(valid_message) + 1)],
            [b"\0\0"],
            [],
            [framed(valid_message)] * 2,
        ):
            if not grpc_server.is_grpcio:
                status, message, _ = connection.call(*data)
                assert status == INTERNAL
                assert "whole message" in message
            elif data != [framed(valid_message)] * 2:
                cut = connection.send(*data)
                assert connection.call(framed(valid_message))[0] == OK
                connection.reset(cut)
            assert connection.call(framed(valid_message))[0] == OK


def test_a_message_may_arrive_in_pieces(grpc_server: Server, valid_message: bytes) -> None:
    with Connection(grpc_server) as connection:
        whole = framed(valid_message)
        status, _, _ = connection.call(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
        assert status == OK


def test_calls_of_unknown_methods_are_unimplemented(
    grpc_server: Server, valid_message: bytes
) -> None:
    with Connection(grpc_server) as connection:
        for path in ("/inference.GRPCInferenceService/Nothing", "/nowhere", "/"):
            assert connection.call(framed(valid_message), path=path)[0] == UNIMPLEMENTED
        assert connection.call(framed(valid_message))[0] == OK


def test_another_protocol_ends_only_its_own_connection(
    grpc_server: Server, valid_message: bytes
) -> None:
    with Connection(grpc_server) as other:
        for garbage in (
            b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        ):
            with socket.create_connection(("127.0.0.1", grpc_server.grpc_port), timeout=120) as raw:
                raw.sendall(garbage)
                while raw.recv(65536):
                    pass  # until the server closes it
            assert other.call(framed(valid_message))[0] == OK
