"""Defines every setting of the server, once.

Each setting is a field of `Settings`. The flag `--http-port`, the environment variable
`MNIST_HTTP_PORT`, the key `http_port` of the TOML file given by `--config`, its place and text in
`--help` and in docs/settings.md all come from the field. A flag beats the environment, the
environment beats the file, the file beats the default.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import importlib.util
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from service import SERVER_NAME
from service.access.keys import SCOPES, Scope, check_anonymous
from service.access.origins import check_host, check_origin
from service.core.callers import networks
from service.core.errors import excerpt
from service.core.off_loop import MAX_JSON_BYTES
from service.repository.shipped import shipped_models

ENV_PREFIX = "MNIST_"
# Variables with the prefix that are not settings: the settings file, what benchmarks/ and
# deploy/engine/ pass to their own processes, and the key of clients.
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared with, not bound to)
_OTHER_VARIABLES = ("MNIST_CONFIG", "MNIST_BENCHMARK_RUN", "MNIST_ENGINE_CACHE", "MNIST_KEY")
# Kubernetes describes each Service of the namespace to every pod: the Service `mnist` or `mnist-x`
# as MNIST_SERVICE_HOST, MNIST_X_PORT and so on. `mnist-grpc` even sets MNIST_GRPC_PORT, to a URL.
_SERVICE_LINK = re.compile(
    r"MNIST_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://.*", re.DOTALL)

# Settings of earlier versions -> what to set instead.
_REPLACED = {
    "control": "model_control_mode: explicit (with load_model *) for on, poll for off",
}

# The headings of --help and docs/settings.md, in this order.
Group = Literal[
    "network",
    "security",
    "models",
    "protocol",
    "inference",
    "batching",
    "limits",
    "timeouts",
    "logs",
    "traces",
]
GROUPS: tuple[Group, ...] = get_args(Group)
_METAVARS = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names the setting and its source.

    `settings` names those that are out of range or contradict each other.
    """

    def __init__(self, message: str, *settings: str) -> None:
        super().__init__(message)
        self.settings = settings


