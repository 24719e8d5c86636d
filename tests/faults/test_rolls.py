"""Workers are replaced under load by SIGHUP, as certificates change: no request fails.

No client here repeats a request, but for one that is refused over HTTP/2. Clients that keep
connections leave one when an answer says so.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from service.stubs.digits.v1 import digits_pb2, digits_pb2_grpc
from tests.certificates import Authority, Files
from tests.conftest import Server, free_ports

RAW = {"content-type": "application/octet-stream"}
BLANK = bytes(784)
WORKERS = 2
ROLLS = 3
HEADER_TIMEOUT = 5.0  # for which HTTP/1 keeps idle connections, and a replaced worker its clients
TLS = ["plain", "tls", "Granian"]

# Prints the status of each answer.
NODE = """
const http2 = require("http2");
const [url, ca] = process.argv.slice(1);
let session;
// A refused request was not processed. That happens to one that nghttp2 sends just after it has
// confirmed a GOAWAY, which Node hears of too late.
const isRefused = (request) => request.rstCode === http2.constants.NGHTTP2_REFUSED_STREAM;
function predict() {
  if (!session || session.closed || session.destroyed) {
    session = http2.connect(url, ca ? {ca: require("fs").readFileSync(ca)} : {});
    session.on("error", (error) => console.log(`${error}`));
  }
  const headers = {":method": "POST", ":path": "/predict"};
  headers["content-type"] = "application/octet-stream";
  const request = session.request(headers);
  let status;
  request.on("response", (headers) => { status = headers[":status"]; });
  request.on("error", (error) => { if (!isRefused(request)) console.log(`${error}`); });
  request.on("close", () => {
    if (!isRefused(request)) console.log(status);
    setImmediate(predict);
  });
  request.resume();
  request.end(Buffer.alloc(784));
}
predict();
"""

Call = Callable[[], None]


class Rolled:
    """A server that is rolled, and clients that call it meanwhile."""

    def __init__(self, server: Server, health_port: int, authority: Authority | None) -> None:
        self.server, self.health_port = server, health_port
        self.ca = authority.ca if authority else None
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []
        self._end = threading.Event()

    @property
    def context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.ca) if self.ca else None

    @contextlib.contextmanager
    def clients(self, calls: dict[str, Callable[[], Iterator[None]]]) -> Iterator[None]:
        """Call from a thread per client until the end; each makes at least one more call then."""

        def run(name: str, call: Callable[[], Iterator[None]]) -> None:
            while not self._end.is_set():
                try:
                    for _ in call():
                        self.counts[name] += 1
                        if self._end.is_set():
                            break
                except (OSError, http.client.HTTPException, AssertionError) as e:
                    self.failures.append(f"{name}: {e!r}")
                except grpc.RpcError as e:
                    self.failures.append(f"{name}: {e.code()} {e.details()}")

        self.counts = dict.fromkeys(calls, 0)
        threads = [threading.Thread(target=run, args=item) for item in calls.items()]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_calls()
            yield
            self.wait_for_calls()
        finally:
            self._end.set()
            for thread in threads:
                thread.join()

    def wait_for_calls(self) -> None:
        before = dict(self.counts)
        self.server.wait_until(
            lambda: bool(self.failures) or all(self.counts[n] > c + 1 for n, c in before.items())
        )

    def roll(self, begin: Call) -> None:
        old = set(self.server.worker_pids())
        begin()
        self.server.wait_until(
            lambda: (
                len(self.server.worker_pids()) == WORKERS
                and not old & set(self.server.worker_pids())
            )
        )

    # The clients: each yields after every answer that is right.

    def http_connection(self) -> http.client.HTTPConnection:
        port = self.server.http_port
        if context := self.context:
            return http.client.HTTPSConnection("localhost", port, timeout=60, context=context)
        return http.client.HTTPConnection("localhost", port, timeout=60)

    def fresh_http(self) -> Iterator[None]:
        with contextlib.closing(self.http_connection()) as connection:
            predict(connection)
        yield

    def kept_http(self, pause_s: float = 0.0) -> Iterator[None]:
        with contextlib.closing(self.http_connection()) as connection:
            while True:
                predict(connection)  # if the answer says `close`, the next one opens another
                yield
                time.sleep(pause_s)

    def slow_http(self) -> Iterator[None]:
        return self.kept_http(pause_s=1.0)

    def late_http(self) -> Iterator[None]:
        """Connect (and shake hands), and send the first request later."""
        with contextlib.closing(self.http_connection()) as connection:
            connection.connect()
            time.sleep(1.0)
            predict(connection)
        yield

    def http2(self) -> Iterator[None]:
        """One connection until the server says GOAWAY."""
        # Not by httpx, which takes a GOAWAY for a lost connection; nor by curl 7.88, whose second
        # request on a connection without TLS is malformed.
        url = f"{'https' if self.ca else 'http'}://localhost:{self.server.http_port}"
        client = subprocess.Popen(
            ["node", "-e", NODE, url, str(self.ca or "")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        with client:
            try:
                for line in client.stdout:
                    assert line == "200\n", line
                    yield
            finally:
                client.terminate()

    def channel(self) -> grpc.Channel:
        target = f"localhost:{self.server.grpc_port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.ca:
            credentials = grpc.ssl_channel_credentials(self.ca.read_bytes())
            return grpc.secure_channel(target, credentials, options)
        return grpc.insecure_channel(target, options)

    def fresh_grpc(self) -> Iterator[None]:
        with self.channel() as channel:
            predict_by_grpc(channel)
        yield

    def kept_grpc(self) -> Iterator[None]:
        with self.channel() as channel:
            while True:
                predict_by_grpc(channel)
                yield

    def health(self) -> Iterator[None]:
        connection = http.client.HTTPConnection("localhost", self.health_port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/v2/health/ready")
            assert connection.getresponse().status == 200
        yield


def predict(connection: http.client.HTTPConnection) -> None:
    connection.request("POST", "/predict", BLANK, RAW)
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content
    assert len(json.loads(content)["predictions"]) == 1


def predict_by_grpc(channel: grpc.Channel) -> None:
    stub = digits_pb2_grpc.DigitClassifierStub(channel)
    answer = stub.Predict(digits_pb2.PredictRequest(pixels=BLANK), timeout=60)
    assert len(answer.predictions) == 1


@pytest.fixture(params=TLS)
def authority(request: pytest.FixtureRequest, tmp_path: Path) -> Authority | None:
    return Authority(tmp_path / "authority") if request.param == "tls" else None


@pytest.fixture
def files(authority: Authority | None) -> Files | None:
    return authority.server() if authority else None


@pytest.fixture
def rolled(
    request: pytest.FixtureRequest,
    start_server: Callable[..., Server],
    authority: Authority | None,
    files: Files | None,
) -> Rolled:
    (health_port,) = free_ports(1)
    flags = files.flags if files else {}
    settings = {"workers": WORKERS, "health_port": health_port, "header_timeout": HEADER_TIMEOUT}
    if request.node.callspec.params["authority"] == "Granian":
        settings["fast_http"] = False
    server = start_server(ready=False, **settings, **flags)
    served = Rolled(server, health_port, authority)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == WORKERS)
    return served


def test_no_request_fails_while_workers_are_replaced(
    rolled: Rolled, authority: Authority | None
) -> None:
    """New connections, kept ones, such as are idle for a second, and those without a request."""

    def begin() -> None:
        if authority:
            authority.server()  # new files
        rolled.server.process.send_signal(signal.SIGHUP)

    calls = {
        "new HTTP connections": rolled.fresh_http,
        "new HTTP connections, too": rolled.fresh_http,
        "kept HTTP connection": rolled.kept_http,
        "slow HTTP client": rolled.slow_http,
        "late HTTP client": rolled.late_http,
        "HTTP/2": rolled.http2,
        "new gRPC connections": rolled.fresh_grpc,
        "kept gRPC connection": rolled.kept_grpc,
        "probe": rolled.health,
    }
    with rolled.clients(calls):
        for _ in range(ROLLS):
            rolled.roll(begin)
    assert rolled.failures == []
    assert all(rolled.counts.values())
    log = rolled.server.log.read_text()
    assert "cut off" not in log
    assert "ended unexpectedly" not in log
    assert rolled.server.stop() == 0


@pytest.mark.parametrize("authority", ["plain"], indirect=True)
def test_an_idle_connection_ends_as_by_its_timeout_and_a_stop_does_not_wait_for_it(
    rolled: Rolled,
) -> None:
    server = rolled.server
    with contextlib.closing(rolled.http_connection()) as idle:
        predict(idle)
        (old,) = [
            pid for pid in server.worker_pids() if sockets_of(pid, server.http_port, ESTABLISHED)
        ]
        server.process.send_signal(signal.SIGHUP)
        server.wait_until(lambda: server.log.read_text().count("Serving mnist") == WORKERS + 1)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < HEADER_TIMEOUT
        assert idle.sock.recv(1) == b""
        assert not Path(f"/proc/{old}").exists()


LISTEN, ESTABLISHED = "0A", "01"  # tcp(7), /proc/net/tcp


def sockets_of(pid: int, port: int, state: str) -> set[str]:
    """The sockets of a process that have this local port and state."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == state:
            inodes.add(f"socket:[{fields[9]}]")
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it is closed by now
            own.add(str(entry.readlink()))
    return inodes & own


