"""TLS of a real server, on both ports and both gRPC fronts, with the clients that people use."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import h2.connection
import h2.events
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from mnist_client import TLS, AccessDenied, Client
from mnist_client.client import NO_RETRIES

from deploy.envoy import tls as tls_configuration
from tests.certificates import Authority, Files
from tests.conftest import SHIPPED_MODELS, Mnist, Server, free_ports
from tests.e2e.test_envoy import running_envoy

SEVEN = "docs/seven.png"
FRONTS = [("own HTTP", "own gRPC"), ("own HTTP", "grpcio"), ("Granian", "own gRPC")]
KEY = "mnist_of_a_test"
V1_1, V1_2, V1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def context_of(
    ca: Path, *alpn: str, version: ssl.TLSVersion | None = None, certificate: Files | None = None
) -> ssl.SSLContext:
    """What a client has that trusts an authority."""
    context = ssl.create_default_context(cafile=ca)
    if version is not None:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # allows TLS 1.1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    if certificate:
        context.load_cert_chain(*certificate)
    return context


class SecureServer(Server):
    """A server with TLS, whose plain health port says whether it is ready."""

    def __init__(self, folder: Path, files: Files, ca: Path, **settings: object) -> None:
        (self.health_port,) = free_ports(1)
        self.ca = ca
        super().__init__(
            folder, SHIPPED_MODELS, **(files.flags | {"health_port": self.health_port} | settings)
        )

    def is_ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=60)
            with contextlib.closing(connection):
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == 200
        except OSError:
            return False

    def context(self, *alpn: str, **more: Any) -> ssl.SSLContext:
        return context_of(self.ca, *alpn, **more)

    @contextlib.contextmanager
    def connect(self, port: int, *alpn: str, **more: Any) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            self.context(*alpn, **more).wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            yield secure

    def channel(self, certificate: Files | None = None) -> grpc.Channel:
        own = [certificate.key, certificate.certificate] if certificate else []
        credentials = grpc.ssl_channel_credentials(
            self.ca.read_bytes(), *(file.read_bytes() for file in own)
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(f"localhost:{self.grpc_port}", credentials, options)

    def serves(self, certificate: Files | None = None) -> bool:
        """Whether both ports answer."""
        context = self.context(certificate=certificate)
        answer = httpx.get(
            f"https://localhost:{self.http_port}/v2/health/live", verify=context, timeout=60
        )
        with self.channel(certificate) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            return answer.status_code == 200 and check(b"", timeout=60) == b"\x08\x01"


Start = Callable[..., SecureServer]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Start]:
    servers: list[SecureServer] = []

    def start(files: Files | None = None, **settings: object) -> SecureServer:
        folder = tmp_path_factory.mktemp("server")
        server = SecureServer(folder, files or authority.server(), authority.ca, **settings)
        servers.append(server)
        server.wait_until(server.is_ready)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module", params=[True, False], ids=["own front", "grpcio"])
def secure(request: pytest.FixtureRequest, start: Start) -> SecureServer:
    """A server for tests that change nothing, once per gRPC front."""
    return start(fast_grpc=request.param, log_level="debug")


@pytest.fixture(scope="module")
def client_files(authority: Authority) -> Files:
    return authority.issue("client", "client.example")


@pytest.fixture(scope="module", params=[True, False], ids=["own front", "grpcio"])
def mutual(request: pytest.FixtureRequest, start: Start, authority: Authority) -> SecureServer:
    """A server that asks every client for a certificate, and gives scopes to one of them."""
    oldest = {"tls_min_version": "1.3"} if request.param else {}
    asks = {"tls_client_auth": "required", "tls_client_ca": authority.ca}
    keys = authority.folder / "keys"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(
        f"me predict never certificate:client.example\nkey predict never sha256:{digest}\n"
    )
    oldest["keys_file"] = str(keys)
    server = start(fast_grpc=request.param, **asks, **oldest)
    server.is_grpcio = not request.param
    return server


def test_versions_1_2_and_1_3_are_spoken_and_no_older_one(secure: SecureServer) -> None:
    for port in (secure.http_port, secure.grpc_port):
        for version, name in ((V1_2, "TLSv1.2"), (V1_3, "TLSv1.3")):
            with secure.connect(port, "h2", version=version) as connection:
                assert connection.version() == name
                assert connection.selected_alpn_protocol() == "h2"
                cipher = connection.cipher()
                assert cipher is not None
                assert "GCM" in cipher[0] or "POLY1305" in cipher[0]
        with (
            pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|HANDSHAKE_FAILURE|EOF"),
            secure.connect(port, "h2", version=V1_1),
        ):
            pass
    with secure.connect(secure.http_port, "http/1.1") as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"


def test_the_oldest_version_can_be_raised(mutual: SecureServer, client_files: Files) -> None:
    """On the own front; grpcio always accepts 1.2, and the settings say so."""
    for port in () if mutual.is_grpcio else (mutual.http_port, mutual.grpc_port):
        with (
            pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
            mutual.connect(port, "h2", version=V1_2, certificate=client_files),
        ):
            pass


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_gets_an_answer(secure: SecureServer, version: str) -> None:
    url = f"https://localhost:{secure.http_port}/predict"
    done = subprocess.run(
        ["curl", "-s", version, "--cacert", secure.ca, "-F", f"image=@{SEVEN}", url],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert json.loads(done.stdout)["predictions"][0]["digit"] == 7


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_our_client_gets_an_answer(secure: SecureServer, scheme: str) -> None:
    port = secure.http_port if scheme == "https" else secure.grpc_port
    tls = TLS(ca_file=secure.ca)
    with Client(f"{scheme}://localhost:{port}", tls=tls, timeout=60) as client:
        assert client.predict(Path(SEVEN)).digit == 7


def test_the_clients_of_triton_get_an_answer(secure: SecureServer, mnist: Mnist) -> None:
    images = mnist.images[:1]
    for module, port, options in (
        (tritonclient.http, secure.http_port, {"ssl_context_factory": secure.context}),
        (tritonclient.grpc, secure.grpc_port, {"root_certificates": str(secure.ca)}),
    ):
        client = module.InferenceServerClient(f"localhost:{port}", ssl=True, **options)
        tensor = module.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        logits = client.infer("mnist", [tensor]).as_numpy("logits")
        assert np.argmax(logits) == mnist.labels[0]
        client.close()


def test_the_playground_is_served_and_its_links_are_relative(secure: SecureServer) -> None:
    with httpx.Client(verify=secure.context(), timeout=60) as client:
        page = client.get(f"https://localhost:{secure.http_port}/", headers={"accept": "text/html"})
    assert page.status_code == 200
    assert "http://" not in page.text


def hello(server_name: str) -> bytes:
    """The first message of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=server_name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


