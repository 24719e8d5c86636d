"""Abusive loads over gRPC."""

from __future__ import annotations

import contextlib
import itertools
import struct
import time
from collections import Counter

import numpy as np

from benchmarks.load.arrivals import frame
from benchmarks.load.attacks.callers import (
    LARGEST_BODY,
    MB,
    TIMEOUT_S,
    Ended,
    Target,
    in_threads,
    selected,
)
from benchmarks.load.attacks.calls import Calls, Windows
from benchmarks.load.attacks.over_http import large_png
from benchmarks.wire_formats import WIRES
from service.grpc.http2 import frames
from service.stubs.digits.v1 import digits_pb2

_CREDIT = struct.pack(">I", 2**30)


def pictures_over_grpc(target: Target, ended: Ended) -> Counter[str]:
    """Four callers with the PNG of 4000x4000, over gRPC."""
    message = digits_pb2.PredictRequest(image=large_png()).SerializeToString()
    content = b"\0" + struct.pack(">I", len(message)) + message

    def once(counts: Counter[str]) -> None:
        answers: Counter[str] = Counter()
        with Calls(target.grpc_port) as calls:
            calls.send_slowly(calls.headers("/digits.v1.DigitClassifier/Predict"), content)
            end = time.monotonic() + TIMEOUT_S
            while not answers and time.monotonic() < end and calls.read(answers, 0.05):
                pass
        counts.update(answers)

    return in_threads(4, ended, once)


def half_sent_messages(target: Target, ended: Ended) -> Counter[str]:
    """Sixty messages of 8 MB on one gRPC connection, without their last byte."""
    counts: Counter[str] = Counter()
    prefix = b"\0" + struct.pack(">I", LARGEST_BODY)
    with Calls(target.grpc_port) as calls:
        left = dict.fromkeys(range(1, 121, 2), len(prefix) + LARGEST_BODY - 1)
        windows = Windows(list(left))
        output = b"".join(calls.headers() for _ in left)
        calls.socket.setblocking(False)
        while not ended():
            readable, _ = selected([calls.socket], [calls.socket] if output else [], 0.05)
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
                taken = windows.take(number, size) if len(output) < MB else 0
                if taken > 0:
                    is_first = size == len(prefix) + LARGEST_BODY - 1
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
