"""Servers that answer as they are told and record what they were asked, over HTTP and gRPC."""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc

BODY = (
    b'{"model_name":"m","model_version":"3","predictions":[{"digit":7,"probabilities":[0,0,0,0,0,0,'
    b'0,1,0,0],"entropy_bits":0.0,"prediction_set":[7],"accepted":true}]}'
)


class Reply(NamedTuple):
    """One answer. Over gRPC, `status` is a code by name and `headers` are trailing metadata."""

    status: Any = 200
    body: bytes = BODY
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    drop: bool = False  # HTTP only: close the connection instead
    trickle: float = 0.0  # HTTP only: seconds between the bytes of the body


@dataclass
class Asked:
    """One request that arrived; `left` is the deadline that gRPC passes on, in seconds."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    left: float = math.inf


@dataclass
class Scripted:
    """The last reply is repeated."""

    replies: list[Reply]
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, asked: Asked) -> Reply:
        with self.lock:
            self.asked.append(asked)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def http(*replies: Reply, tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    scripted = Scripted(list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = scripted.next(Asked(self.path, headers, body, time.monotonic()))
            time.sleep(reply.delay)
            if reply.drop:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            step = 1 if reply.trickle else max(1, len(reply.body))
            for at in range(0, len(reply.body), step):
                self.wfile.write(reply.body[at : at + step])
                time.sleep(reply.trickle)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            pass  # clients that leave, and handshakes that fail, are what is tested

        def finish_request(self, request: Any, client_address: Any) -> None:
            # In the request's thread, so that a handshake does not hold up others.
            request = tls.wrap_socket(request, server_side=True) if tls else request
            super().finish_request(request, client_address)
            if tls:
                request.close()

    server = Quiet(("127.0.0.1", 0), Handler)
    scripted.address = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def over_grpc(
    *replies: Reply, credentials: grpc.ServerCredentials | None = None
) -> Iterator[Scripted]:
    scripted = Scripted(list(replies))

    def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
        headers = dict(context.invocation_metadata())
        asked = Asked("", headers, message, time.monotonic(), context.time_remaining() or math.inf)
        reply = scripted.next(asked)
        time.sleep(reply.delay)
        context.set_trailing_metadata(reply.headers)
        if reply.status != 200:
            context.abort(grpc.StatusCode[reply.status], "scripted")
        return reply.body

    class Every(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(8), handlers=(Every(),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    scripted.address = f"grpc{'s' if credentials else ''}://127.0.0.1:{port}"
    server.start()
    try:
        yield scripted
    finally:
        server.stop(None).wait()