FORGED = b'{"level": "error", "message": "forged"}\n'
HOSTILE = {
    "HTTP": b"GET /" + FORGED + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 100,
    "zeros": b"\x00" * 1000,
    "text": FORGED * 1000,
    "long record": b"\x16\x03\x01\xff\xff" + b"a" * 70_000,
    "long hello": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"a" * 16_380,
    "alert": b"\x15\x03\x03\x00\x02\x02\x00",
    "long name": hello("a" * 60).replace(b"a" * 60, b"\n" * 60),
    "cut short": hello("localhost")[:100],
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_tls_gets_no_answer_and_harms_nobody(
    secure: SecureServer, content: bytes
) -> None:
    for port in (secure.http_port, secure.grpc_port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            answer = b""
            with contextlib.suppress(OSError):  # it may be reset: bytes are unread
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65_536):
                    answer += part
        # An alert; the server's first messages, for a good hello; nothing of HTTP.
        assert answer[:1] in (b"", b"\x15", b"\x16"), answer
        assert b"HTTP" not in answer
    assert secure.serves()
    assert "forged" not in secure.log.read_text()


def test_a_client_that_wants_another_name_or_authority_refuses_the_server(
    secure: SecureServer,
) -> None:
    for port in (secure.http_port, secure.grpc_port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
            strict = ssl.create_default_context()
            with pytest.raises(ssl.SSLCertVerificationError):
                strict.wrap_socket(plain, server_hostname="localhost")
    assert secure.serves()


def test_a_required_client_certificate_must_be_of_the_authority(
    mutual: SecureServer, client_files: Files, tmp_path: Path
) -> None:
    assert mutual.serves(client_files)
    foreign = Authority(tmp_path / "other").issue("client", "client.example")
    for certificate in (None, foreign):
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            httpx.get(
                f"https://localhost:{mutual.http_port}/v2/health/live",
                verify=mutual.context(certificate=certificate),
                timeout=60,
            )
        with mutual.channel(certificate) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.RpcError) as raised:
                check(b"", timeout=60)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert mutual.serves(client_files)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_client_certificate_gives_scopes(
    mutual: SecureServer, client_files: Files, authority: Authority, scheme: str
) -> None:
    port = mutual.http_port if scheme == "https" else mutual.grpc_port
    address = f"{scheme}://localhost:{port}"
    with Client(address, tls=TLS(mutual.ca, *client_files), timeout=60) as client:
        assert client.predict(Path(SEVEN)).digit == 7
        with pytest.raises(AccessDenied):
            client.server_metadata()
    stranger = authority.issue("stranger", "stranger.example", common_name="client.example")
    with (
        Client(address, tls=TLS(mutual.ca, *stranger), timeout=60) as client,
        pytest.raises(AccessDenied),
    ):
        client.predict(Path(SEVEN))


@pytest.mark.parametrize("fast_http", [True, False], ids=["own front", "Granian"])
def test_a_certificate_without_a_name_of_ours_is_only_a_condition_to_connect(
    start: Start, authority: Authority, client_files: Files, fast_http: bool
) -> None:
    """Granian does not even say whose certificate it is."""
    keys = authority.folder / "more-keys"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(
        f"me predict never certificate:client.example\nkey predict never sha256:{digest}\n"
    )
    asks = {"tls_client_auth": "required", "tls_client_ca": authority.ca, "keys_file": str(keys)}
    server = start(fast_http=fast_http, **asks)
    files = client_files
    if fast_http:
        files = authority.issue("other", "other.example", common_name="client.example")
    address, tls = f"https://localhost:{server.http_port}", TLS(server.ca, *files)
    with Client(address, tls=tls, bearer_key=KEY, timeout=60) as client:
        assert client.predict(Path(SEVEN)).digit == 7
    forged = {"x-forwarded-client-cert": "DNS=client.example"}
    with httpx.Client(
        verify=server.context(certificate=files), headers=forged, timeout=60
    ) as plain:
        refused = plain.post(f"{address}/predict", content=b"")
    assert refused.status_code == 401


@pytest.mark.parametrize("is_http2", [False, True])
def test_a_client_certificate_gives_scopes_over_each_version_of_http(
    mutual: SecureServer, client_files: Files, is_http2: bool
) -> None:
    context = mutual.context(certificate=client_files)
    with httpx.Client(verify=context, http1=not is_http2, http2=is_http2, timeout=60) as client:
        url = f"https://localhost:{mutual.http_port}/predict"
        raw = {"content-type": "application/octet-stream"}
        answer = client.post(url, content=bytes(784), headers=raw)
    assert (answer.status_code, answer.http_version) == (200, f"HTTP/{'2' if is_http2 else '1.1'}")


def probe(server: SecureServer, **settings: object) -> subprocess.CompletedProcess[str]:
    given = {"http_port": server.http_port, "grpc_port": server.grpc_port} | settings
    environ = {f"MNIST_{name.upper()}": str(value) for name, value in given.items()}
    return subprocess.run(
        [sys.executable, "-m", "service.probe"],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_probe_finds_a_server_with_tls(secure: SecureServer, authority: Authority) -> None:
    assert probe(secure, **authority.server("probed").flags).returncode == 0


def test_the_probe_needs_the_health_port_where_certificates_are_required(
    mutual: SecureServer, authority: Authority
) -> None:
    asks = {"tls_client_auth": "required", "tls_client_ca": authority.ca}
    settings = authority.server("probed").flags | asks
    assert probe(mutual, **settings, health_port=mutual.health_port).returncode == 0
    done = probe(mutual, **settings)
    assert done.returncode == 1
    assert "set health_port" in done.stderr


def test_unfinished_handshakes_keep_nobody_out(start: Start) -> None:
    server = start(max_connections=4)
    with contextlib.ExitStack() as held:
        for port in (server.http_port, server.grpc_port):
            for content in (b"", hello("localhost")) * 8:
                connection = socket.create_connection(("127.0.0.1", port), timeout=60)
                held.enter_context(connection)
                connection.sendall(content)
        assert server.serves()


def served(server: SecureServer, port: int) -> bytes:
    """The certificate that a port serves."""
    with server.connect(port, "h2") as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate
    return certificate


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_handshake_without_a_request_ends_after_the_header_timeout(
    start: Start, protocol: str
) -> None:
    server = start(header_timeout=1, idle_timeout=86_400)
    with (
        server.connect(server.http_port, "h2") as used,
        server.connect(server.http_port, protocol) as silent,
    ):
        client = h2.connection.H2Connection()
        client.initiate_connection()

        def ask(stream: int) -> None:
            path = [(":path", "/v2/health/live"), (":scheme", "https"), (":authority", "localhost")]
            client.send_headers(stream, [(":method", "GET"), *path], end_stream=True)
            used.sendall(client.data_to_send())
            ended = False
            while not ended:
                content = used.recv(65536)
                assert content
                events = client.receive_data(content)
                ended = any(isinstance(event, h2.events.StreamEnded) for event in events)

        ask(1)
        assert silent.recv(1) == b""  # fails after 60 s
        ask(3)  # it has been idle for as long


@pytest.mark.parametrize("fronts", FRONTS, ids=" and ".join)
def test_new_certificates_are_served_without_a_failed_request(
    start: Start, authority: Authority, mnist: Mnist, fronts: tuple[str, str]
) -> None:
    files = authority.server("renewed")
    fast_http, fast_grpc = fronts[0] != "Granian", fronts[1] != "grpcio"
    server = start(files, workers=2, fast_http=fast_http, fast_grpc=fast_grpc)
    ports = (server.http_port, server.grpc_port)
    old = served(server, ports[0])
    failures: list[object] = []
    counts = dict.fromkeys([("https", 1), ("grpcs", 1), ("https", 2**31), ("grpcs", 2**31)], 0)
    done = threading.Event()

    def predict(scheme: str, calls: int) -> None:
        """Call until the end, and connect again after this number of calls."""
        tls, port = TLS(ca_file=server.ca), ports[scheme == "grpcs"]
        while not done.is_set():
            with Client(
                f"{scheme}://localhost:{port}", tls=tls, timeout=60, retries=NO_RETRIES
            ) as client:
                for _ in range(calls):
                    if done.is_set():
                        break
                    try:
                        assert client.predict(mnist.images[0]).digit == mnist.labels[0]
                    except Exception as error:
                        failures.append(error)
                    counts[scheme, calls] += 1

    threads = [threading.Thread(target=predict, args=each) for each in counts]
    for thread in threads:
        thread.start()
    try:
        # A pair that is wrong changes nothing, whatever is replaced first.
        key = files.key.read_bytes()
        files.key.write_bytes(authority.server("other").key.read_bytes())
        server.wait_until(lambda: "TLS continues with" in server.log.read_text())
        assert served(server, ports[0]) == served(server, ports[1]) == old
        files.key.write_bytes(key)
        workers = set(server.worker_pids())
        authority.server("renewed")
        new = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
        # One worker may be later than the other; with one that stays behind, 20 connections to a
        # port do not all get the new one.
        server.wait_until(lambda: {served(server, port) for port in ports * 20} == {new})
        before = dict(counts)
        server.wait_until(lambda: all(counts[each] > before[each] + 20 for each in counts))
        if fast_http:
            assert set(server.worker_pids()) == workers
        else:  # Granian reads certificates at its start
            server.wait_until(lambda: not workers & set(server.worker_pids()))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert server.stop() == 0


@pytest.mark.parametrize("fast_grpc", [True, False], ids=["own front", "grpcio"])
def test_new_authorities_of_clients_count_for_new_connections(
    start: Start, authority: Authority, tmp_path: Path, fast_grpc: bool
) -> None:
    ca = tmp_path / "clients.pem"
    ca.write_bytes(authority.ca.read_bytes())
    server = start(fast_grpc=fast_grpc, tls_client_auth="required", tls_client_ca=ca)
    other = Authority(tmp_path / "other")
    former, later = authority.issue("former", "former.example"), other.issue("later", "later")
    workers = server.worker_pids()
    with server.channel(former) as kept:
        check = kept.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=60) == b"\x08\x01"
        assert server.serves(former)
        ca.write_bytes(other.ca.read_bytes())
        server.wait_until(lambda: is_let_in(server, later))
        context = server.context(certificate=former)
        with pytest.raises(httpx.ReadError, match="UNKNOWN_CA"):
            httpx.get(f"https://localhost:{server.http_port}/v2/health/live", verify=context)
        with server.channel(former) as new, pytest.raises(grpc.RpcError) as raised:
            new.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert check(b"", timeout=60) == b"\x08\x01"
    assert server.worker_pids() == workers


def is_let_in(server: SecureServer, certificate: Files) -> bool:
    """Whether both ports answer a client with this certificate."""
    try:
        return server.serves(certificate)
    except (httpx.HTTPError, grpc.RpcError):
        return False


def test_new_certificates_are_served_once_the_supervisor_has_descriptors(
    start: Start, authority: Authority
) -> None:
    files = authority.server("late", days=30.5)
    server = start(files, fast_http=False)  # it has to replace the worker
    old = served(server, server.http_port)
    supervisor = server.process.pid
    soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (4, hard))  # the first numbers are taken
    said = "TLS continues with the certificate that it has: tls_certificate: cannot read"
    authority.server("late", days=60.5)
    server.wait_until(lambda: said in server.log.read_text())
    assert served(server, server.http_port) == old
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
    new = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    # Until the old worker leaves, either may accept a connection.
    server.wait_until(lambda: served(server, server.http_port) == new)
    assert server.log.read_text().count(said) == 1
    assert server.stop() == 0


