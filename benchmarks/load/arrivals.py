"""Load in phases, closed or open, over HTTP/1.1 or gRPC, from one thread on epoll.

Strategy: an open phase draws its arrivals (Poisson) before it begins, and sends each when it is
due, on a connection that can take it; nothing waits for an answer. An arrival that finds every
connection occupied is counted as not sent. Latency counts from when a request was due. Phases
follow each other without a pause: requests of one are still in flight when the next begins, as
they are when an overload ends.

Every request is encoded once, and an answer is checked by its status and length, so that one
process offers some thousand requests per second with a fraction of a core. It reports its own CPU
time and how late it sent: if these are not small, it is the limit, not the server.

The HTTP/2 of this client is for this server alone: it reads grpc-status from headers that use no
HPACK table, and takes the bodies of answers without flow control.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import select
import socket
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np

from benchmarks.load.open_loop import answer_length
from benchmarks.load.result import GeneratorError, run
from benchmarks.server_process import machine_cpu_seconds, process_cpu_seconds
from benchmarks.wire_formats import Body
from service.grpc.http2 import frames

_GRACE_S = 10.0  # for answers after the last phase
_REOPEN_S = 0.1  # pause before a connection is opened again
_AGAIN_S = 0.1  # pause of a closed loop after a refusal; without it, it would be an overload
_EVENTS = 64  # events handled before the next look at the arrivals
_RECEIVE = 256 * 1024
_MAX_STREAMS = 100
_GRPC_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Phase:
    """A closed loop with `in_flight` requests, or else an open loop of `rate` per second."""

    name: str
    seconds: float
    in_flight: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The generator's task; it reaches the generator's process as JSON.

    `wire` is http or grpc. A right answer has `answer_bytes` bytes of content. After `deadline_s`
    (0 for none) an answer is late, and a gRPC call is cancelled, as by gRPC's clients. `pids` are
    the processes whose CPU time is the server's.
    """

    port: int
    wire: str
    path: str
    body_file: str
    headers: Sequence[tuple[str, str]]
    connections: int
    answer_bytes: int
    phases: Sequence[Phase]
    deadline_s: float = 0.0
    pids: Sequence[int] = ()
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What one phase did; times in seconds, `due` since its start.

    `results` holds, by request sent, "ok", an HTTP status, the name of a gRPC status, or one of
    "late", "expired" (cancelled at its deadline), "wrong", "lost" (with its connection) and
    "unanswered". `retry_after` holds what refusals said, in seconds.
    """

    name: str
    seconds: float = 0.0
    not_sent: int = 0
    due: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    retry_after: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    generator_cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    machine_cpu_s: float = 0.0  # of all programs, these two included


@dataclass(slots=True)
class _Request:
    """A request in flight: when it was due, and the phase that it belongs to."""

    outcome: Outcome
    began: float
    due: float
    received: int = 0  # bytes of content, gRPC only

    def end(self, result: str, deadline_s: float) -> None:
        latency = perf_counter() - self.due
        if result == "ok" and deadline_s and latency > deadline_s:
            result = "late"
        self.outcome.due.append(round(self.due - self.began, 6))
        self.outcome.latencies.append(round(latency, 6))
        self.outcome.results.append(result)


def load(plan: Plan, body: Body, *, core: int | None, scratch: Path) -> list[Outcome]:
    """Run the plan in a process of its own; `body` replaces its file and headers.

    Raises GeneratorError.
    """
    content = scratch / f"body-{plan.wire}.bin"
    content.write_bytes(body.content)
    fields = asdict(plan) | {"body_file": str(content), "headers": [*plan.headers, *body.headers]}
    command = [sys.executable, "-m", "benchmarks.load.arrivals", json.dumps(fields)]
    seconds = sum(phase.seconds for phase in plan.phases)
    output, _ = run(command, core, seconds + _GRACE_S + 60)
    return [Outcome(**outcome) for outcome in json.loads(output)]


class _Connection(ABC):
    """A non-blocking connection that opens itself again when the server closes it."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.is_free = False
        self.open()

    def open(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect_ex(("127.0.0.1", self._generator.plan.port))
        self._output = bytearray()
        self._fileno = self._socket.fileno()
        self._generator.register(self, self._fileno)
        self.opened()

    @abstractmethod
    def opened(self) -> None:
        """Called when the connection is new."""

    @abstractmethod
    def can_send(self) -> bool:
        """Whether one more request can be sent now."""

    @abstractmethod
    def send(self, request: _Request) -> None:
        """Send one request."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Handle bytes of the server."""

    @abstractmethod
    def in_flight(self) -> list[_Request]:
        """The unanswered requests, which the connection forgets."""

    def write(self, *parts: bytes) -> None:
        if self._output:
            self._output += b"".join(parts)
            return
        size = sum(map(len, parts))
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the next event says that the connection is closed
        if sent < size:
            self._output += b"".join(parts)[sent:]
            self._generator.poller.modify(self._fileno, select.EPOLLIN | select.EPOLLOUT)

    def handle(self, event: int) -> None:
        try:
            if event & select.EPOLLOUT:
                del self._output[: self._socket.send(self._output)]
                if not self._output:
                    self._generator.poller.modify(self._fileno, select.EPOLLIN)
            data = self._socket.recv(_RECEIVE) if event & ~select.EPOLLOUT else None
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.received(data)
        elif data is not None:
            self.close()

    def close(self) -> None:
        """Close, count what was in flight as lost, and open again a little later."""
        del self._generator.by_fileno[self._fileno]
        self._socket.close()
        for request in self.in_flight():
            self._generator.ended(request, "lost")
        self._generator.closed.append((perf_counter() + _REOPEN_S, self))


class _Http1(_Connection):
    """At most one request in flight."""

    def opened(self) -> None:
        self._request: _Request | None = None
        self._buffer = bytearray()
        self._generator.release(self)

    def can_send(self) -> bool:
        return self._request is None and self._fileno in self._generator.by_fileno

    def send(self, request: _Request) -> None:
        self._request = request
        self.write(self._generator.head, self._generator.content)

    def received(self, data: bytes) -> None:
        self._buffer += data
        length = answer_length(self._buffer)
        if length is None or len(self._buffer) < length or self._request is None:
            return
        end = self._buffer.find(b"\r\n\r\n")
        head = bytes(self._buffer[:end]).lower()
        result = head[9:12].decode()
        if result == "200":
            result = "ok" if length - end - 4 == self._generator.plan.answer_bytes else "wrong"
        elif (start := head.find(b"\r\nretry-after:")) >= 0:
            value = head[start + len(b"\r\nretry-after:") :].partition(b"\r\n")[0]
            self._request.outcome.retry_after.append(float(value))
        del self._buffer[:length]
        request, self._request = self._request, None
        if b"\r\nconnection: close" in head:
            self.close()
        else:
            self._generator.release(self)
        self._generator.ended(request, result)

    def in_flight(self) -> list[_Request]:
        request, self._request = self._request, None
        return [] if request is None else [request]


class _Http2(_Connection):
    """As many calls as the server's streams and window allow."""

    def opened(self) -> None:
        self._calls: dict[int, _Request] = {}
        self._next_id = 1
        self._window = frames.DEFAULT_WINDOW
        self._streams = 0  # until the server's SETTINGS have come
        self._reader = frames.FrameReader(frames.LARGEST_FRAME, 2**20)
        self._reader.preface_received = True
        settings = struct.pack(">HIHI", 2, 0, 4, frames.LARGEST_WINDOW)
        grant = struct.pack(">I", frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW)
        self.write(
            frames.PREFACE,
            frame(frames.SETTINGS, 0, 0, settings),
            frame(frames.WINDOW_UPDATE, 0, 0, grant),
        )

    def can_send(self) -> bool:
        return (
            len(self._calls) < self._streams
            and self._window >= len(self._generator.content)
            and self._fileno in self._generator.by_fileno
        )

    def send(self, request: _Request) -> None:
        content, head = self._generator.content, self._generator.head
        number = self._next_id
        self._next_id += 2
        self._window -= len(content)
        self._calls[number] = request
        parts = [frame(frames.HEADERS, frames.END_HEADERS, number, head)]
        for start in range(0, len(content), frames.DEFAULT_FRAME):
            part = content[start : start + frames.DEFAULT_FRAME]
            last = start + len(part) == len(content)
            parts.append(frame(frames.DATA, frames.END_STREAM * last, number, part))
        self.write(*parts)
        if self._generator.plan.deadline_s:
            end = request.due + self._generator.plan.deadline_s
            self._generator.deadlines.append((end, self, number, request))

    def give_up(self, number: int, request: _Request) -> None:
        """Cancel a call whose deadline has passed, unless it has ended."""
        if self._calls.get(number) is request:
            del self._calls[number]
            self.write(frame(frames.RST_STREAM, 0, number, struct.pack(">I", frames.CANCEL)))
            self._generator.release(self)
            self._generator.ended(request, "expired")

    def received(self, data: bytes) -> None:
        for kind, flags, number, payload in self._reader.frames(data):
            request = self._calls.get(number)
            if kind == frames.DATA and request is not None:
                request.received += len(payload)
            elif kind == frames.HEADERS and flags & frames.END_STREAM and request is not None:
                self._end(number, grpc_status(payload))
            elif kind == frames.RST_STREAM and request is not None:
                self._end(number, f"RST_STREAM {struct.unpack('>I', payload)[0]}")
            elif kind == frames.WINDOW_UPDATE and number == 0:
                self._window += struct.unpack(">I", payload)[0]
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                self._streams = self._streams or _MAX_STREAMS
                for name, value in struct.iter_unpack(">HI", payload):
                    if name == frames.MAX_CONCURRENT_STREAMS:
                        self._streams = min(value, _MAX_STREAMS)
                self.write(frame(frames.SETTINGS, frames.ACK, 0, b""))
            elif kind == frames.PING and not flags & frames.ACK:
                self.write(frame(frames.PING, frames.ACK, 0, payload))
            elif kind == frames.GOAWAY:
                self._streams = -1  # no more calls; the server closes after those in flight
        self._generator.release(self)

    def _end(self, number: int, result: str) -> None:
        request = self._calls.pop(number)
        if result == "ok" and request.received != self._generator.plan.answer_bytes:
            result = "wrong"
        self._generator.ended(request, result)

    def in_flight(self) -> list[_Request]:
        calls, self._calls = list(self._calls.values()), {}
        return calls


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    size = len(payload)
    return frames.FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def header_block(fields: Sequence[tuple[str, str]]) -> bytes:
    """Encode headers without HPACK's tables; names and values of less than 127 bytes."""
    block = b""
    for name, value in fields:
        block += bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block


def grpc_status(block: bytes) -> str:
    """The name of the grpc-status in trailers that use no HPACK table; "ok" for OK."""
    start = block.find(b"\x0bgrpc-status")
    if start < 0:
        return "no grpc-status"
    start += len(b"\x0bgrpc-status")
    code = int(block[start + 1 : start + 1 + block[start]])
    return _GRPC_NAMES[code] if code else "ok"


class Generator:
    """Sends on schedule and records what happens."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.content = Path(plan.body_file).read_bytes()
        if plan.wire == "http":
            lines = [f"POST {plan.path} HTTP/1.1", f"host: 127.0.0.1:{plan.port}"]
            lines += [f"{name}: {value}" for name, value in plan.headers]
            lines += [f"content-length: {len(self.content)}", "", ""]
            self.head = "\r\n".join(lines).encode()
        else:
            pseudo = [(":method", "POST"), (":scheme", "http"), (":path", plan.path)]
            authority = [(":authority", f"127.0.0.1:{plan.port}")]
            self.head = header_block([*pseudo, *authority, *plan.headers])
        self.poller = select.epoll()
        self.by_fileno: dict[int, _Connection] = {}
        self.closed: deque[tuple[float, _Connection]] = deque()
        self.deadlines: deque[tuple[float, _Http2, int, _Request]] = deque()
        self._free: deque[_Connection] = deque()
        self._unanswered: dict[int, _Request] = {}
        self._closed_loop: Outcome | None = None
        self._again: deque[float] = deque()  # when the closed loop sends after refusals
        self._began = 0.0

    def register(self, connection: _Connection, fileno: int) -> None:
        self.by_fileno[fileno] = connection
        self.poller.register(fileno, select.EPOLLIN)

    def release(self, connection: _Connection) -> None:
        """Note that a connection may take a request."""
        if not connection.is_free and connection.can_send():
            connection.is_free = True
            self._free.append(connection)

    def ended(self, request: _Request, result: str) -> None:
        """Record an answer; a closed loop sends the next request."""
        del self._unanswered[id(request)]
        request.end(result, self.plan.deadline_s)
        if self._closed_loop is request.outcome:
            if result == "ok":
                self._send(request.outcome, perf_counter())
            else:
                self._again.append(perf_counter() + _AGAIN_S)

    def _send(self, outcome: Outcome, due: float) -> None:
        while self._free:
            connection = self._free.popleft()
            connection.is_free = False
            if connection.can_send():
                request = _Request(outcome, self._began, due)
                self._unanswered[id(request)] = request
                connection.send(request)
                self.release(connection)
                outcome.lateness.append(perf_counter() - due)
                return
        outcome.not_sent += 1

    def run(self) -> list[Outcome]:
        """Run every phase, then wait for the remaining answers."""
        make = _Http1 if self.plan.wire == "http" else _Http2
        for number in range(self.plan.connections):
            make(self)
            if number % 64 == 63:  # the server's backlog is bounded
                self._poll(0.02)
        end = perf_counter() + _GRACE_S
        while len(self._free) < self.plan.connections and perf_counter() < end:
            self._poll(0.02)
        if not self._free:
            raise GeneratorError("The server accepts no connection.")
        gc.freeze()
        gc.disable()
        chance = random.Random(self.plan.seed)  # noqa: S311 (repeatable load, not a secret)
        outcomes = [self._phase(phase, chance) for phase in self.plan.phases]
        end = perf_counter() + _GRACE_S
        while self._unanswered and perf_counter() < end:
            self._poll(0.02)
        for request in list(self._unanswered.values()):
            self.ended(request, "unanswered")
        return outcomes

    def _phase(self, phase: Phase, chance: random.Random) -> Outcome:
        outcome = Outcome(phase.name)
        arrivals: deque[float] = deque()
        since = 0.0
        while phase.rate and (since := since + chance.expovariate(phase.rate)) < phase.seconds:
            arrivals.append(since)
        generator_cpu, server_cpu = time.process_time(), self._server_cpu_s()
        machine_cpu = machine_cpu_seconds()
        begin = self._began = perf_counter()
        end = begin + phase.seconds
        if phase.in_flight:
            self._closed_loop = outcome
            for _ in range(phase.in_flight):
                self._send(outcome, perf_counter())
        # A closed loop on a busy machine lasts until there is an answer to count.
        while (now := perf_counter()) < end or (
            phase.in_flight and "ok" not in outcome.results and now < end + _GRACE_S
        ):
            while arrivals and begin + arrivals[0] <= now:
                self._send(outcome, begin + arrivals.popleft())
            while self._again and self._again[0] <= now:
                self._again.popleft()
                self._send(outcome, now)
            following = begin + arrivals[0] if arrivals else max(end, now + 0.01)
            self._poll(max(0.0, following - perf_counter()))
        self._closed_loop = None
        self._again.clear()
        for late in arrivals:  # due before the end, at the last look
            self._send(outcome, begin + late)
        outcome.seconds = perf_counter() - begin
        outcome.generator_cpu_s = time.process_time() - generator_cpu
        outcome.server_cpu_s = self._server_cpu_s() - server_cpu
        outcome.machine_cpu_s = machine_cpu_seconds() - machine_cpu
        return outcome

    def _poll(self, seconds: float) -> None:
        """Handle what the server sent, and what time brings."""
        for fileno, event in self.poller.poll(min(seconds, 0.02), _EVENTS):
            # An earlier event of this round may have closed the connection.
            if connection := self.by_fileno.get(fileno):
                connection.handle(event)
        now = perf_counter()
        while self.deadlines and self.deadlines[0][0] <= now:
            _, call_connection, number, request = self.deadlines.popleft()
            call_connection.give_up(number, request)
        while self.closed and self.closed[0][0] <= now:
            self.closed.popleft()[1].open()

    def _server_cpu_s(self) -> float:
        return sum(process_cpu_seconds(pid) for pid in self.plan.pids)


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile; NaN without values."""
    return float(np.percentile(values, share)) if len(values) else float("nan")


def main() -> None:
    """Run a plan from JSON in the first argument; print the outcomes as JSON."""
    fields = json.loads(sys.argv[1])
    fields["phases"] = [Phase(**phase) for phase in fields["phases"]]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps([asdict(outcome) for outcome in Generator(Plan(**fields)).run()]))


if __name__ == "__main__":
    main()
