"""Keys on a real server, over both transports: which are accepted, and when changes count."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import hpack
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from service.access.keys import SCOPES, Key, KeysFile, digest_of, new_key
from service.grpc.http2 import frames as wire
from service.http.routes import ROUTES
from tests.conftest import Server, free_ports
from tests.e2e.bad_inputs import access
from tests.e2e.bad_inputs.case import Grpc, Http
from tests.e2e.test_bad_inputs import CODES, _http, check_call, check_sentence, names
from tests.e2e.test_http2 import INFER, Peer, call

ALL = frozenset(SCOPES)
FRESH_CALLS = 24  # by new connections, which the kernel spreads over the workers


class Keyed:
    """Servers with one file of keys: a gRPC front each."""

    def __init__(self, own: Server, grpcio: Server, file: KeysFile, health_port: int) -> None:
        self.own, self.grpcio, self.file, self.health_port = own, grpcio, file, health_port

    @property
    def servers(self) -> tuple[Server, Server]:
        return self.own, self.grpcio

    def statuses(self, key: str) -> set[int]:
        """What both workers of the first server, and the second, answer to GET /v2 with a key."""
        headers = {"x-api-key": key}
        servers = [self.own] * FRESH_CALLS + [self.grpcio]
        return {server.request("GET", "/v2", headers=headers)[0] for server in servers}

    def wait_for(self, key: str, status: int) -> None:
        """Until every worker answers so."""
        self.own.wait_until(lambda: self.statuses(key) == {status})


@pytest.fixture(scope="module")
def keyed(
    start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Keyed]:
    file = KeysFile(tmp_path_factory.mktemp("keys") / "keys")
    file.change(lambda keys: access.entries())
    (health_port,) = free_ports(1)
    own = start_server(keys_file=file.path, workers=2, health_port=health_port, log_level="debug")
    grpcio = start_server(keys_file=file.path, fast_grpc=False, log_level="debug")
    grpcio.is_grpcio = True
    yield Keyed(own, grpcio, file, health_port)
    for server in (own, grpcio):
        status, metrics = server.request(
            "GET", "/metrics", headers={"x-api-key": access.KEYS["metrics"]}
        )
        assert status == 200
        log = server.log.read_text() + metrics.decode()
        assert "Traceback" not in log
        for key in (*access.KEYS.values(), access.EXPIRED, access.REVOKED):
            assert key not in log
            assert digest_of(key).hex() not in log


@pytest.mark.parametrize("case", access.HTTP, ids=names(access.HTTP))
def test_http(keyed: Keyed, case: Http) -> None:
    status, content_type, body = _http(keyed.own, case)
    assert status == case.status, body[:500]
    assert content_type == "application/json"
    assert case.words is not None
    check_sentence(json.loads(body)["error"], case.words)


@pytest.mark.parametrize("case", access.GRPC, ids=names(access.GRPC))
def test_grpc(keyed: Keyed, case: Grpc) -> None:
    check_call(keyed.own, case)


@pytest.mark.parametrize(
    "case",
    [case for case in access.GRPC if case.fronts == "both"],
    ids=[case.name for case in access.GRPC if case.fronts == "both"],
)
def test_grpcio(keyed: Keyed, case: Grpc) -> None:
    check_call(keyed.grpcio, case)


def filled(path: str) -> str:
    """A path of the table with what exists for its parameters."""
    for name, value in (("model", "mnist"), ("version", "2"), ("file", "main.js"), ("region", "r")):
        path = path.replace(f"<{name}>", value)
    return path


def test_every_route_needs_its_scope_and_no_more(keyed: Keyed) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", keyed.own.http_port, timeout=60)

    def status(method: str, path: str, key: str | None) -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        content = response.read()
        if response.status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or json.loads(content) == {"error": access.SENTENCE}
        return response.status

    for route in ROUTES:
        path = filled(route.path)
        for method in [route.method, *(["HEAD"] if route.method == "GET" else [])]:
            if route.scope is None:
                assert status(method, path, None) in (200, 304), path
                continue
            assert status(method, path, None) == 401, path
            for scope, key in access.KEYS.items():
                if scope != route.scope:
                    assert status(method, path, key) == 403, path
            if route.scope != "admin":  # changes are made elsewhere
                assert status(method, path, access.KEYS[route.scope]) not in (401, 403), path
        assert status("OPTIONS", path, None) == 401
        assert status("OPTIONS", path, access.KEYS["read"]) == 200
    # Flask takes them for routes, which the front does not.
    for path in ("/metrics/", "/v2/"):
        assert status("GET", path, None) == 401
        assert status("GET", path, access.KEYS["predict"]) == 403
    assert status("GET", "/v2/", access.KEYS["read"]) == 200
    connection.close()


def spellings(path: str) -> Iterator[str]:
    """Ways to write a path that a server could take for another one, or for one that is open."""
    yield from (path, f"{path}/", f"/{path}", f"{path}//", f"/.{path}", f"{path}/.", f"/x/..{path}")
    yield from (path.replace("/", "//"), path.upper(), f"/%2e{path}", f"{path}%2f", f"{path}%00")
    yield "".join("/" if letter == "/" else f"%{ord(letter):02x}" for letter in path)
    yield from (f"{path};a=b", f"{path}?", f"{path}#x", f"http://localhost{path}")
    yield from (f"/v2/health/live/..{path}", f"/docs/..{path}", f"/playground/..{path}")


def test_no_spelling_of_a_path_gets_past_the_gate(keyed: Keyed) -> None:
    def status(method: str, path: str, headers: str) -> int:
        headers = f"Host: localhost\r\nContent-Length: 0\r\n{headers}"
        request = f"{method} {path} HTTP/1.1\r\n{headers}\r\n"
        address = ("127.0.0.1", keyed.own.http_port)
        with socket.create_connection(address, 60) as connection:
            connection.sendall(request.encode())
            return int(connection.recv(65536).split(b" ", 2)[1])

    others = "X-HTTP-Method-Override: GET\r\nX-Original-URL: /v2/health/live\r\n"
    predict = f"X-Api-Key: {access.KEYS['predict']}\r\n"
    for route in ROUTES:
        if route.scope is None:
            continue
        for path in spellings(filled(route.path)):
            assert status(route.method, path, others) == 401, path
            assert status("HEAD", path, others) == 401, path
            if route.scope != "predict":
                assert status(route.method, path, predict) in (400, 403, 404, 405), path


@pytest.mark.parametrize("is_grpcio", [False, True])
def test_health_is_open_and_keys_work_over_grpc(keyed: Keyed, is_grpcio: bool) -> None:
    server = keyed.servers[is_grpcio]
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == 1
        assert next(iter(health.Watch(health_pb2.HealthCheckRequest()))).status == 1
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        for metadata in (
            (("authorization", f"Bearer {access.KEYS['read']}"),),
            (("x-api-key", access.KEYS["read"]),),
        ):
            answer = stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=metadata)
            assert answer.name == "mnist-service"
            assert stub.LogSettings(pb.LogSettingsRequest(), metadata=metadata).settings
        with pytest.raises(grpc.RpcError) as refused:
            stub.ServerMetadata(
                pb.ServerMetadataRequest(), metadata=(("x-api-key", "k"), ("x-api-key", "k"))
            )
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_request_is_refused_before_its_body_comes(
    keyed: Keyed, start_server: Callable[..., Server]
) -> None:
    for server in (keyed.own, start_server(keys_file=keyed.file.path, fast_http=False)):
        with socket.create_connection(("127.0.0.1", server.http_port), 60) as client:
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
            )
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
    for server in keyed.servers:
        with grpc.insecure_channel(server.grpc) as channel:
            never = SendsWhenTold()
            for method in ("ModelStreamInfer", "ModelInfer"):
                call = channel.stream_stream(f"/inference.GRPCInferenceService/{method}")(
                    iter(never)
                )
                with pytest.raises(grpc.RpcError) as refused:
                    next(call)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                never.stop()


MISPLACED = [
    ("in the path", "/v2/{key}", {}),
    ("as a model", "/v2/models/{key}/infer", {}),
    ("in the query", "/nowhere?x-api-key={key}", {}),
    ("of the header's start", "/v2", {"authorization": "Bearer {key}/"}),
    ("as the id of the request", "/v2", {"x-request-id": "{key}"}),
    ("as the origin", "/v2", {"origin": "http://{key}"}),
    ("as the host", "/v2", {"host": "{key}"}),
    ("as the content type", "/predict", {"content-type": "{key}/x"}),
    ("as the encoding", "/predict", {"content-encoding": "{key}"}),
    ("beside what is no UTF-8", "/v2", {"x-api-key": "{key}\xff"}),
    ("beside NUL", "/v2", {"authorization": "Bearer {key}\0"}),
]


@pytest.mark.parametrize("kind", ["predict", "admin"])
@pytest.mark.parametrize(
    ("place", "path", "headers"), MISPLACED, ids=[place for place, _, _ in MISPLACED]
)
def test_a_key_in_the_wrong_place_is_not_in_the_log(
    keyed: Keyed, kind: Any, place: str, path: str, headers: dict[str, str]
) -> None:
    """The fixture looks: both servers log at level debug."""
    key = access.KEYS[kind]
    good = {"host": "localhost", "x-api-key": key}
    if "authorization" in headers:
        del good["x-api-key"]
    fields = good | {name: value.format(key=key) for name, value in headers.items()}
    lines = [f"POST {path.format(key=key)} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items())]
    request = "\r\n".join([*lines, "content-length: 0", "connection: close", "", ""])
    with socket.create_connection(("127.0.0.1", keyed.own.http_port), 60) as client:
        client.sendall(request.encode("latin-1"))
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)


@pytest.mark.parametrize("is_grpcio", [False, True], ids=["own front", "grpcio"])
def test_a_key_in_the_wrong_place_of_a_call_is_not_in_the_log(
    keyed: Keyed, is_grpcio: bool
) -> None:
    key = access.KEYS["predict"]
    misplaced = [
        (b"authorization", f"Bearer {key}\xff".encode("latin-1")),
        (b"x-api-key", f"{key}\xff".encode("latin-1")),
        (b"x-other", f"{key}\xff".encode("latin-1")),
        (b"x-request-id", key.encode()),
        (b"x-request-id", f"{key}\xff".encode("latin-1")),
        (b"x-other-bin", key.encode()),
        (b"grpc-encoding", key.encode()),
        (b"user-agent", key.encode()),
        (b"traceparent", key.encode()),
    ]
    server = keyed.servers[is_grpcio]

    def start(peer: Peer, path: str, *more: tuple[bytes, bytes]) -> None:
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode("latin-1")),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *more,
        ]
        peer.send(call(1, bytes(hpack.Encoder().encode(fields)), bytes(5)))

    for path in (INFER, f"/x.Y/{key}"):
        for header in misplaced:
            with Peer(server) as peer:
                start(peer, path, header)
                for kind, flags, stream, _ in peer.frames():
                    if stream == 1 and (kind == wire.RST_STREAM or flags & wire.END_STREAM):
                        break
    with Peer(server) as peer:
        start(peer, f"/{key}\xff")
        if is_grpcio:  # which does not answer
            server.wait_until(lambda: "grpcio ended by itself" in server.log.read_text())
        with grpc.insecure_channel(server.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
            assert answer.status == 1


def test_metrics_on_the_health_port_need_their_scope(keyed: Keyed) -> None:
    def get(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", keyed.health_port, timeout=60)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()

    assert get("/v2/health/ready", {"x-api-key": "wrong"})[0] == 200
    assert get("/metrics", {})[0] == 401
    assert get("/metrics", {"X-Api-Key": access.KEYS["read"]})[0] == 403
    assert get("/metrics", {"X-Api-Key": access.KEYS["metrics"], "Authorization": ""})[0] == 401
    status, content = get("/metrics", {"Authorization": f"Bearer {access.KEYS['metrics']}"})
    assert status == 200
    for reason in ("missing", "malformed", "scope"):
        assert f'mnist_access_refused_total{{reason="{reason}"}}'.encode() in content


def test_a_change_of_the_file_counts_in_every_worker(keyed: Keyed) -> None:
    key = new_key()
    entry = Key("new", ALL, None, digest_of(key))
    assert keyed.statuses(key) == {401}
    keyed.file.change(lambda keys: [*keys, entry])
    keyed.wait_for(key, 200)
    # It expires: the whole file is otherwise the same.
    late = entry._replace(expires=2.0)
    keyed.file.change(lambda keys: [k for k in keys if k.name != "new"])
    keyed.file.change(lambda keys: [*keys, late])
    keyed.wait_for(key, 401)
    keyed.file.change(lambda keys: [k for k in keys if k.name != "new"] + [entry])


def test_a_stream_ends_when_its_key_is_revoked(keyed: Keyed) -> None:
    for server in keyed.servers:
        key = new_key()
        entry = Key("streamer", ALL, None, digest_of(key))
        keyed.file.change(lambda keys, entry=entry: [*keys, entry])  # type: ignore[misc]
        keyed.wait_for(key, 200)
        go_on = SendsWhenTold()
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answers = stub.ModelStreamInfer(iter(go_on), metadata=(("x-api-key", key),))
            go_on.send()
            assert next(answers).error_message  # of the message, which names no model
            keyed.file.change(lambda keys: [k for k in keys if k.name != "streamer"])
            keyed.wait_for(key, 401)
            go_on.send()
            with pytest.raises(grpc.RpcError) as ended:
                next(answers)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
            go_on.stop()


class SendsWhenTold:
    """The requests of a stream: one whenever `send` is called."""

    def __init__(self) -> None:
        self._queue: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()

    def send(self) -> None:
        self._queue.put(pb.ModelInferRequest(model_name="none"))

    def stop(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        while (message := self._queue.get()) is not None:
            yield message


def test_a_broken_file_changes_nothing_and_an_empty_one_lets_nobody_in(keyed: Keyed) -> None:
    before = keyed.file.path.read_text()
    read = access.KEYS["read"]
    keyed.file.path.write_text(before + "what is this\n")
    for server in keyed.servers:
        server.wait_until(lambda s=server: "The keys from before" in s.log.read_text())  # type: ignore[misc]
        (line,) = {
            json.loads(line)["message"]
            for line in server.log.read_text().splitlines()
            if "The keys from before" in line
        }
        assert f"line {before.count(chr(10)) + 1}: an entry has four fields" in line
    assert keyed.statuses(read) == {200}
    keyed.file.path.unlink()
    keyed.own.wait_until(lambda: "cannot be read" in keyed.own.log.read_text())
    assert keyed.statuses(read) == {200}
    keyed.file.path.write_text("")  # as at the start of being written
    keyed.own.wait_until(lambda: "it is empty" in keyed.own.log.read_text())
    assert keyed.statuses(read) == {200}
    keyed.file.path.write_text("# no entry\n")
    keyed.wait_for(read, 401)
    assert keyed.own.request("POST", "/predict", b"")[0] == 401
    keyed.file.path.write_text(before)
    keyed.wait_for(read, 200)


def test_a_worker_that_starts_has_the_keys_of_now(keyed: Keyed) -> None:
    pids = keyed.own.worker_pids()
    os.kill(pids[0], signal.SIGKILL)
    keyed.own.wait_until(lambda: len(set(keyed.own.worker_pids()) - set(pids)) == 1)
    keyed.own.wait_until(keyed.own.is_ready)
    assert keyed.statuses(access.KEYS["read"]) == {200}
    assert keyed.statuses(access.EXPIRED) == {401}


def test_a_broken_file_keeps_no_worker_from_being_replaced(keyed: Keyed) -> None:
    before = keyed.file.path.read_text()
    keyed.file.path.write_text(before + "another read never certificate:half.of.a.na")
    keyed.own.wait_until(lambda: "its last line has no line feed" in keyed.own.log.read_text())
    for number, whom in ((signal.SIGHUP, keyed.own.process.pid), (signal.SIGKILL, 0)):
        pids = set(keyed.own.worker_pids())
        os.kill(whom or min(pids), number)
        left = pids - {min(pids)} if number == signal.SIGKILL else set()
        keyed.own.wait_until(
            lambda pids=pids, left=left: (  # type: ignore[misc]
                len(now := set(keyed.own.worker_pids())) == 2 and now & pids == left
            )
        )
        keyed.own.wait_until(keyed.own.is_ready)
        assert keyed.statuses(access.KEYS["read"]) == {200}
        assert keyed.statuses(access.EXPIRED) == keyed.statuses(access.REVOKED) == {401}
    said = [
        line
        for line in keyed.own.log.read_text().splitlines()
        if "last line has no line feed" in line
    ]
    assert len(said) == 1  # for two workers, and three that came later
    keyed.file.path.write_text(before)


def serve(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a server that does not start."""
    ports = free_ports(2)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "service.cli", *arguments),
            *(f"--http-port={ports[0]}", f"--grpc-port={ports[1]}"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_a_file_that_cannot_be_used_stops_the_start_with_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    status, output = serve(f"--keys-file={file}")
    assert (status, output.count("\n")) == (2, 1)
    assert f"{file} (keys_file) cannot be read" in output
    assert "mnist-keys add" in output
    file.write_text("\nalice\n")
    status, output = serve(f"--keys-file={file}")
    assert (status, output.count("\n")) == (2, 1)
    assert f"{file} (keys_file), line 2: an entry has four fields" in output
    status, output = serve("--anonymous-scopes=everything")
    assert (status, output.count("\n")) == (2, 1)
    assert "anonymous_scopes: 'everything' is no scope" in output


def test_beyond_loopback_without_keys_changes_are_closed(
    start_server: Callable[..., Server],
) -> None:
    load = "/v2/repository/models/mnist/load"
    server = start_server(host="0.0.0.0", model_control_mode="explicit", load_model="*")
    status, answer = server.post(load, b"", "application/json")
    assert status == 403
    assert "anonymous_scopes" in answer["error"]
    assert server.get("/v2/models/mnist/ready")[0] == server.get("/metrics")[0] == 200
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="mnist"))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "anonymous_scopes" in str(refused.value.details())
    warnings = [
        json.loads(line)["message"]
        for line in server.log.read_text().splitlines()
        if json.loads(line)["level"] == "warning" and "key" in line
    ]
    assert len(warnings) == 1
    assert "--keys-file" in warnings[0]
    open_to_all = start_server(
        host="0.0.0.0", anonymous_scopes="predict,read,admin,metrics", fast_grpc=False
    )
    assert open_to_all.post(load, b"", "application/json")[0] == 200
    request = urllib.request.Request(
        f"http://{open_to_all.http}/v2", headers={"authorization": "Basic for-a-proxy"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200


def test_a_refusal_does_not_show_what_exists(keyed: Keyed) -> None:
    """What is there and what is not gets the same answer to the last byte, but for the id."""
    places = (
        "/predict?model=mnist",
        "/predict?model=none",
        "/v2/models/mnist/infer",
        "/v2/models/none/infer",
        "/v2/models/mnist/versions/2/infer",
        "/v2/models/mnist/versions/99/infer",
        "/v2/repository/models/mnist/unload",
        "/v2/repository/models/none/unload",
        "/nowhere",
    )
    connection = http.client.HTTPConnection("127.0.0.1", keyed.own.http_port, timeout=60)
    for key in ({}, {"x-api-key": "mnist_wrong"}, {"x-api-key": access.EXPIRED}):
        answers = set()
        for path in places:
            connection.request("POST", path, b"", key)
            response = connection.getresponse()
            own = ("date", "x-request-id")
            headers = [pair for pair in response.getheaders() if pair[0].lower() not in own]
            answers.add((response.status, tuple(headers), response.read()))
        ((status, _, _),) = answers
        assert status == 401
    connection.close()
    for server in keyed.servers:
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            outcomes = set()
            for name in ("mnist", "none"):
                infer = pb.ModelInferRequest(model_name=name)
                wrong = (("x-api-key", "mnist_wrong"),)
                for call in (
                    stub.ModelInfer.future(infer, metadata=wrong),
                    stub.ModelReady.future(pb.ModelReadyRequest(name=name), metadata=wrong),
                    stub.ModelStreamInfer(iter([infer]), metadata=wrong),
                ):
                    trailers = {k for k, _ in call.trailing_metadata() or ()}
                    outcomes.add((call.code(), call.details(), frozenset(trailers)))
            assert [code for code, _, _ in outcomes] == [grpc.StatusCode.UNAUTHENTICATED]


def test_health_does_not_name_models_to_those_who_may_not_read(
    start_server: Callable[..., Server], keyed: Keyed, tmp_path: Path
) -> None:
    version = tmp_path / "secret-model" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"not a model")
    settings: dict[str, object] = {"ready": False, "model": "secret-model"}
    secret = start_server(tmp_path, keys_file=keyed.file.path, **settings)
    told = start_server(tmp_path, keys_file=keyed.file.path, anonymous_scopes="read", **settings)
    for server, is_named in ((secret, False), (told, True)):
        server.wait_until(lambda s=server: "Not ready" in s.log.read_text())  # type: ignore[misc]
        server.wait_until(lambda s=server: answers_live(s))  # type: ignore[misc]
        status, body = server.get("/v2/health/ready")
        assert status == 503
        assert (b"secret-model" in body) is is_named
        assert (json.loads(body)["failures"] != {}) is is_named


def answers_live(server: Server) -> bool:
    try:
        return server.get("/v2/health/live")[0] == 200
    except OSError:
        return False


def test_behind_a_proxy_without_keys_changes_are_closed_though_it_is_on_this_machine(
    start_server: Callable[..., Server],
) -> None:
    """A proxy passes on a Host that its client chooses, or writes 127.0.0.1 there itself."""
    server = start_server(trusted_proxies="127.0.0.1")
    load = "/v2/repository/models/mnist/load"
    for host in ("127.0.0.1", "localhost", "example.org"):
        headers = {"host": host, "x-forwarded-for": "192.0.2.1"}
        status, body = server.request("POST", load, b"", headers)
        assert (status, b"scope admin" in body) == (403, True)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="mnist"))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert server.get("/v2/models/mnist/ready")[0] == 200
    messages = [json.loads(line)["message"] for line in server.log.read_text().splitlines()]
    (warning,) = [message for message in messages if "may call this server" in message]
    assert warning.startswith("Everyone who reaches its trusted_proxies may call this server")


def test_opening_a_server_that_has_keys_is_warned_about(
    start_server: Callable[..., Server], keyed: Keyed
) -> None:
    server = start_server(
        host="0.0.0.0", keys_file=keyed.file.path, anonymous_scopes="predict,admin"
    )
    messages = [json.loads(line)["message"] for line in server.log.read_text().splitlines()]
    (warning,) = [message for message in messages if "may call this server" in message]
    assert "(predict, admin)" in warning
    assert "--anonymous-scopes none" in warning


def test_codes_are_those_of_grpc() -> None:
    for case in access.GRPC:
        assert grpc.StatusCode[case.code].value[0] == CODES[case.code]
