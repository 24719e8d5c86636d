"""Abusive loads, each bounded in connections and time, for a server on this machine.

An attack takes the server's ports and `ended`, and returns how often it did what. It counts what
the server does to it (a status, a closed connection) and never fails because of it.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import itertools
import json
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.load.arrivals import frame, grpc_status, header_block
from benchmarks.load.result import run
from benchmarks.wire_formats import GRPC_PATH, WIRES
from service.grpc.http2 import frames
from service.stubs.digits.v1 import digits_pb2

_TIMEOUT_S = 30.0
_MB = 1024 * 1024
_BODY = 8 * _MB - 1024  # bytes, within the default limit
_CREDIT = struct.pack(">I", 2**30)


class Target(NamedTuple):
    """The ports of the server."""

    http_port: int
    grpc_port: int


Ended = Callable[[], bool]
Attack = Callable[[Target, Ended], Counter[str]]


def in_threads(count: int, ended: Ended, once: Callable[[Counter[str]], None]) -> Counter[str]:
    """Repeat `once` in some threads until `ended`; errors of the connection are counted."""
    counts: Counter[str] = Counter()

    def repeat() -> None:
        mine: Counter[str] = Counter()
        while not ended():
            try:
                once(mine)
            except (OSError, http.client.HTTPException) as error:
                mine[type(error).__name__] += 1
                time.sleep(0.05)
        counts.update(mine)

    threads = [threading.Thread(target=repeat) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def exchange(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """One HTTP request on a connection of its own. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()


def posts(
    port: int, path: str, bodies: Iterator[bytes], content_type: str, **headers: str
) -> Callable[[Counter[str]], None]:
    """Post the next body; count the statuses."""
    fields = {"content-type": content_type} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }

    def once(counts: Counter[str]) -> None:
        status, _ = exchange(port, "POST", path, next(bodies), fields)
        counts[str(status)] += 1

    return once