def test_the_log_says_what_is_served(secure: SecureServer) -> None:
    log = secure.log.read_text()
    assert "TLS: certificate of localhost, 127.0.0.1" in log
    assert f"HTTPS on port {secure.http_port}, gRPC with TLS on port" in log


def test_a_server_with_a_bad_certificate_does_not_start(authority: Authority) -> None:
    expired = authority.server("expired", days=-2)
    flags = ["--tls-certificate", str(expired.certificate), "--tls-key", str(expired.key)]
    command = [sys.executable, "-m", "service.cli", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("mnist-serve: tls_certificate: clients would refuse ")
    assert "expired" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def behind_envoy(
    start_server: Callable[..., Server], authority: Authority, tmp_path_factory: Any
) -> Server:
    """A server without TLS that trusts Envoy, also with the names of client certificates."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("me predict never certificate:client.example\n")
    return start_server(trusted_proxies="127.0.0.1", forwarded_certificates="true", keys_file=keys)


@pytest.fixture(scope="module")
def envoys(
    behind_envoy: Server, authority: Authority, tmp_path_factory: Any
) -> Iterator[dict[str, str]]:
    """The addresses of Envoys with TLS as docker-compose.tls.yml has it, by transport."""
    files, text = authority.server("envoy"), tls_configuration.FILE.read_text()
    for name, path in zip(("certificate", "key", "client_ca"), [*files, authority.ca], strict=True):
        text = text.replace(f"/run/secrets/tls_{name}", str(path))
    with contextlib.ExitStack() as running:
        addresses = {
            transport: running.enter_context(
                running_envoy(behind_envoy, tmp_path_factory.mktemp("envoy"), transport, text)
            )
            for transport in ("http", "grpc")
        }
        for address in addresses.values():
            behind_envoy.wait_until(partial(listens, address))
        yield addresses


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_the_file_of_envoy_with_tls_is_that_without_and_tls() -> None:
    assert tls_configuration.FILE.read_text() == tls_configuration.content(), (
        "Run: python -m deploy.envoy.tls"
    )


def test_envoy_ends_tls_and_names_client_certificates(
    envoys: dict[str, str], authority: Authority, client_files: Files
) -> None:
    stranger = authority.issue("unknown", "unknown.example")
    for scheme, transport in (("https", "http"), ("grpcs", "grpc")):
        port = envoys[transport].rpartition(":")[2]
        address = f"{scheme}://localhost:{port}"
        with Client(address, tls=TLS(authority.ca, *client_files), timeout=60) as client:
            assert client.predict(Path(SEVEN)).digit == 7
        for tls in (TLS(authority.ca), TLS(authority.ca, *stranger)):
            with Client(address, tls=tls, timeout=60) as client, pytest.raises(AccessDenied):
                client.predict(Path(SEVEN))


def test_envoy_removes_a_forged_name(
    envoys: dict[str, str], behind_envoy: Server, authority: Authority
) -> None:
    forged = {"x-forwarded-client-cert": "DNS=client.example"}
    context = ssl.create_default_context(cafile=authority.ca)
    port = envoys["http"].rpartition(":")[2]
    picture = Path(SEVEN).read_bytes()
    headers = forged | {"content-type": "image/png"}
    # Only Envoy may say it; this is what it would say.
    direct, _ = behind_envoy.request("POST", "/predict", picture, headers)
    assert direct == 200
    for is_http2 in (False, True):
        with httpx.Client(verify=context, http1=not is_http2, http2=is_http2, timeout=60) as client:
            url = f"https://localhost:{port}/predict"
            assert client.post(url, content=picture, headers=headers).status_code == 401
    port = envoys["grpc"].rpartition(":")[2]
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        call = channel.unary_unary("/digits.v1.DigitClassifier/Predict")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", metadata=tuple(forged.items()), timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_envoy_speaks_the_same_versions(envoys: dict[str, str], authority: Authority) -> None:
    for transport, alpn in (("http", "http/1.1"), ("http", "h2"), ("grpc", "h2")):
        port = int(envoys[transport].rpartition(":")[2])
        for version, name in ((V1_1, ""), (V1_2, "TLSv1.2"), (V1_3, "TLSv1.3")):
            context = context_of(authority.ca, alpn, version=version)
            with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
                if not name:
                    with pytest.raises(ssl.SSLError):
                        context.wrap_socket(plain, server_hostname="localhost")
                    continue
                with context.wrap_socket(plain, server_hostname="localhost") as secure:
                    assert (secure.version(), secure.selected_alpn_protocol()) == (name, alpn)
