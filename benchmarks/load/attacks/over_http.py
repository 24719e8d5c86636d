"""Abusive loads over HTTP."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import socket
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.load.attacks.callers import (
    LARGEST_BODY,
    MB,
    TIMEOUT_S,
    Ended,
    Target,
    exchange,
    in_threads,
    posts,
    selected,
)
from benchmarks.wire_formats import WIRES


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


def half_sent_bodies(target: Target, ended: Ended) -> Counter[str]:
    """Sixty bodies of 8 MB without their last byte."""
    head = (
        "POST /v2/models/mnist/infer HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: application/octet-stream\r\ncontent-length: {LARGEST_BODY}\r\n\r\n"
    ).encode()
    return _half_sent(target.http_port, [head] * 60, LARGEST_BODY - 1, ended)


def _half_sent(port: int, heads: Sequence[bytes], size: int, ended: Ended) -> Counter[str]:
    """Send each head on a connection of its own, then as much as the server takes of a body."""
    counts: Counter[str] = Counter()
    left: dict[socket.socket, int] = {}
    part = bytes(256 * 1024)
    for head in heads:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
            connection.sendall(head)
            connection.setblocking(False)
            left[connection] = size
    while left and not ended():
        writable = [each for each, bytes_left in left.items() if bytes_left]
        readable, ready = selected(list(left), writable, 0.1)
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
    body = json.dumps({"inputs": [{"name": "n" * MB, "shape": [1], "datatype": "FP32"}]}).encode()
    return in_threads(
        4,
        ended,
        posts(
            target.http_port, "/v2/models/mnist/infer", itertools.repeat(body), "application/json"
        ),
    )