@functools.cache
def brackets(size: int = 7_600_000) -> bytes:
    """JSON of many small lists: `[[0],[0],...`."""
    return b"[" + b",".join([b"[0]"] * (size // 4)) + b"]"


@functools.cache
def large_png(side: int = 4000) -> bytes:
    """RGBA with a black rectangle; a few ten KB for 64 MB of pixels."""
    from PIL import Image

    pixels = np.full((side, side, 4), 255, np.uint8)
    pixels[side // 4 : side // 2, side // 3 : side // 2, :3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@functools.cache
def large_jpeg(side: int = 4000) -> bytes:
    """A JPEG with a black rectangle."""
    from PIL import Image

    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[side // 4 : side // 2, side // 3 : side // 2] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def json_lists(target: Target, ended: Ended) -> Counter[str]:
    """Four callers with 7.6 MB of JSON brackets."""
    once = posts(target.http_port, "/predict", itertools.repeat(brackets()), "application/json")
    return in_threads(4, ended, once)


def json_below_the_limit(target: Target, ended: Ended) -> Counter[str]:
    """Four callers with 1.9 MB of JSON: 680 images."""
    images = np.random.default_rng(0).integers(0, 255, (680, 28, 28)).tolist()
    body = json.dumps({"image": images}, separators=(",", ":")).encode()
    return in_threads(
        4, ended, posts(target.http_port, "/predict", itertools.repeat(body), "application/json")
    )


def pictures(target: Target, ended: Ended) -> Counter[str]:
    """Eight callers with pictures of 4000x4000: PNG (RGBA), JPEG, and a PNG just within 4 MP."""
    files = itertools.cycle(
        [(large_png(), "image/png"), (large_jpeg(), "image/jpeg"), (large_png(1990), "image/png")]
    )
    lock = threading.Lock()

    def once(counts: Counter[str]) -> None:
        with lock:
            content, kind = next(files)
        status, _ = exchange(target.http_port, "POST", "/predict", content, {"content-type": kind})
        counts[f"{kind} {status}"] += 1

    return in_threads(8, ended, once)


def pictures_over_grpc(target: Target, ended: Ended) -> Counter[str]:
    """Four callers with the PNG of 4000x4000, over gRPC."""
    message = digits_pb2.PredictRequest(image=large_png()).SerializeToString()
    content = b"\0" + struct.pack(">I", len(message)) + message

    def once(counts: Counter[str]) -> None:
        answers: Counter[str] = Counter()
        with Calls(target.grpc_port) as calls:
            calls.send_slowly(calls.headers("/digits.v1.DigitClassifier/Predict"), content)
            end = time.monotonic() + _TIMEOUT_S
            while not answers and time.monotonic() < end and calls.read(answers, 0.05):
                pass
        counts.update(answers)

    return in_threads(4, ended, once)


def half_sent_bodies(target: Target, ended: Ended) -> Counter[str]:
    """Sixty bodies of 8 MB without their last byte."""
    head = (
        "POST /v2/models/mnist/infer HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: application/octet-stream\r\ncontent-length: {_BODY}\r\n\r\n"
    ).encode()
    return _half_sent(target.http_port, [head] * 60, _BODY - 1, ended)


def _half_sent(port: int, heads: Sequence[bytes], size: int, ended: Ended) -> Counter[str]:
    """Send each head on a connection of its own, then as much as the server takes of a body."""
    counts: Counter[str] = Counter()
    left: dict[socket.socket, int] = {}
    part = bytes(256 * 1024)
    for head in heads:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
            connection.sendall(head)
            connection.setblocking(False)
            left[connection] = size
    while left and not ended():
        writable = [each for each, bytes_left in left.items() if bytes_left]
        readable, ready = _ready(list(left), writable, 0.1)
        for connection in ready:
            try:
                sent = connection.send(part[: left[connection]])
            except BlockingIOError:
                continue
            except OSError:
                counts["closed while sending"] += 1
                del left[connection]
                connection.close()
                continue
            left[connection] -= sent
            counts["bytes sent"] += sent
        for connection in readable:
            if connection in left:
                with contextlib.suppress(OSError):
                    answer = connection.recv(65536)
                    counts[answer[9:12].decode("latin-1") or "closed"] += 1
                del left[connection]
                connection.close()
    counts["still open"] += len(left)
    for connection in left:
        connection.close()
    return counts


def _ready(
    reading: Sequence[socket.socket], writing: Sequence[socket.socket], seconds: float
) -> tuple[list[socket.socket], list[socket.socket]]:
    """Those that can be read from and written to within this time, as select.select() says.

    That refuses descriptors of 1,024 and more, which a run of many attacks has.
    """
    poller = select.poll()
    events: dict[socket.socket, int] = {}
    for connection in reading:
        events[connection] = select.POLLIN
    for connection in writing:
        events[connection] = events.get(connection, 0) | select.POLLOUT
    for connection, wanted in events.items():
        poller.register(connection, wanted)
    found = dict(poller.poll(seconds * 1000))
    closed = select.POLLHUP | select.POLLERR
    return (
        [each for each in reading if found.get(each.fileno(), 0) & (select.POLLIN | closed)],
        [each for each in writing if found.get(each.fileno(), 0) & (select.POLLOUT | closed)],
    )


class Calls:
    """A gRPC connection from frames; what the server sends is read only by `read`."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self.socket.sendall(frames.PREFACE + frame(frames.SETTINGS, 0, 0, b""))
        self.number = -1
        self.closed = False
        self._reader = frames.FrameReader(frames.LARGEST_FRAME, 2**22)
        self._reader.preface_received = True

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def headers(self, path: str = GRPC_PATH, **metadata: str) -> bytes:
        """The HEADERS of a new call."""
        self.number += 2
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path)]
        fields += [(":authority", "localhost"), ("te", "trailers")]
        fields += [("content-type", "application/grpc")]
        fields += [(name.replace("_", "-"), value) for name, value in metadata.items()]
        return frame(frames.HEADERS, frames.END_HEADERS, self.number, header_block(fields))

    def data(self, content: bytes, *, end: bool = True) -> bytes:
        """DATA of the newest call."""
        parts = [
            content[start : start + frames.DEFAULT_FRAME]
            for start in range(0, len(content), frames.DEFAULT_FRAME)
        ]
        return b"".join(
            frame(frames.DATA, frames.END_STREAM * (end and part is parts[-1]), self.number, part)
            for part in parts
        )

    def send_slowly(self, headers: bytes, content: bytes) -> None:
        """Send one whole call within the server's windows."""
        windows = _Windows([self.number])
        self.socket.sendall(headers)
        position = 0
        while position < len(content):
            size = windows.take(self.number, len(content) - position)
            if size > 0:
                part = content[position : position + size]
                position += size
                last = frames.END_STREAM * (position == len(content))
                self.socket.sendall(frame(frames.DATA, last, self.number, part))
            else:
                for kind, _, number, payload in self.frames():
                    windows.update(kind, number, payload)
                if self.closed:
                    raise ConnectionResetError

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The frames that the server has sent; sets `closed` at the connection's end."""
        received = self.socket.recv(_MB)
        self.closed = not received
        return self._reader.frames(received)

    def read(self, counts: Counter[str], seconds: float = 0.0) -> bool:
        """Count the ends of calls that arrive within this time; False at the connection's end."""
        end = time.monotonic() + seconds
        while _ready([self.socket], [], max(0.0, end - time.monotonic()))[0]:
            for kind, flags, _, payload in self.frames():
                if kind == frames.HEADERS and flags & frames.END_STREAM:
                    counts[grpc_status(payload)] += 1
                elif kind in (frames.GOAWAY, frames.RST_STREAM):
                    counts["GOAWAY" if kind == frames.GOAWAY else "RST_STREAM"] += 1
            if self.closed:
                counts["closed"] += 1
                return False
        return True


class _Windows:
    """What the server lets a client send: on the connection and on each stream, in bytes."""

    def __init__(self, streams: Sequence[int]) -> None:
        self.connection = frames.DEFAULT_WINDOW
        self.streams = dict.fromkeys(streams, frames.DEFAULT_WINDOW)

    def take(self, number: int, at_most: int) -> int:
        """Use up to this many bytes for one frame; how many it may have."""
        size = min(self.connection, self.streams[number], at_most, frames.DEFAULT_FRAME)
        if size > 0:
            self.connection -= size
            self.streams[number] -= size
        return size

    def update(self, kind: int, number: int, payload: bytes) -> None:
        """Apply a frame of the server."""
        if kind == frames.WINDOW_UPDATE:
            credit = struct.unpack(">I", payload)[0]
            if number == 0:
                self.connection += credit
            elif number in self.streams:
                self.streams[number] += credit
        elif kind == frames.SETTINGS:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == frames.INITIAL_WINDOW_SIZE:
                    for each in self.streams:
                        self.streams[each] += value - frames.DEFAULT_WINDOW


def half_sent_messages(target: Target, ended: Ended) -> Counter[str]:
    """Sixty messages of 8 MB on one gRPC connection, without their last byte."""
    counts: Counter[str] = Counter()
    prefix = b"\0" + struct.pack(">I", _BODY)
    with Calls(target.grpc_port) as calls:
        left = dict.fromkeys(range(1, 121, 2), len(prefix) + _BODY - 1)
        windows = _Windows(list(left))
        output = b"".join(calls.headers() for _ in left)
        calls.socket.setblocking(False)
        while not ended():
            readable, _ = _ready([calls.socket], [calls.socket] if output else [], 0.05)
            for kind, flags, number, payload in calls.frames() if readable else ():
                windows.update(kind, number, payload)
                if kind == frames.SETTINGS and not flags & frames.ACK:
                    output += frame(frames.SETTINGS, frames.ACK, 0, b"")
                elif kind == frames.RST_STREAM or (
                    flags & frames.END_STREAM and kind == frames.HEADERS
                ):
                    counts["ended by the server"] += 1
                    left.pop(number, None)
            for number, size in left.items():
                taken = windows.take(number, size) if len(output) < _MB else 0
                if taken > 0:
                    is_first = size == len(prefix) + _BODY - 1
                    content = prefix + bytes(taken - len(prefix)) if is_first else bytes(taken)
                    output += frame(frames.DATA, 0, number, content)
                    left[number] -= taken
                    counts["bytes sent"] += taken
            with contextlib.suppress(BlockingIOError):
                output = output[calls.socket.send(output) :] if output else output
            if calls.closed:
                counts["closed"] += 1
                break
        counts["still open"] += len(left)
    return counts


def small_frames(target: Target, ended: Ended) -> Counter[str]:
    """Three connections: SETTINGS, WINDOW_UPDATE and PING; DATA of one byte; 1,000 open calls."""
    settings = frame(frames.SETTINGS, 0, 0, struct.pack(">HI", frames.INITIAL_WINDOW_SIZE, 65_536))
    update = frame(frames.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))
    kinds = itertools.cycle(["settings", "updates", "bytes"])

    def once(counts: Counter[str]) -> None:
        kind = next(kinds)
        with Calls(target.grpc_port) as calls:
            if kind == "bytes":
                head = calls.headers() + calls.data(b"\0" + struct.pack(">I", 30_000), end=False)
                flood = frame(frames.DATA, 0, calls.number, b"x") * 1000
                calls.socket.sendall(head)
            else:
                flood = (settings if kind == "settings" else update) * 1000
                for _ in range(900):
                    calls.socket.sendall(calls.headers())
            for _ in range(30):
                if ended():
                    return
                calls.socket.sendall(flood)
                counts[f"{kind}, thousands"] += 1
                if not calls.read(counts):
                    return

    return in_threads(3, ended, once)


def cancelled_calls(target: Target, ended: Ended) -> Counter[str]:
    """Two connections whose calls are whole and then reset at once."""
    message = WIRES["grpc"].encode(np.zeros((1, 28, 28), np.uint8)).content
    reset = struct.pack(">I", frames.CANCEL)

    def once(counts: Counter[str]) -> None:
        with Calls(target.grpc_port) as calls:
            credit = frame(frames.WINDOW_UPDATE, 0, 0, _CREDIT)
            calls.socket.sendall(credit)
            while not ended():
                for _ in range(20):
                    head = calls.headers()
                    calls.socket.sendall(
                        head
                        + calls.data(message)
                        + frame(frames.RST_STREAM, 0, calls.number, reset)
                    )
                    counts["calls"] += 1
                if not calls.read(counts, 0.005):
                    return

    return in_threads(2, ended, once)


def large_metadata(target: Target, ended: Ended) -> Counter[str]:
    """Calls with 20 KB of metadata, and with names of 100 KB, on four connections."""
    image = WIRES["grpc"].encode(np.zeros((1, 28, 28), np.uint8)).content
    metadata = {f"x-{n}": "m" * 120 for n in range(160)}

    def once(counts: Counter[str]) -> None:
        with Calls(target.grpc_port) as calls:
            while not ended():
                head = calls.headers(**metadata)
                # HEADERS of more than a frame continue in CONTINUATION.
                block = head[frames.FRAME_HEADER.size :]
                first, rest = block[: frames.DEFAULT_FRAME], block[frames.DEFAULT_FRAME :]
                calls.socket.sendall(
                    frame(frames.HEADERS, 0, calls.number, first)
                    + frame(frames.CONTINUATION, frames.END_HEADERS, calls.number, rest)
                    + calls.data(image)
                )
                counts["calls"] += 1
                if not calls.read(counts, 0.01):
                    return

    return in_threads(4, ended, once)


def scrapes(target: Target, ended: Ended) -> Counter[str]:
    """Sixteen callers of /metrics."""

    def once(counts: Counter[str]) -> None:
        status, _ = exchange(
            target.http_port, "GET", "/metrics", headers={"accept-encoding": "gzip"}
        )
        counts[str(status)] += 1

    return in_threads(16, ended, once)


def compressed_answers(target: Target, ended: Ended) -> Counter[str]:
    """Four callers whose answers of 2,000 images are compressed."""
    body = WIRES["binary"].encode(np.zeros((2000, 28, 28), np.uint8))
    length = dict(body.headers)["inference-header-content-length"]
    head = body.content[: int(length)].replace(b'"binary_data_output":true', b'"priority":0')
    once = posts(
        target.http_port,
        "/v2/models/mnist/infer",
        itertools.repeat(head + body.content[int(length) :]),
        "application/octet-stream",
        inference_header_content_length=str(len(head)),
        accept_encoding="gzip",
    )
    return in_threads(4, ended, once)


def large_requests(target: Target, ended: Ended) -> Counter[str]:
    """Four callers with 9,000 images per request."""
    body = bytes(784 * 9000)
    return in_threads(
        4,
        ended,
        posts(target.http_port, "/predict", itertools.repeat(body), "application/octet-stream"),
    )


def long_names(target: Target, ended: Ended) -> Counter[str]:
    """Four callers with names of 1 MB in bodies, whose errors would quote them."""
    body = json.dumps({"inputs": [{"name": "n" * _MB, "shape": [1], "datatype": "FP32"}]}).encode()
    return in_threads(
        4,
        ended,
        posts(
            target.http_port, "/v2/models/mnist/infer", itertools.repeat(body), "application/json"
        ),
    )


def idle_http_connections(target: Target, ended: Ended) -> Counter[str]:
    """Connections that say nothing, as many as may be open, opened again when they are closed."""
    return _idle(target.http_port, 64, b"", ended)


def idle_grpc_connections(target: Target, ended: Ended) -> Counter[str]:
    """1,100 gRPC connections with a preface and no call; a newcomer calls every 100 ms."""
    counts: Counter[str] = Counter()
    done = threading.Event()
    image = WIRES["grpc"].encode(np.zeros((1, 28, 28), np.uint8)).content

    def call() -> None:
        while not done.is_set():
            answers: Counter[str] = Counter()
            with contextlib.suppress(OSError), Calls(target.grpc_port) as calls:
                calls.socket.sendall(calls.headers() + calls.data(image))
                end = time.monotonic() + 5
                while not answers and time.monotonic() < end and calls.read(answers, 0.05):
                    pass
            counts[f"newcomers {min(answers, default='unanswered')}"] += 1
            time.sleep(0.1)

    caller = threading.Thread(target=call)
    caller.start()
    preface = frames.PREFACE + frame(frames.SETTINGS, 0, 0, b"")
    counts.update(_idle(target.grpc_port, 1100, preface, ended))
    done.set()
    caller.join()
    return counts


def _idle(port: int, number: int, first: bytes, ended: Ended) -> Counter[str]:
    counts: Counter[str] = Counter()
    poller = select.poll()
    connections: dict[int, socket.socket] = {}
    while not ended():
        for _ in range(min(50, number - len(connections))):
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port), timeout=0.5)
                connection.sendall(first)
                connections[connection.fileno()] = connection
                poller.register(connection, select.POLLIN)
                counts["opened"] += 1
        for fileno, _ in poller.poll(20):
            connection = connections[fileno]
            content = b""
            with contextlib.suppress(OSError):
                content = connection.recv(65536)
            if not content:
                poller.unregister(connection)
                del connections[fileno]
                connection.close()
                counts["closed by the server"] += 1
    for connection in connections.values():
        connection.close()
    return counts


def long_loop(target: Target, ended: Ended) -> Counter[str]:
    """Two callers of a model whose loop runs for seconds; its warm-up run is short."""
    return in_threads(2, ended, _infer(target, "loop", itertools.repeat([10_000])))


def transformer(target: Target, ended: Ended) -> Counter[str]:
    """Four callers of a transformer with an open length, at lengths of 8 to 512."""
    chance = np.random.default_rng(0)
    shapes = ([1, int(2 ** chance.integers(3, 10)), 64] for _ in itertools.count())
    return in_threads(4, ended, _infer(target, "transformer", shapes))


def _infer(
    target: Target, model: str, shapes: Iterator[list[int]]
) -> Callable[[Counter[str]], None]:
    lock = threading.Lock()

    def once(counts: Counter[str]) -> None:
        with lock:
            shape = next(shapes)
        status, _ = exchange(
            target.http_port, "POST", f"/v2/models/{model}/infer", *infer_body(shape)
        )
        counts[str(status)] += 1

    return once


def infer_body(shape: Sequence[int], timeout_s: float = 0.0) -> tuple[bytes, dict[str, str]]:
    """A binary request of ones, FP32, for the input `x`."""
    content = np.ones(shape, np.float32).tobytes()
    tensor = {
        "name": "x",
        "shape": list(shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(content)},
    }
    timeout = {"timeout": round(timeout_s * 1e6)} if timeout_s else {}
    parameters = {"binary_data_output": True, **timeout}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return head + content, {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }


def mix(target: Target, ended: Ended) -> Counter[str]:
    """Pictures, JSON, half-sent bodies and messages, and large requests, at the same time."""
    attacks = (pictures, json_below_the_limit, half_sent_bodies, half_sent_messages, large_requests)
    counts: Counter[str] = Counter()

    def run_one(attack: Attack) -> None:
        with contextlib.suppress(OSError):
            counts.update(attack(target, ended))

    threads = [threading.Thread(target=run_one, args=[attack]) for attack in attacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


ATTACKS: Mapping[str, Attack] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        json_lists,
        json_below_the_limit,
        pictures,
        pictures_over_grpc,
        half_sent_bodies,
        half_sent_messages,
        small_frames,
        cancelled_calls,
        large_metadata,
        scrapes,
        compressed_answers,
        large_requests,
        long_names,
        idle_http_connections,
        idle_grpc_connections,
        long_loop,
        transformer,
        mix,
    )
}


def for_seconds(seconds: float) -> Ended:
    """Ends this long after its first call: attacks first prepare what they send."""
    end: list[float] = []

    def ended() -> bool:
        if not end:
            end.append(time.monotonic() + seconds)
        return time.monotonic() > end[0]

    return ended


def attack(
    name: str, target: Target, seconds: float, core: int | None
) -> tuple[dict[str, int], float]:
    """Run an attack in a process of its own; its counts and its CPU time. Raises GeneratorError."""
    arguments = json.dumps([name, target, seconds])
    command = [sys.executable, "-m", "benchmarks.load.attacks", arguments]
    output, cpu_seconds = run(command, core, seconds + 2 * _TIMEOUT_S)
    return json.loads(output), cpu_seconds


def main() -> None:
    """Run the attack in the first argument; print its counts as JSON."""
    name, target, seconds = json.loads(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts = ATTACKS[name](Target(*target), for_seconds(seconds))
    print(json.dumps(dict(sorted(counts.items()))))


if __name__ == "__main__":
    main()
