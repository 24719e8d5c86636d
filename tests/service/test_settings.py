from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, load, parser


def test_nothing_configured_is_the_defaults() -> None:
    assert load([], {}) == Settings()


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("http_port = 1\nworkers = 2\nmax_queue = 3\nspinning = true\n")
    environ = {"MNIST_CONFIG": str(file), "MNIST_HTTP_PORT": "10", "MNIST_WORKERS": "20"}
    made = load(["--http-port", "100"], environ)
    assert (made.http_port, made.workers, made.max_queue, made.spinning) == (100, 20, 3, True)


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["--http-port", "x"], {}, "--http-port"),
        (["--http-port", "0"], {}, "http_port"),
        (["--http-port", "70000"], {}, "http_port"),
        (["--http-port", "8001"], {}, "both 8001"),
        ([], {"MNIST_WORKERS": "0.5"}, "MNIST_WORKERS"),
        ([], {"MNIST_SPINNING": "maybe"}, "MNIST_SPINNING"),
        ([], {"MNIST_PROVIDER": "tpu"}, "auto, cpu, cuda"),
        ([], {"MNIST_CONFIG": "/no/such/file"}, "/no/such/file"),
    ],
)
def test_a_bad_value_is_named_with_its_source(
    arguments: list[str], environ: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        load(arguments, environ)


@pytest.mark.parametrize(
    ("text", "named"),
    [("htp_port = 1", "htp_port"), ("= 1", "TOML"), ("workers = true", "workers")],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=named):
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
