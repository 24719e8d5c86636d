"""The one home of the server's configuration.

Every setting is a field of `Settings`, and nothing else defines one: the flag `--http-port`, the
environment variable `MNIST_HTTP_PORT`, the key `http_port` of the TOML file given by `--config`,
the text of `--help` and docs/settings.md all come from the field. A flag beats the environment,
the environment beats the file, the file beats the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ENV_PREFIX = "MNIST_"


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names the setting and its source."""


def _setting(
    default: Any, doc: str, *, least: float | None = None, most: float | None = None
) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc, "least": least, "most": most})


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How one server runs. Frozen: workers get a copy and cannot change each other's."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for every interface")
    http_port: int = _setting(8000, "port of the HTTP front", least=1, most=65535)
    grpc_port: int = _setting(8001, "port of the gRPC front", least=1, most=65535)
    workers: int = _setting(1, "worker processes; one a core is the most that helps", least=1)

    models: Path = _setting(Path("models"), "model repository: NAME/VERSION/model.onnx below it")
    model: str = _setting("mnist", "model that answers where a request names none")
    versions: int = _setting(2, "how many of the newest versions of a model stay loaded", least=1)
    poll_interval: float = _setting(
        2.0, "seconds between two looks for new versions; 0 never looks again", least=0
    )

    control: Literal["auto", "on", "off"] = _setting(
        "auto",
        "let callers load and unload models and change the log level; "
        "auto allows it where the server listens on this machine only",
    )
    shared_memory_regions: int = _setting(
        0, "regions of system shared memory that callers may register; 0 is off", least=0
    )

    provider: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "ONNX Runtime execution provider: auto takes CUDA where it really works"
    )
    intra_op_threads: int = _setting(1, "threads of one inference", least=1)
    spinning: bool = _setting(False, "let idle inference threads spin: lower latency, busy cores")

    max_batch_size: int = _setting(
        64,
        "images that waiting requests are joined into; a larger request is run in parts of so "
        "many, and of no fewer than 64",
        least=1,
    )
    max_queue_delay: float = _setting(
        0.0, "milliseconds that a request may wait for others to join it", least=0, most=1000
    )
    max_queue: int = _setting(4096, "images that may wait before requests are refused", least=1)
    inline_budget: float = _setting(
        1.0, "milliseconds: inference expected to be longer leaves the event loop", least=0
    )

    max_request_bytes: int = _setting(
        8 * 1024 * 1024, "largest body of a request, in bytes", least=1024
    )
    max_image_pixels: int = _setting(
        16_000_000, "largest PNG or JPEG, in pixels once decoded", least=784
    )
    body_timeout: float = _setting(
        30.0, "seconds in which the body of a request must have arrived", least=0.1
    )
    compress_min_bytes: int = _setting(
        1024, "smallest HTTP answer that is compressed for callers who accept gzip or deflate"
    )
    max_connections: int = _setting(
        1024, "HTTP connections that one worker serves at a time", least=1
    )
    max_stream_requests: int = _setting(
        64, "requests of one gRPC stream that are worked on at a time", least=1
    )
    stop_timeout: float = _setting(
        30.0, "seconds that accepted requests have to finish after SIGTERM", least=0, most=3600
    )

    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "least severe log line that is written"
    )
    log_format: Literal["auto", "json", "text"] = _setting(
        "auto", "json lines, or text for people; auto is text on a terminal"
    )
    log_requests: Literal["none", "errors", "all"] = _setting(
        "errors", "requests that get a log line: failed ones, all, or none"
    )
    fast_lane: bool = _setting(
        True, "answer predict calls ahead of Flask; off sends every HTTP request through Flask"
    )
    fast_grpc: bool = _setting(
        True, "answer gRPC by the server's own HTTP/2 front; off answers it by grpcio"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, most = field.metadata["least"], field.metadata["most"]
            # Written so that NaN fails it as well.
            if not ((least is None or value >= least) and (most is None or value <= most)):
                bounds = f"at least {least}" + (f" and at most {most}" if most is not None else "")
                raise SettingsError(f"{field.name} must be {bounds}, not {value}.")
        if self.http_port == self.grpc_port:
            raise SettingsError(f"http_port and grpc_port are both {self.http_port}.")

    @property
    def allows_control(self) -> bool:
        """Whether callers may load and unload models and change the log level."""
        return self.control == "on" or (self.control == "auto" and is_loopback(self.host))


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, as far as can be told from it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _convert(name: str, kind: Any, raw: object, source: str) -> object:
    """Turn a flag's or variable's text, or a TOML value, into the type of the field."""
    try:
        if get_origin(kind) is Literal:
            if raw in get_args(kind):
                return raw
            raise ValueError(f"must be one of {', '.join(get_args(kind))}")
        if kind is bool:
            if isinstance(raw, bool):
                return raw
            return {"true": True, "1": True, "false": False, "0": False}[str(raw).lower()]
        wrong = (kind is int and isinstance(raw, float)) or (
            kind is str and not isinstance(raw, str)
        )
        if isinstance(raw, bool) or wrong:
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} is not valid TOML: {error}.") from None


def parser() -> argparse.ArgumentParser:
    """The command line of mnist-serve, made from the fields of `Settings`."""
    made = argparse.ArgumentParser(
        prog="mnist-serve",
        description="Serve the models of a repository over HTTP and gRPC.",
        epilog="Every flag is also an environment variable (in brackets) and a key of the "
        "--config file. A flag beats the environment, which beats the file.",
    )
    made.add_argument("--config", metavar="FILE", help="TOML file of settings [MNIST_CONFIG]")
    hints = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        kind = hints[field.name]
        choices = get_args(kind) if get_origin(kind) is Literal else None
        metavar = "|".join(choices) if choices else "true|false" if kind is bool else kind.__name__
        made.add_argument(
            "--" + field.name.replace("_", "-"),
            metavar=metavar.upper() if kind in (int, float, str, Path) else metavar,
            help=f"{field.metadata['doc']} (default: {_text(field.default)}) "
            f"[{ENV_PREFIX}{field.name.upper()}]",
        )
    return made


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def load(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Settings from flags, environment and file.

    Raises SettingsError for a value or key that cannot be used; argparse exits by itself on an
    unknown flag and on --help.
    """
    environ = os.environ if environ is None else environ
    flags = vars(parser().parse_args(arguments))
    hints = get_type_hints(Settings)
    path = flags.pop("config") or environ.get(ENV_PREFIX + "CONFIG")
    in_file = _read_file(Path(path)) if path else {}
    if unknown := sorted(set(in_file) - set(hints)):
        raise SettingsError(f"Unknown setting {unknown[0]!r} in {path}; see mnist-serve --help.")

    values: dict[str, Any] = {}
    for name, kind in hints.items():
        flag, variable = "--" + name.replace("_", "-"), ENV_PREFIX + name.upper()
        if flags[name] is not None:
            values[name] = _convert(name, kind, flags[name], flag)
        elif variable in environ:
            values[name] = _convert(name, kind, environ[variable], variable)
        elif name in in_file:
            values[name] = _convert(name, kind, in_file[name], str(path))
    return Settings(**values)


def markdown() -> str:
    """The table of docs/settings.md; a test keeps the file equal to this."""
    rows = [
        f"| `{field.name}` | `--{field.name.replace('_', '-')}` | "
        f"`{ENV_PREFIX}{field.name.upper()}` | `{_text(field.default)}` | {field.metadata['doc']} |"
        for field in dataclasses.fields(Settings)
    ]
    head = ["| file key | flag | environment | default | what it does |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"
