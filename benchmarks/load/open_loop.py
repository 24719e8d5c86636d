"""An open loop: sends requests at a constant rate, whether or not answers arrive.

Debian packages no such tool: wrk2 is missing, and the rates of h2load and hey are per connection
and wait for the previous answer. This generator avoids coordinated omission: the latency of a
request counts from the moment it was due, so it includes the wait for a free connection and for
the generator itself. The generator also reports how late it sent requests; where that is not small,
the generator was too slow.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.load.result import GeneratorError, Load, run
from benchmarks.wire_formats import Body

_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The generator's task; it reaches the generator's process as JSON."""

    port: int
    path: str
    body_file: str
    headers: tuple[tuple[str, str], ...]
    connections: int
    rate: float
    seconds: float
    ca: str  # the certificate to trust; without TLS if it is empty


def load(
    port: int,
    path: str,
    body: Body,
    *,
    connections: int,
    rate: float,
    seconds: int,
    core: int | None,
    scratch: Path,
    ca: Path | None = None,
) -> Load:
    """Send `rate` requests per second over at most this many connections, with TLS if it has a CA.

    Raises GeneratorError.
    """
    content = scratch / "body.bin"
    content.write_bytes(body.content)
    plan = Plan(
        port=port,
        path=path,
        body_file=str(content),
        headers=body.headers,
        connections=connections,
        rate=rate,
        seconds=seconds,
        ca=str(ca or ""),
    )
    command = [sys.executable, "-m", "benchmarks.load.open_loop", json.dumps(asdict(plan))]
    output, cpu_seconds = run(command, core, seconds + _GRACE_S + 60)
    return Load(**json.loads(output))._replace(generator_cpu_seconds=cpu_seconds)


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with at most one request in flight."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._buffer = bytearray()
        self._due = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def send(self, due: float) -> None:
        self._due, self.busy = due, True
        self._transport.write(self._generator.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        length = answer_length(self._buffer)
        if length is None or len(self._buffer) < length:
            return
        succeeded = self._buffer[9:12] == b"200"
        del self._buffer[:length]
        self.busy = False
        self._generator.answered(self, self._due, succeeded)

    def connection_lost(self, error: Exception | None) -> None:
        self._generator.lost(self)


def answer_length(buffer: bytes | bytearray) -> int | None:
    """Length of the first HTTP/1.1 answer in the buffer; None while it is unknown.

    Raises GeneratorError for an answer that ends with its connection, which cannot be reused.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    for line in bytes(buffer[:end]).lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return end + 4 + int(value)
        if name == b"transfer-encoding" and value.strip() == b"chunked":
            return _chunked_length(buffer, end + 4)
    raise GeneratorError("The answer has neither a Content-Length nor chunks.")


def _chunked_length(buffer: bytes | bytearray, start: int) -> int | None:
    """Where the chunks that start here end, without trailers; None while they are incomplete."""
    while (line_end := buffer.find(b"\r\n", start)) >= 0:
        size = int(bytes(buffer[start:line_end]).split(b";")[0], 16)
        start = line_end + 2 + size + 2
        if size == 0:
            return start
    return None


class Generator:
    """Sends on schedule and records what happens."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        content = Path(plan.body_file).read_bytes()
        lines = [f"POST {plan.path} HTTP/1.1", f"host: 127.0.0.1:{plan.port}"]
        lines += [f"{name}: {value}" for name, value in plan.headers]
        lines += [f"content-length: {len(content)}", "", ""]
        self.request = "\r\n".join(lines).encode() + content
        self._free: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._times: list[float] = []
        self._lateness: list[float] = []
        self._finished = 0

    async def run(self) -> Load:
        """Send every request, wait for the answers, and return the totals."""
        plan, loop = self._plan, asyncio.get_running_loop()
        context = ssl.create_default_context(cafile=plan.ca) if plan.ca else None
        for _ in range(plan.connections):
            _, connection = await loop.create_connection(
                lambda: _Connection(self), "127.0.0.1", plan.port, ssl=context
            )
            self._free.append(connection)
        total, sent = int(plan.rate * plan.seconds), 0
        start = perf_counter()
        while sent < total:
            due_by_now = min(total, int((perf_counter() - start) * plan.rate) + 1)
            for number in range(sent, due_by_now):
                self._due(start + number / plan.rate)
            sent = due_by_now
            await asyncio.sleep(max(0.0, start + sent / plan.rate - perf_counter()))
        end = perf_counter() + _GRACE_S
        while self._finished < total and perf_counter() < end:
            await asyncio.sleep(0.005)
        seconds = perf_counter() - start
        if not self._times:
            raise GeneratorError("No request was answered.")
        return Load(
            requests=len(self._times),
            seconds=seconds,
            p50_ms=float(np.percentile(self._times, 50)) * 1000,
            p99_ms=float(np.percentile(self._times, 99)) * 1000,
            failed=total - len(self._times),
            p99_lateness_ms=float(np.percentile(self._lateness, 99)) * 1000,
        )

    def _due(self, due: float) -> None:
        self._lateness.append(perf_counter() - due)
        if self._free:
            self._free.popleft().send(due)
        else:
            self._waiting.append(due)

    def answered(self, connection: _Connection, due: float, succeeded: bool) -> None:
        self._finished += 1
        if succeeded:
            self._times.append(perf_counter() - due)
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: _Connection) -> None:
        if connection in self._free:
            self._free.remove(connection)
        if connection.busy:
            self._finished += 1


def main() -> None:
    """Run a plan from JSON in the first argument; print the Load as JSON."""
    import uvloop

    plan = Plan(**json.loads(sys.argv[1]))
    print(json.dumps(uvloop.run(Generator(plan).run())._asdict()))


if __name__ == "__main__":
    main()
