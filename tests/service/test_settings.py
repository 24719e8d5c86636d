from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, load, parser


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
        (["--http-port", "8001"], {}, "both 8001"),
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
        ("control = true", "auto, on, off"),
        ("control = {auto = 1}", "auto, on, off"),
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
