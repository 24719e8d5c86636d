from __future__ import annotations

import dataclasses
import re
import socket
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from service.settings import GROUPS, Settings, SettingsError, is_loopback, load, parser
from tests.conftest import ROOT

TLS = ("--tls-certificate", "c", "--tls-key", "k")
GRPCIO = {"MNIST_FAST_GRPC": "false"}


def test_without_configuration_every_setting_has_its_default() -> None:
    assert load([], {}) == Settings()


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("http_port = 1\nworkers = 2\nmax_queue = 3\nspinning = true\n")
    environ = {"MNIST_CONFIG": str(file), "MNIST_HTTP_PORT": "10", "MNIST_WORKERS": "20"}
    settings = load(["--http-port", "100"], environ)
    assert (settings.http_port, settings.workers) == (100, 20)
    assert (settings.max_queue, settings.spinning) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["--http-port", "x"], {}, "--http-port"),
        (["--http-port", "0"], {}, "http_port"),
        (["--http-port", "70000"], {}, "http_port"),
        (["--trusted-proxies", "envoy"], {}, "trusted_proxies: 'envoy' does not"),
        (["--http-port", "8001"], {}, "both 8001"),
        (["--tls-certificate", "c"], {}, "tls_certificate is set, but tls_key is not"),
        (["--tls-key", "k"], {}, "tls_key is set, but tls_certificate is not"),
        (["--tls-client-auth", "required"], {}, "tls_client_ca, whose certificates are accepted"),
        (["--tls-client-ca", "a"], {}, "tls_client_auth optional or required only"),
        (
            ["--tls-client-ca", "a", "--tls-client-auth", "required"],
            {},
            "tls_client_ca has an effect with tls_certificate",
        ),
        ([*TLS, "--tls-client-auth", "optional", "--tls-client-ca", "a"], GRPCIO, "fast_grpc"),
        ([*TLS, "--tls-min-version", "1.3"], GRPCIO, "fast_grpc"),
        ([*TLS, "--tls-min-version", "1.1"], {}, "one of 1.2, 1.3"),
        ([], {"MNIST_WORKERS": "0.5"}, "MNIST_WORKERS"),
        ([], {"MNIST_SPINNING": "maybe"}, "MNIST_SPINNING"),
        ([], {"MNIST_PROVIDER": "tpu"}, "auto, cpu, cuda"),
        ([], {"MNIST_CONFIG": "/no/such/file"}, "/no/such/file"),
        ([], {"MNIST_CONFIG": "/"}, "Is a directory"),
        (["--http-port", ""], {}, "--http-port"),
        (["--http-port", "9" * 5000], {}, "--http-port"),
        (["--http-port=-1"], {}, "http_port must be at least 1 and at most 65535"),
        (["--body-timeout=-inf"], {}, "body_timeout must be at least 0.1"),
        (["--stop-timeout", "1e400"], {}, "stop_timeout"),
        ([], {"MNIST_PROVIDER": "CUDA"}, "auto, cpu, cuda"),
        ([], {"MNIST_PROVIDER": ""}, "auto, cpu, cuda"),
        ([], {"MNIST_SPINNING": ""}, "must be true or false"),
        ([], {"MNIST_MAX_QUEUE": "\N{SUPERSCRIPT TWO}"}, "MNIST_MAX_QUEUE"),
    ],
)
def test_a_bad_value_is_named_with_its_source(
    arguments: list[str], environ: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        load(arguments, environ)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("htp_port = 1", "htp_port"),
        ("= 1", "TOML"),
        ("workers = true", "workers"),
        ("workers = 1.0", "workers"),
        ("workers = [1]", "workers"),
        ("models = 1", "models"),
        ("model_control_mode = true", "auto, none, poll, explicit"),
        ("model_control_mode = {auto = 1}", "auto, none, poll, explicit"),
        ("load_model = 1", "a list of texts"),
        ("load_model = [1]", "a list of texts"),
        ("load_model = 'a'", "model_control_mode explicit"),
        ("control = 'on'", "model_control_mode: explicit"),
        ("poll_interval = 0", "model_control_mode none"),
        ("[server]\nworkers = 1", "Unknown setting 'server'"),
        ("workers = 1\nworkers = 2", "TOML"),
        ("host = '\x00'", "TOML"),
        ("a = " + "[" * 100_000, "TOML"),
        ("a = " + "9" * 5000, "TOML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=words):
        load(["--config", str(file)], {})


def test_help_has_every_setting_with_its_default_and_variable() -> None:
    text = " ".join(parser().format_help().split())
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in text
        assert f"[MNIST_{field.name.upper()}]" in text


def test_all_problems_can_be_collected_and_the_rest_of_the_settings_holds(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("worker = 2\nversions = 5\n")
    problems: list[SettingsError] = []
    arguments = ["--config", str(file), "--unknown=1", "--http-port=0", "--grpc-port=9"]
    settings = load(arguments, {"MNIST_SPINNING": "maybe", "MNIST_X": ""}, problems=problems)
    assert settings == Settings(grpc_port=9, versions=5)
    words = ("--unknown", "MNIST_X", "'worker'", "MNIST_SPINNING", "http_port must be at least 1")
    assert len(problems) == len(words)
    assert all(word in str(problem) for word, problem in zip(words, problems, strict=True))
    assert [each.settings for each in problems[3:]] == [("spinning",), ("http_port",)]
    # Settings that contradict each other have their defaults, and the others do not.
    problems.clear()
    arguments = ["--http-port=9", "--grpc-port=9", "--versions=5"]
    assert load(arguments, {}, problems=problems) == Settings(versions=5)
    (problem,) = problems
    assert str(problem) == "http_port and grpc_port are both 9; change one of them."
    assert problem.settings == ("http_port", "grpc_port")


def test_every_setting_has_a_heading_and_every_heading_a_setting() -> None:
    assert {field.metadata["group"] for field in dataclasses.fields(Settings)} == set(GROUPS)


def test_a_version_may_be_a_number_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("tls_min_version = 1.3\n")
    assert load(["--config", str(file)], {}).tls_min_version == "1.3"


@pytest.mark.parametrize("flag", ["poll-interval", "body-timeout", "max-queue-delay"])
def test_nan_is_out_of_range(flag: str) -> None:
    with pytest.raises(SettingsError, match=flag.replace("-", "_")):
        load([f"--{flag}", "nan"], {})


@pytest.mark.parametrize("value", ["[1]", "5", "{a = 1}"])
def test_text_setting_in_a_file_must_be_text(tmp_path: Path, value: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"host = {value}\n")
    with pytest.raises(SettingsError, match="host"):
        load(["--config", str(file)], {})


@pytest.mark.parametrize(
    ("arguments", "environ", "sentence"),
    [
        (
            ["--workers", "x"],
            {},
            "workers from --workers is 'x', but must be a whole number.",
        ),
        (
            [],
            {"MNIST_BODY_TIMEOUT": "soon"},
            "body_timeout from MNIST_BODY_TIMEOUT is 'soon', but must be a number.",
        ),
        (
            [],
            {"MNIST_SPINNING": "maybe"},
            "spinning from MNIST_SPINNING is 'maybe', but must be true or false.",
        ),
        (
            ["--model-control-mode", "yes"],
            {},
            "model_control_mode from --model-control-mode is 'yes', but must be one of auto, none, "
            "poll, explicit.",
        ),
        (
            ["--control", "off"],
            {},
            "--control has been replaced by model_control_mode: explicit (with load_model *) for "
            "on, poll for off.",
        ),
        (
            [],
            {"MNIST_CONTROL": "on"},
            "MNIST_CONTROL has been replaced by model_control_mode: explicit (with load_model *) "
            "for on, poll for off.",
        ),
    ],
)
def test_a_bad_value_is_quoted_before_the_reason(
    arguments: list[str], environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(arguments, environ)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("value", ["x" * 10_000, "9" * 4000])
def test_a_long_value_is_cut(value: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(["--workers", value], {})
    assert len(str(raised.value)) < 300


NUMBERS = [
    field
    for field in dataclasses.fields(Settings)
    if get_type_hints(Settings)[field.name] in (int, float)
]


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_every_number_has_a_lower_and_an_upper_bound(field: dataclasses.Field[Any]) -> None:
    low, high = field.metadata["low"], field.metadata["high"]
    flag = "--" + field.name.replace("_", "-")
    assert low <= field.default <= high
    values = ["-5", "1" + "0" * 20, "1" + "0" * 30, str(high + 1)]
    if get_type_hints(Settings)[field.name] is float:
        values += ["inf", "-inf", "nan", "1e400"]
    for value in values:
        with pytest.raises(SettingsError, match=f"{field.name} must be at least {low} and at most"):
            load([f"{flag}={value}"], {})
    # Numbers that depend on others.
    environ = {
        "MNIST_HTTP_PORT": "2",
        "MNIST_GRPC_PORT": "3",
        "MNIST_MAX_REQUEST_BYTES": "1024",
        "MNIST_MAX_INFLIGHT_BYTES": str(10**11),
    }
    for value in (low, high):
        settings = load([f"{flag}={value}"], environ)
        assert getattr(settings, field.name) == value


def test_the_requests_in_flight_may_hold_at_least_one_of_the_largest() -> None:
    load(["--max-request-bytes=5000", "--max-inflight-bytes=5000"], {})
    with pytest.raises(SettingsError, match=r"max_inflight_bytes is 4999.*max_request_bytes.*5000"):
        load(["--max-request-bytes=5000", "--max-inflight-bytes=4999"], {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--work", "3"], "Unknown argument '--work'; the nearest flag is --workers."),
        (["--max-queu=3"], "Unknown argument '--max-queu'; the nearest flag is --max-queue."),
        (["--hel"], "Unknown argument '--hel'; the nearest flag is --help."),
        (["--chek"], "Unknown argument '--chek'; the nearest flag is --check."),
        (["workers"], "'workers' is no file or folder; did you mean --workers?"),
        (["a", "b"], "Unknown argument 'b'; the nearest flag is --"),
        (["a" * 300], r"'a+\.\.\. cannot be used: File name too long\."),
        (["a\0"], r"'a\\x00' cannot be used: embedded null byte\."),
        (["--models", "a" * 300], r"models from --models is 'a+\.\.\., but must be a path that a"),
        (["/", "--models", "/"], "'/' and --models are both given; remove one of them."),
    ],
)
def test_an_unknown_or_abbreviated_flag_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load(arguments, {})


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("MNIST_WORKER", "MNIST_WORKERS"),
        ("MNIST_MAX_QUEUES", "MNIST_MAX_QUEUE"),
        ("MNIST_CONFIGURATION", "MNIST_CONFIG"),
        ("MNIST_PORT", "MNIST_HTTP_PORT"),  # without a URL it is not of Kubernetes
        ("MNIST_", "MNIST_"),
    ],
)
def test_an_unknown_variable_is_refused(variable: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=f"'{variable}'; the nearest is {nearest}"):
        load([], {variable: "3"})


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("worker = 3\n")
    with pytest.raises(SettingsError, match=r"Unknown setting 'worker' in .*nearest is workers\."):
        load(["--config", str(file)], {})


@pytest.mark.parametrize("service", ["mnist", "mnist-serve", "mnist-grpc", "mnist-http", "mnist-x"])
@pytest.mark.parametrize("scheme", ["tcp", "udp", "sctp"])
def test_service_links_of_kubernetes_are_ignored(service: str, scheme: str) -> None:
    """Their names are those of the kubelet (kubelet/envvars, FromServices)."""
    prefix = service.upper().replace("-", "_")
    address, port = "10.0.171.239", 8000
    url = f"{scheme}://{address}:{port}"
    link = f"{prefix}_PORT_{port}_{scheme.upper()}"
    environ = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(port),
        f"{prefix}_SERVICE_PORT_GRPC_WEB": str(port),
        f"{prefix}_PORT": url,
        link: url,
        f"{link}_PROTO": scheme,
        f"{link}_PORT": str(port),
        f"{link}_ADDR": address,
    }
    assert load([], environ) == Settings()
    assert load([], environ | {"MNIST_WORKERS": "2"}) == Settings(workers=2)


def test_every_variable_of_the_repository_is_accepted() -> None:
    """A process that has one of them in its environment may start the server."""
    names = set()
    for folder in ("benchmarks", "deploy", "tests/compose", "tests/kubernetes", ".github", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if ".venvs" in path.parts:  # where `make bench` has run
                continue
            if path.is_file() and path.suffix in (".py", ".sh", ".yaml", ".yml", ""):
                names |= set(re.findall(r"\bMNIST_[A-Z_]*[A-Z]", path.read_text()))
    for path in (*ROOT.glob("*.yml"), ROOT / "Dockerfile", ROOT / "Makefile"):
        names |= set(re.findall(r"\bMNIST_[A-Z_]*[A-Z]", path.read_text()))
    assert "MNIST_BENCHMARK_RUN" in names
    hints = get_type_hints(Settings)
    environ = dict.fromkeys(names, "x")
    for name, kind in hints.items():
        numeric = kind in (int, float)
        default = str(getattr(Settings(), name)) if numeric else "true" if kind is bool else "x"
        choice = get_args(kind)[0] if get_origin(kind) is Literal else default
        if (variable := f"MNIST_{name.upper()}") in environ:
            environ[variable] = choice
    load([], environ | {"MNIST_TRUSTED_PROXIES": "10.0.0.0/8", "MNIST_ANONYMOUS_SCOPES": "none"})


def test_a_host_name_becomes_an_address() -> None:
    host = load(["--host", "localhost"], {}).host
    assert host in ("127.0.0.1", "::1")
    assert is_loopback(host)


def test_an_ipv4_address_of_a_host_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_: object, **__: object) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert load(["--host", "both.example"], {}).host == "127.0.0.1"


@pytest.mark.parametrize("host", ["::1", "0.0.0.0", "no.such.name.invalid", "a" * 64 + ".invalid"])
def test_an_address_or_a_name_without_one_stays(host: str) -> None:
    assert load(["--host", host], {}).host == host


def test_an_empty_host_is_refused() -> None:
    with pytest.raises(SettingsError, match="host"):
        load([], {"MNIST_HOST": ""})


def test_a_path_is_what_is_served_and_its_only_model_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    for path in (tmp_path / "net.onnx", tmp_path):
        settings = load([str(path), "--workers", "2"], {})
        assert (settings.models, settings.model, settings.workers) == (path, "net", 2)
    assert load([str(tmp_path), "--model", "other"], {}).model == "other"
    (tmp_path / "more.onnx").touch()
    assert load([str(tmp_path)], {}).model == "mnist"


def test_models_to_load_come_from_repeated_flags_lists_and_commas(tmp_path: Path) -> None:
    explicit = ["--model-control-mode=explicit"]
    settings = load([*explicit, "--load-model=a", "--load-model", "b, c"], {})
    assert settings.load_model == ("a", "b", "c")
    assert settings.models_to_load == {"a", "b", "c"}
    assert load([*explicit], {"MNIST_LOAD_MODEL": "*"}).models_to_load is None
    file = tmp_path / "settings.toml"
    file.write_text("model_control_mode = 'explicit'\nload_model = ['a', 'b']\n")
    assert load(["--config", str(file)], {}).models_to_load == {"a", "b"}
    assert load(explicit, {}).models_to_load == frozenset()
    assert load([], {}).models_to_load is None


@pytest.mark.parametrize(
    ("mode", "host", "polls", "allows_control"),
    [
        ("auto", "127.0.0.1", True, True),
        ("auto", "0.0.0.0", True, False),
        ("poll", "127.0.0.1", True, False),
        ("none", "127.0.0.1", False, False),
        ("explicit", "0.0.0.0", False, True),
    ],
)
def test_control_modes(mode: Any, host: str, polls: bool, allows_control: bool) -> None:
    settings = Settings(model_control_mode=mode, host=host)
    assert (settings.polls, settings.allows_control) == (polls, allows_control)


def test_the_settings_in_the_manual_on_security_are_accepted(tmp_path: Path) -> None:
    blocks = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs" / "security.md").read_text(), re.DOTALL
    )
    assert len(blocks) >= 2
    for block in blocks:
        file = tmp_path / "settings.toml"
        file.write_text(block)
        load(["--config", str(file)], {})


def test_a_name_of_this_machine_is_a_host_that_it_may_be_called_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
    settings = load(["--host", "Box", "--allowed-hosts", "other"], {})
    assert (settings.host, settings.allowed_hosts) == ("127.0.1.1", ("other", "box"))
    assert load(["--host", "127.0.0.1"], {}).allowed_hosts == ()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("allowed_origins", "app.example"), ("allowed_hosts", "https://app.example")],
)
def test_a_malformed_origin_or_host_names_its_setting(setting: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{setting}: '{value}' must be"):
        load([f"--{setting.replace('_', '-')}", value], {})
