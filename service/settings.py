"""Defines every setting of the server, once.

Each setting is a field of `Settings`. The flag `--http-port`, the environment variable
`MNIST_HTTP_PORT`, the key `http_port` of the TOML file given by `--config`, the text of `--help`
and docs/settings.md all come from the field. A flag beats the environment, the environment beats
the file, the file beats the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from service.repository.shipped import shipped_models

ENV_PREFIX = "MNIST_"

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names the setting and its source."""


def _setting(default: T, doc: str, *, low: float | None = None, high: float | None = None) -> T:
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The configuration of one server. Every worker process gets a copy."""

    host: str = _setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 or :: listens on all interfaces"
    )
    http_port: int = _setting(8000, "port of the HTTP server", low=1, high=65535)
    grpc_port: int = _setting(8001, "port of the gRPC server", low=1, high=65535)
    workers: int = _setting(1, "worker processes; more than one per core does not help", low=1)

    models: Path = _setting(
        Path("models"),
        "model repository: a folder that contains NAME/VERSION/model.onnx; if this is not set and "
        "there is no ./models, the model that comes with the package is served",
    )
    model: str = _setting("mnist", "model for requests that do not name one")
    versions: int = _setting(2, "how many of the newest versions of each model stay loaded", low=1)
    poll_interval: float = _setting(
        2.0, "seconds between checks for new versions; 0 disables the checks", low=0
    )

    control: Literal["auto", "on", "off"] = _setting(
        "auto",
        "whether clients may load and unload models and change the log level; "
        "auto allows it if the server listens on this machine only",
    )
    shared_memory_regions: int = _setting(
        0,
        "how many system shared memory regions clients may register; 0 disables shared memory",
        low=0,
    )

    provider: Literal["auto", "cpu", "cuda"] = _setting(
        "auto",
        "ONNX Runtime execution provider; auto uses CUDA if it works and the CPU otherwise",
    )
    intra_op_threads: int = _setting(1, "threads per inference", low=1)
    spinning: bool = _setting(
        False, "whether idle inference threads spin: lower latency, but busy cores"
    )

    max_batch_size: int = _setting(
        64,
        "largest batch formed from queued requests, in images; a larger request is split into "
        "parts of this size, or of 64 if that is more",
        low=1,
    )
    max_queue_delay: float = _setting(
        0.0, "milliseconds that a request may wait for others to join its batch", low=0, high=1000
    )
    max_queue: int = _setting(
        4096, "images that may wait in the queue; further requests are refused", low=1
    )
    inline_budget: float = _setting(
        1.0,
        "milliseconds; inference that is expected to take longer runs in a thread instead of on "
        "the event loop",
        low=0,
    )

    max_request_bytes: int = _setting(8 * 1024 * 1024, "largest request body, in bytes", low=1024)
    max_image_pixels: int = _setting(16_000_000, "largest PNG or JPEG, in decoded pixels", low=784)
    body_timeout: float = _setting(30.0, "seconds within which a request body must arrive", low=0.1)
    compress_min_bytes: int = _setting(
        1024,
        "smallest HTTP response to compress, in bytes, for clients that accept gzip or deflate",
    )
    max_connections: int = _setting(
        1024, "HTTP connections that each worker serves at a time", low=1
    )
    max_stream_requests: int = _setting(
        64, "requests of one gRPC stream that are processed at a time", low=1
    )
    stop_timeout: float = _setting(
        30.0, "seconds that accepted requests may take to finish after SIGTERM", low=0, high=3600
    )

    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "least severe level that is logged"
    )
    log_format: Literal["auto", "json", "text"] = _setting(
        "auto", "format of log lines: json, or text for people; auto uses text on a terminal"
    )
    log_requests: Literal["none", "errors", "all"] = _setting(
        "errors", "requests to log: none, those that fail (errors), or all"
    )
    fast_lane: bool = _setting(
        True,
        "whether HTTP requests are answered ahead of Flask; false sends all of them through Flask",
    )
    fast_grpc: bool = _setting(
        True, "whether the server's own HTTP/2 carries gRPC; false uses grpcio"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low, high = field.metadata["low"], field.metadata["high"]
            # In this form NaN fails the check as well.
            if not ((low is None or value >= low) and (high is None or value <= high)):
                bounds = f"at least {low}" + (f" and at most {high}" if high is not None else "")
                raise SettingsError(f"{field.name} must be {bounds}, not {value}.")
        if self.http_port == self.grpc_port:
            raise SettingsError(f"http_port and grpc_port are both {self.http_port}.")

    @property
    def allows_control(self) -> bool:
        """Whether clients may load and unload models and change the log level."""
        return self.control == "on" or (self.control == "auto" and is_loopback(self.host))


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or localhost; names are not resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _convert(name: str, kind: Any, raw: object, source: str) -> object:
    """Convert the text of a flag or variable, or a TOML value, to the type of the field."""
    try:
        if get_origin(kind) is Literal:
            if raw in get_args(kind):
                return raw
            raise ValueError(f"must be one of {', '.join(get_args(kind))}")
        if kind is bool:
            if isinstance(raw, bool):
                return raw
            return {"true": True, "1": True, "false": False, "0": False}[str(raw).lower()]
        has_wrong_type = (
            isinstance(raw, bool)
            or (kind is int and isinstance(raw, float))
            or (kind is str and not isinstance(raw, str))
        )
        if has_wrong_type:
            raise ValueError(f"must be {kind.__name__}")
        return kind(raw)
    except (ValueError, TypeError, KeyError) as error:
        reason = "must be true or false" if isinstance(error, KeyError) else str(error)
        raise SettingsError(f"{name} from {source}: {reason}, not {raw!r}.") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read the settings file {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested too deeply
        raise SettingsError(f"The settings file {path} is not valid TOML: {error}.") from None


def parser() -> argparse.ArgumentParser:
    """The command line of mnist-serve, with a flag for each field of `Settings`."""
    command_line = argparse.ArgumentParser(
        prog="mnist-serve",
        description="Serve the models of a repository over HTTP and gRPC.",
        epilog="Each flag is also an environment variable (in brackets) and a key of the "
        "--config file. A flag beats the environment, which beats the file.",
    )
    command_line.add_argument(
        "--config", metavar="FILE", help="TOML file of settings [MNIST_CONFIG]"
    )
    hints = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        kind = hints[field.name]
        choices = get_args(kind) if get_origin(kind) is Literal else None
        metavar = "|".join(choices) if choices else "true|false" if kind is bool else kind.__name__
        command_line.add_argument(
            "--" + field.name.replace("_", "-"),
            metavar=metavar.upper() if kind in (int, float, str, Path) else metavar,
            help=f"{field.metadata['doc']} (default: {_text(field.default)}) "
            f"[{ENV_PREFIX}{field.name.upper()}]",
        )
    return command_line


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def load(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings from flags (by default those of this process), environment and file.

    Raises SettingsError for a value or key that cannot be used. argparse exits on an unknown flag
    and after --help.
    """
    environ = os.environ if environ is None else environ
    flags = vars(parser().parse_args(arguments))
    hints = get_type_hints(Settings)
    path = flags.pop("config") or environ.get(ENV_PREFIX + "CONFIG")
    file_values = _read_file(Path(path)) if path else {}
    if unknown := sorted(set(file_values) - set(hints)):
        raise SettingsError(f"Unknown setting {unknown[0]!r} in {path}; see mnist-serve --help.")

    values: dict[str, Any] = {}
    for name, kind in hints.items():
        flag, variable = "--" + name.replace("_", "-"), ENV_PREFIX + name.upper()
        if flags[name] is not None:
            values[name] = _convert(name, kind, flags[name], flag)
        elif variable in environ:
            values[name] = _convert(name, kind, environ[variable], variable)
        elif name in file_values:
            values[name] = _convert(name, kind, file_values[name], str(path))
    settings = Settings(**values)
    if "models" not in values and not settings.models.exists() and (shipped := shipped_models()):
        return dataclasses.replace(settings, models=shipped)
    return settings


def markdown() -> str:
    """The table of docs/settings.md; a test compares the two."""
    header = ["| file key | flag | environment | default | what it does |", "|---|---|---|---|---|"]
    rows = [
        f"| `{field.name}` | `--{field.name.replace('_', '-')}` | "
        f"`{ENV_PREFIX}{field.name.upper()}` | `{_text(field.default)}` | {field.metadata['doc']} |"
        for field in dataclasses.fields(Settings)
    ]
    return "\n".join([*header, *rows]) + "\n"