@pytest.mark.parametrize("authority", ["plain"], indirect=True)
def test_no_socket_is_left_open_that_no_worker_accepts_from(rolled: Rolled) -> None:
    """Each worker has one per port, also after rolls and a crash, and the supervisor no others."""
    server = rolled.server
    ports = (server.http_port, server.grpc_port, rolled.health_port)

    def is_right() -> bool:
        try:
            for port in ports:
                each = [sockets_of(pid, port, LISTEN) for pid in server.worker_pids()]
                if any(len(sockets) != 1 for sockets in each):
                    return False
                everyone = set().union(*each)
                supervisor = sockets_of(server.process.pid, port, LISTEN)
                if len(everyone) != WORKERS or supervisor != everyone:
                    return False
        except (FileNotFoundError, ProcessLookupError):  # of a worker that has just ended
            return False
        return True

    server.wait_until(is_right)
    rolled.roll(lambda: server.process.send_signal(signal.SIGHUP))
    server.wait_until(is_right)
    killed = server.worker_pids()[0]
    os.kill(killed, signal.SIGKILL)
    server.wait_until(lambda: "ended unexpectedly" in server.log.read_text())
    # The other worker alone listens until the new one does: none of these meets a closed port.
    for _ in range(20):
        with contextlib.closing(rolled.http_connection()) as connection:
            predict(connection)
    server.wait_until(is_right)
    assert server.stop() == 0