def _setting(
    group: Group, default: T, doc: str, *, low: float | None = None, high: float | None = None
) -> T:
    metadata = {"group": group, "doc": doc, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The configuration of one server. Every worker process gets a copy."""

    host: str = _setting(
        "network", "127.0.0.1", "address to listen on; 0.0.0.0 or :: listens on all interfaces"
    )
    http_port: int = _setting("network", 8000, "port of the HTTP server", low=1, high=65535)
    grpc_port: int = _setting("network", 8001, "port of the gRPC server", low=1, high=65535)
    health_port: int = _setting(
        "network",
        0,
        "port that answers /v2/health/live, /v2/health/ready and /metrics, also while clients hold "
        "all connections of the other ports; 0 opens none",
        low=0,
        high=65535,
    )
    tls_certificate: str = _setting(
        "security",
        "",
        "file of the server's certificate, with its chain (PEM): HTTP and gRPC then speak TLS "
        "alone; the health port stays plain",
    )
    tls_key: str = _setting(
        "security", "", "file of the certificate's private key (PEM, without a passphrase)"
    )
    tls_client_auth: Literal["none", "optional", "required"] = _setting(
        "security",
        "none",
        "whether clients are asked for a certificate: required ends connections without one",
    )
    tls_client_ca: str = _setting(
        "security",
        "",
        "file of the authorities (PEM) whose client certificates are accepted; this authority may "
        "let anybody in whom it gives one",
    )
    forwarded_certificates: bool = _setting(
        "security",
        False,
        "whether x-forwarded-client-cert names the client certificate of a request from one of "
        "trusted_proxies; each of them must replace what clients send, as Envoy does with "
        "SANITIZE_SET",
    )
    tls_min_version: Literal["1.2", "1.3"] = _setting(
        "security", "1.2", "oldest version of TLS that clients may use"
    )
    workers: int = _setting(
        "inference", 1, "worker processes; more than one per core does not help", low=1, high=1024
    )

    models: Path = _setting(
        "models",
        Path("models"),
        "model repository: a folder that contains NAME/VERSION/model.onnx; if this is not set and "
        "there is no ./models, the model that comes with the package is served",
    )
    model: str = _setting("models", "mnist", "model for requests that do not name one")
    versions: int = _setting(
        "models",
        2,
        "how many of the newest versions of each model stay loaded, unless its config.pbtxt has a "
        "version_policy",
        low=1,
        high=1000,
    )
    model_control_mode: Literal["auto", "none", "poll", "explicit"] = _setting(
        "models",
        "auto",
        "how models change while the server runs: none keeps those of its start, poll follows the "
        "repository, explicit loads load_model alone and lets clients load and unload models and "
        "change the log level; auto is poll, and lets clients do so too if the server listens on "
        "this machine only, or if they have a key for it",
    )
    load_model: tuple[str, ...] = _setting(
        "models",
        (),
        "model to load at the start with model_control_mode explicit; several are separated by "
        "commas or by repeating the flag, * loads all",
    )
    poll_interval: float = _setting(
        "models", 2.0, "seconds between checks for new versions", low=0.001, high=86_400
    )
    check_seconds: float = _setting(
        "models",
        1.0,
        "seconds that --check may take to load models; it names those that are not loaded by then",
        low=0.001,
        high=86_400,
    )
    server_name: str = _setting(
        "protocol",
        SERVER_NAME,
        "name in the server's metadata; some of Triton's scripts expect triton",
    )
    typed_answers: bool = _setting(
        "protocol",
        False,
        "whether gRPC requests with typed contents get typed answers, as KServe's protocol says; "
        "false answers them raw, as Triton does",
    )
    triton_metrics: bool = _setting(
        "protocol",
        False,
        "whether /metrics has the models' counters under Triton's names (nv_inference_...) too",
    )
    shared_memory_regions: int = _setting(
        "protocol",
        0,
        "how many system shared memory regions clients may register; 0 disables shared memory",
        low=0,
        high=10_000,
    )

    provider: Literal["auto", "cpu", "cuda"] = _setting(
        "inference",
        "auto",
        "ONNX Runtime execution provider; auto uses CUDA if it works and the CPU otherwise",
    )
    intra_op_threads: int = _setting("inference", 1, "threads per inference", low=1, high=1024)
    spinning: bool = _setting(
        "inference", False, "whether idle inference threads spin: lower latency, but busy cores"
    )

    max_batch_size: int = _setting(
        "batching",
        64,
        "largest batch formed from queued requests, in images; a larger request to a row-wise "
        "model is split into parts of this size, or of 64 if that is more",
        low=1,
        high=65_536,
    )
    max_queue_delay: float = _setting(
        "batching",
        0.0,
        "milliseconds that a request may wait for others to join its batch",
        low=0,
        high=1000,
    )
    max_queue: int = _setting(
        "batching",
        4096,
        "images that may wait in the queue; further requests are refused",
        low=1,
        high=10_000_000,
    )
    max_queue_seconds: float = _setting(
        "batching",
        2.0,
        "seconds that a request may wait until its run starts; one that would wait longer is "
        "refused at once, unless the next run has room for it",
        low=0.001,
        high=3600,
    )
    inline_budget: float = _setting(
        "inference",
        1.0,
        "milliseconds; inference that is not known to be shorter runs in a thread instead of on "
        "the event loop",
        low=0,
        high=1000,
    )
    max_run_seconds: float = _setting(
        "inference",
        60.0,
        "seconds after which a run of a model is ended; if it does not end, the worker is replaced",
        low=0.1,
        high=86_400,
    )

    max_request_bytes: int = _setting(
        "limits", 8 * 1024 * 1024, "largest request body, in bytes", low=1024, high=10**9
    )
    max_json_bytes: int = _setting(
        "limits",
        MAX_JSON_BYTES,
        "largest JSON of a request, and largest part of a gRPC message that is not raw tensors, in "
        "bytes: such values are parsed one by one, which holds up other requests; send larger data "
        "as binary",
        low=1024,
        high=10**9,
    )
    max_inflight_bytes: int = _setting(
        "limits",
        32 * 1024 * 1024,
        "bytes of requests and answers that each worker holds at a time; further requests are held "
        "back for up to 5 seconds, then refused. Also the limit for outputs that wait to be "
        "encoded, and for those of one request. At least max_request_bytes",
        low=1024,
        high=10**11,
    )
    max_image_pixels: int = _setting(
        "limits", 16_000_000, "largest JPEG, in pixels", low=784, high=10**9
    )
    max_decoded_pixels: int = _setting(
        "limits",
        4_000_000,
        "largest picture other than a plain JPEG, in pixels: these are decoded as a whole",
        low=784,
        high=10**9,
    )
    max_decodings: int = _setting(
        "limits",
        2,
        "large pictures that each worker decodes at a time; others wait",
        low=1,
        high=1024,
    )
    max_read_digits: int = _setting(
        "limits", 256, "digits that /read finds on a picture, at most", low=1, high=10_000
    )
    body_timeout: float = _setting(
        "timeouts", 30.0, "seconds within which a request body must arrive", low=0.1, high=3600
    )
    compress_min_bytes: int = _setting(
        "network",
        1024,
        "smallest HTTP response to compress, in bytes, for clients that accept gzip or deflate",
        low=0,
        high=1024**4,
    )
    header_timeout: float = _setting(
        "timeouts",
        10.0,
        "seconds within which the headers of a request must arrive, and the first bytes of a "
        "connection that say which protocol it speaks; an HTTP/1 connection may be idle for as "
        "long",
        low=0.1,
        high=3600,
    )
    idle_timeout: float = _setting(
        "timeouts",
        300.0,
        "seconds after which a connection without a request is closed",
        low=0.1,
        high=86_400,
    )
    keepalive_interval: float = _setting(
        "timeouts",
        60.0,
        "seconds of silence after which an HTTP/2 client has to answer a PING; 0 sends none",
        low=0,
        high=86_400,
    )
    keepalive_timeout: float = _setting(
        "timeouts",
        20.0,
        "seconds within which the PING must be answered; if it is not, the connection is closed",
        low=0.1,
        high=3600,
    )
    max_connection_age: float = _setting(
        "timeouts",
        3600.0,
        "seconds after which a gRPC client is asked to open a new connection, so that it finds "
        "new servers, with 10 % added or taken off at random; 0 never asks",
        low=0,
        high=31_536_000,
    )
    max_connections: int = _setting(
        "limits",
        1024,
        "connections that each worker serves at a time, HTTP and gRPC counted separately",
        low=1,
        high=1_000_000,
    )
    max_open_calls: int = _setting(
        "limits", 4096, "gRPC calls that each worker has open at a time", low=1, high=10_000_000
    )
    trusted_proxies: str = _setting(
        "network",
        "",
        "addresses and networks, comma-separated, of the proxies in front of the server; the "
        "caller of a request from one of them is the address that it adds to X-Forwarded-For",
    )
    max_requests_per_second: float = _setting(
        "limits",
        0.0,
        "requests that each caller may send per second, over HTTP and gRPC together, and messages "
        "of streams; a caller is a key or an address; workers share it; 0 is without limit",
        low=0,
        high=10_000_000,
    )
    request_burst: int = _setting(
        "limits",
        0,
        "requests that a caller may send at once after a pause; workers share it, at least one "
        "each; 0 is as many as in one second",
        low=0,
        high=10_000_000,
    )
    max_images_per_second: float = _setting(
        "limits",
        0.0,
        "images (rows of tensors, for other models) that each caller may send per second; workers "
        "share it; 0 is without limit",
        low=0,
        high=1_000_000_000,
    )
    image_burst: int = _setting(
        "limits",
        0,
        "images that a caller may send at once after a pause; a request with more than the share "
        "of one worker is refused; 0 is as many as in one second",
        low=0,
        high=1_000_000_000,
    )
    max_stream_requests: int = _setting(
        "limits",
        64,
        "requests of one gRPC stream that are processed at a time",
        low=1,
        high=1_000_000,
    )
    stop_timeout: float = _setting(
        "timeouts",
        30.0,
        "seconds that accepted requests may take to finish after SIGTERM",
        low=0,
        high=3600,
    )
    drain_seconds: float = _setting(
        "timeouts",
        0.0,
        "seconds after SIGTERM during which the server still accepts requests but is not ready, so "
        "that load balancers leave it; 0 closes the ports at once",
        low=0,
        high=3600,
    )

    keys_file: str = _setting(
        "security",
        "",
        "file of the keys and client certificates that may call, which mnist-keys writes; with it, "
        "every call needs one, but for health, the pages and /openapi.json",
    )
    anonymous_scopes: tuple[str, ...] = _setting(
        "security",
        ("auto",),
        "what callers without a key may do: scopes (predict, read, admin, metrics), separated by "
        "commas, or none; auto is none with keys_file, else all on this machine only, and all but "
        "admin if the server listens to others or to trusted_proxies",
    )
    allowed_origins: tuple[str, ...] = _setting(
        "security",
        (),
        "origin (https://example.org) of web pages that may call the server from a browser, beside "
        "its own; several are separated by commas or by repeating the flag, * allows every page to "
        "call what changes nothing",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "security",
        (),
        "name by which the server may be called (the header Host), beside localhost and addresses; "
        "several are separated by commas or by repeating the flag, * allows all; without any, Host "
        "is checked only where everyone may call because the server listens on this machine only",
    )

    playground: bool = _setting(
        "network",
        True,
        "whether browsers get the playground at /, a page to draw digits on (others get JSON), and "
        "the API's documentation at /docs",
    )

    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "logs", "info", "least severe level that is logged"
    )
    log_format: Literal["auto", "json", "text"] = _setting(
        "logs",
        "auto",
        "format of log lines: json, or text for people; auto uses text on a terminal",
    )
    log_requests: Literal["none", "errors", "all"] = _setting(
        "logs", "errors", "requests to log: none, those that fail (errors), or all"
    )
    traces: bool = _setting(
        "traces",
        False,
        "whether requests are traced with OpenTelemetry (needs the extra traces); its own "
        "variables say where to, as OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    traces_sample: float = _setting(
        "traces",
        0.01,
        "share of requests that are traced, unless their callers decide it by the header "
        "traceparent",
        low=0,
        high=1,
    )
    traces_per_second: int = _setting(
        "traces",
        100,
        "requests, and messages of streams, that each worker traces per second because their "
        "callers ask for it",
        low=0,
        high=1_000_000,
    )
    fast_lane: bool = _setting(
        "network",
        True,
        "whether HTTP requests are answered ahead of Flask; false sends all of them through Flask",
    )
    fast_grpc: bool = _setting(
        "network", True, "whether the server's own HTTP/2 carries gRPC; false uses grpcio"
    )
    fast_http: bool = _setting(
        "network", True, "whether the server's own HTTP/1 carries HTTP; false uses Granian"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low, high = field.metadata["low"], field.metadata["high"]
            if field.name == "poll_interval" and value == 0:
                raise SettingsError(
                    "poll_interval must not be 0; model_control_mode none (or explicit) disables "
                    "the checks for new versions.",
                    field.name,
                )
            # In this form NaN fails the check as well.
            if not ((low is None or value >= low) and (high is None or value <= high)):
                bounds = f"at least {low}" + (f" and at most {high}" if high is not None else "")
                raise SettingsError(
                    f"{field.name} must be {bounds}, not {excerpt(value)}.", field.name
                )
        if not self.host:
            raise SettingsError("host must be an address, or a name that has one.", "host")
        self._check_texts()
        if self.traces and not _has_opentelemetry():
            raise SettingsError(
                "traces is true, but OpenTelemetry is not installed; install the extra for it: "
                "pip install 'mnist-service[traces]'.",
                "traces",
            )
        ports: dict[int, str] = {}
        for name in ("http_port", "grpc_port", "health_port"):
            port = getattr(self, name)
            if port in ports:
                raise SettingsError(
                    f"{ports[port]} and {name} are both {port}; change one of them.",
                    *ports.values(),
                    name,
                )
            if port:
                ports[port] = name
        self._check_tls()
        if self.load_model and self.model_control_mode != "explicit":
            raise SettingsError(
                "load_model has an effect with model_control_mode explicit only, which is "
                f"{self.model_control_mode}.",
                "load_model",
            )
        if self.max_inflight_bytes < self.max_request_bytes:
            raise SettingsError(
                f"max_inflight_bytes is {self.max_inflight_bytes}, but must be at least "
                f"max_request_bytes, which is {self.max_request_bytes}.",
                "max_inflight_bytes",
                "max_request_bytes",
            )

    def _check_texts(self) -> None:
        """Raise SettingsError for addresses, origins, names and scopes that are malformed."""
        for name, check, values in (
            ("trusted_proxies", networks, (self.trusted_proxies,)),
            ("allowed_origins", check_origin, self.allowed_origins),
            ("allowed_hosts", check_host, self.allowed_hosts),
            ("anonymous_scopes", check_anonymous, (",".join(self.anonymous_scopes),)),
        ):
            try:
                for value in values:
                    check(value)
            except ValueError as error:
                raise SettingsError(f"{name}: {excerpt(error)}.", name) from None

    def _check_tls(self) -> None:
        """Raise SettingsError if the settings of TLS do not go together; files are not read."""
        if self.forwarded_certificates and not self.trusted_proxies:
            raise SettingsError(
                "forwarded_certificates is true, but trusted_proxies, whose header counts, is not "
                "set.",
                "forwarded_certificates",
            )
        pair = ("tls_certificate", "tls_key")
        for name, other in (pair, pair[::-1]):
            if getattr(self, name) and not getattr(self, other):
                raise SettingsError(f"{name} is set, but {other} is not; set both.", *pair)
        if self.tls_client_auth != "none" and not self.tls_client_ca:
            raise SettingsError(
                f"tls_client_auth is {self.tls_client_auth}, but tls_client_ca, whose certificates "
                "are accepted, is not set.",
                "tls_client_auth",
            )
        if self.tls_client_ca and self.tls_client_auth == "none":
            raise SettingsError(
                "tls_client_ca has an effect with tls_client_auth optional or required only.",
                "tls_client_ca",
            )
        if self.tls_client_ca and not self.has_tls:
            raise SettingsError(
                "tls_client_ca has an effect with tls_certificate and tls_key only.",
                "tls_client_ca",
                "tls_client_auth",
            )
        if self.has_tls and not self.fast_grpc:
            # grpcio's Python API has neither.
            if self.tls_client_auth == "optional":
                raise SettingsError(
                    "tls_client_auth optional needs fast_grpc; grpcio knows none and required.",
                    "tls_client_auth",
                    "tls_client_ca",
                )
            if self.tls_min_version != "1.2":
                raise SettingsError(
                    "tls_min_version 1.3 needs fast_grpc; grpcio always accepts TLS 1.2.",
                    "tls_min_version",
                )

    @property
    def has_tls(self) -> bool:
        """Whether HTTP and gRPC speak TLS."""
        return bool(self.tls_certificate)

    @property
    def anonymous(self) -> frozenset[Scope]:
        """What callers without a key may do."""
        if self.anonymous_scopes != ("auto",):
            return frozenset(scope for scope in SCOPES if scope in self.anonymous_scopes)
        if self.keys_file:
            return frozenset()
        return frozenset(SCOPES) - (frozenset() if self.is_local else {"admin"})

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server: a proxy on it lets others in."""
        return is_loopback(self.host) and not self.trusted_proxies

    @property
    def is_open_to_others(self) -> bool:
        """Whether callers from other machines may do something without proving who they are."""
        return not self.is_local and bool(self.anonymous) and self.tls_client_auth != "required"

    @property
    def own_host(self) -> str:
        """The host by which this machine itself reaches the ports."""
        return _LOOPBACK_OF.get(self.host, self.host)

    @property
    def trusts_loopback(self) -> bool:
        """Whether callers may do everything because only this machine reaches the server."""
        return self.is_local and not self.keys_file and self.anonymous_scopes == ("auto",)

    @property
    def allows_control(self) -> bool:
        """Whether clients may load and unload models and change the log level.

        With `auto`, those may that may change the server at all: the gate knows them.
        """
        mode = self.model_control_mode
        return mode == "explicit" or (
            mode == "auto" and (bool(self.keys_file) or "admin" in self.anonymous)
        )

    @property
    def hand_over_s(self) -> float:
        """How long a replaced worker keeps its HTTP connections, for clients to leave first.

        An idle HTTP/1 connection is not kept for longer than `header_timeout` anyway.
        """
        return min(self.header_timeout, self.stop_timeout)

    @property
    def polls(self) -> bool:
        """Whether the server looks for new versions while it runs."""
        return self.model_control_mode in ("auto", "poll")

    @property
    def models_to_load(self) -> frozenset[str] | None:
        """The models to load at the start; None for all in the repository."""
        if self.model_control_mode != "explicit" or "*" in self.load_model:
            return None
        return frozenset(self.load_model)


def _has_opentelemetry() -> bool:
    """Whether the extra `traces` is installed; it is imported by the workers only."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ImportError:  # of a package that should contain it
        return False


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or localhost; names are not resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address_of(host: str) -> str:
    """The address of a host name, IPv4 if it has one; a name without an address stays as it is.

    Granian listens on addresses only. The code that opens the port reports an unusable name.
    """
    try:
        ipaddress.ip_address(host)
        return host
    except ValueError:
        pass
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # ValueError: a part of the name is too long
        return host
    ipv4_first = sorted(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    return str(ipv4_first[0][4][0])


def _convert(name: str, kind: Any, raw: object, source: str) -> object:
    """Convert the text of a flag or variable, or a TOML value, to the type of the field."""
    if get_origin(kind) is Literal:
        allowed = f"one of {', '.join(get_args(kind))}"
        if (text := str(raw)) in get_args(kind):  # TOML's 1.2 is a number
            return text
    elif kind is bool:
        allowed = "true or false"
        if isinstance(raw, bool):
            return raw
        if (text := str(raw).lower()) in ("true", "1", "false", "0"):
            return text in ("true", "1")
    elif get_origin(kind) is tuple:
        allowed = "text, or a list of texts"
        parts = [raw] if isinstance(raw, str) else raw
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            names = [name.strip() for part in parts for name in part.split(",")]
            return tuple(name for name in names if name)
    elif kind is Path and isinstance(raw, str) and not _may_exist(raw):
        allowed = "a path that a file system takes"
    else:
        allowed = {int: "a whole number", float: "a number"}.get(kind, "text")
        numeric = kind in (int, float)
        types = (str, int) if kind is int else (str, int, float) if numeric else (str,)
        if isinstance(raw, types) and not isinstance(raw, bool):
            with contextlib.suppress(ValueError, OverflowError):
                return kind(raw)
    value = excerpt(repr(raw))
    raise SettingsError(f"{name} from {source} is {value}, but must be {allowed}.")


def _may_exist(path: str) -> bool:
    try:
        Path(path).stat()
    except ValueError:  # a NUL in it
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"Cannot read the settings file {excerpt(path)}: {error.strerror}."
        ) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested too deeply
        raise SettingsError(
            f"The settings file {excerpt(path)} is not valid TOML: {error}."
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command line of mnist-serve, with a flag for each field of `Settings`."""
    command_line = argparse.ArgumentParser(
        prog="mnist-serve",
        usage="%(prog)s [PATH] [--check] [--SETTING VALUE ...]",
        description="Serve the models of a repository over HTTP and gRPC.",
        epilog="Each setting is also an environment variable (in brackets) and a key of the\n"
        "--config file. A flag beats the environment, which beats the file.\n\n"
        "examples:\n"
        "  mnist-serve                            # ./models, or the model of the package\n"
        "  mnist-serve model.onnx --workers 2     # a file of your own\n"
        "  mnist-serve --check --workers 2        # what would keep this from working?",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = command_line.add_argument_group("command").add_argument
    add(
        "path",
        nargs="?",
        metavar="PATH",
        help="what to serve, in place of --models: an ONNX file, a folder of such files, the "
        "folder of a model, or a repository; if it holds one model, --model defaults to that",
    )
    add("-h", "--help", action="help", help="show this text and exit")
    add(
        "--check",
        action="store_true",
        help="examine the installation with these settings and exit: with 0 if all is well, 1 if "
        "something would work badly, 2 if the server would not start or not be ready",
    )
    add("--config", metavar="FILE", help="TOML file of settings [MNIST_CONFIG]")
    add_flags(command_line)
    return command_line


def add_flags(command_line: argparse.ArgumentParser, shown: Container[str] | None = None) -> None:
    """Add a flag for each setting, by groups; --help has those that are `shown`, or all."""
    hints = get_type_hints(Settings)
    groups = {title: command_line.add_argument_group(title) for title in GROUPS}
    for field in dataclasses.fields(Settings):
        kind = hints[field.name]
        choices = get_args(kind) if get_origin(kind) is Literal else None
        is_list = get_origin(kind) is tuple
        metavar = "|".join(choices) if choices else "NAME" if is_list else _METAVARS[kind]
        doc = (
            f"{field.metadata['doc']} (default: {_text(field.default) or 'none'}) "
            f"[{ENV_PREFIX}{field.name.upper()}]"
        ).replace("%", "%%")  # argparse formats it
        groups[field.metadata["group"]].add_argument(
            "--" + field.name.replace("_", "-"),
            action="append" if is_list else "store",
            metavar=metavar,
            help=doc if shown is None or field.name in shown else argparse.SUPPRESS,
        )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def load(
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    command_line: argparse.ArgumentParser | None = None,
    problems: list[SettingsError] | None = None,
) -> Settings:
    """Read the settings from flags (by default those of this process), environment and file.

    Raises SettingsError for a value that cannot be used, and for an unknown flag, variable or key;
    with `problems`, adds all such errors to it instead, and leaves these values out. argparse exits
    after --help, and if the value of a flag is missing.
    """

    def refuse(error: SettingsError) -> None:
        if problems is None:
            raise error from None
        problems.append(error)

    environ = os.environ if environ is None else environ
    namespace, unknown_flags = (command_line or parser()).parse_known_args(arguments)
    flags = vars(namespace)
    hints = get_type_hints(Settings)
    variables = {
        name: value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and not _is_service_link(name, value)
    }
    known_flags = ["--" + name.replace("_", "-") for name in ("help", *flags)]
    flags.pop("check", None)
    for flag in (each.partition("=")[0] for each in unknown_flags):
        flags["path"] = None  # it may be the value of this flag
        nearest = _nearest(flag, known_flags)
        refuse(
            _replaced(flag, flag.removeprefix("--").replace("-", "_"))
            or SettingsError(f"Unknown argument {flag!r}; the nearest flag is {nearest}.")
        )
    known = [*_OTHER_VARIABLES, *(ENV_PREFIX + name.upper() for name in hints)]
    for name in sorted(set(variables) - set(known)):
        refuse(
            _replaced(name, name.removeprefix(ENV_PREFIX).lower())
            or SettingsError(
                f"Unknown environment variable {name!r}; the nearest is {_nearest(name, known)}. "
                f"Names with {ENV_PREFIX} are reserved for settings; see mnist-serve --help."
            )
        )
    served = None
    file_values: dict[str, Any] = {}
    path = flags.pop("config") or variables.get(ENV_PREFIX + "CONFIG")
    try:
        served = _served_path(flags)
        file_values = _read_file(Path(path)) if path else {}
    except SettingsError as error:
        refuse(error)
    for name in sorted(set(file_values) - set(hints)):
        nearest = _nearest(name, list(hints))
        refuse(
            _replaced(f"{name} in {path}", name)
            or SettingsError(f"Unknown setting {name!r} in {path}; the nearest is {nearest}.")
        )

    values: dict[str, Any] = {}
    for name, kind in hints.items():
        flag, variable = "--" + name.replace("_", "-"), ENV_PREFIX + name.upper()
        try:
            if flags[name] is not None:
                values[name] = _convert(name, kind, flags[name], flag)
            elif variable in variables:
                values[name] = _convert(name, kind, variables[variable], variable)
            elif name in file_values:
                values[name] = _convert(name, kind, file_values[name], str(path))
        except SettingsError as error:
            refuse(SettingsError(str(error), name))
    settings = None
    while settings is None:
        try:
            settings = Settings(**values)
        except SettingsError as error:
            refuse(error)
            values = {name: value for name, value in values.items() if name not in error.settings}
    address = _address_of(settings.host)
    if is_loopback(address) and not is_loopback(settings.host):
        # A name of this machine, as 127.0.1.1 has on Debian: clients call it by this name.
        hosts = (*settings.allowed_hosts, settings.host.lower())
        settings = dataclasses.replace(settings, allowed_hosts=hosts)
    settings = dataclasses.replace(settings, host=address)
    return _with_models(
        settings,
        is_shipped="models" not in values,
        is_only_model=served is not None and "model" not in values,
    )


def _with_models(settings: Settings, *, is_shipped: bool, is_only_model: bool) -> Settings:
    """The settings with the shipped models, or the name of the only model, if they are due."""
    if is_only_model:
        from service.repository.versions import only_model

        if name := only_model(settings.models):
            settings = dataclasses.replace(settings, model=name)
    if is_shipped and not settings.models.exists() and (shipped := shipped_models()):
        return dataclasses.replace(settings, models=shipped)
    return settings


def _served_path(flags: dict[str, Any]) -> str | None:
    """Take PATH out of the flags, and make it the value of --models. Raises SettingsError."""
    path: str | None = flags.pop("path")
    if path is not None:
        if flags["models"] is not None:
            raise SettingsError(
                f"{path!r} and --models are both given; remove one of them.", "models"
            )
        try:
            Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            flag = "" if set(path) & set("./") else _flag_like(path, flags)
            hint = f"; did you mean {flag}?" if flag else "."
            raise SettingsError(
                f"{excerpt(repr(path))} is no file or folder{hint}", "models"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in it
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(
                f"{excerpt(repr(path))} cannot be used: {reason}.", "models"
            ) from None
        flags["models"] = path
    return path


def _flag_like(word: str, names: Iterable[str]) -> str:
    """The flag that a word without its hyphens almost is, or an empty string."""
    flags = ["--" + name.replace("_", "-") for name in names]
    return next(iter(difflib.get_close_matches(f"--{word.lstrip('-')}", flags, n=1)), "")


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable, to say where a Service of the namespace is."""
    if _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and bool(_SERVICE_LINK_URL.fullmatch(value))


def _replaced(source: str, name: str) -> SettingsError | None:
    """The error that names the new setting, if a setting of this name was replaced."""
    if name in _REPLACED:
        return SettingsError(f"{source} has been replaced by {_REPLACED[name]}.")
    return None


def _nearest(name: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def markdown() -> str:
    """The tables of docs/settings.md; a test compares the two."""
    lines = []
    for group in GROUPS:
        lines += [
            f"## {group.capitalize()}",
            "",
            "| file key | flag | environment | default | range | what it does |",
            "|---|---|---|---|---|---|",
        ]
        for field in dataclasses.fields(Settings):
            if field.metadata["group"] == group:
                default = f"`{text}`" if (text := _text(field.default)) else "none"
                lines.append(
                    f"| `{field.name}` | `--{field.name.replace('_', '-')}` | "
                    f"`{ENV_PREFIX}{field.name.upper()}` | {default} | {_range(field)} | "
                    f"{field.metadata['doc']} |"
                )
        lines.append("")
    return "\n".join(lines)


def _range(field: dataclasses.Field[Any]) -> str:
    low, high = field.metadata["low"], field.metadata["high"]
    return "" if low is None else f"{low} to {high}"
