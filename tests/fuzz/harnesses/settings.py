"""Settings: a TOML file, then a line each for variables and flags, separated by zero bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import ipaddress
import socket
import tempfile
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from service import settings as settings_module
from service.settings import Settings, SettingsError, load

CI_RUNS = 2_000
_FILE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "file"
_HINTS = get_type_hints(Settings)
SEEDS = [
    b'http_port = 80\nlog_format = "json"\nspinning = true\nbody_timeout = 1.5\n',
    b"\0MNIST_WORKERS=2\0MNIST_HOST=::1\0MNIST_MODELS=/tmp\0--http-port=9",
    b"a = {b = [1, 2]}\n[workers]\nx = 1",
    b"body_timeout = nan\0MNIST_BODY_TIMEOUT=inf\0--body-timeout=-0",
    b"\0MNIST_GRPC_PORT=tcp://10.0.0.1:80\0MNIST_PORT_80_TCP=x\0MNIST_SERVICE_HOST=1",
    b"\0--config=/dev/null\0--nothing\0--workers",
    b"x = " + b"[" * 500,
    b"workers = 1" + b"0" * 500,
    b"\0" + b"a" * 300,
    *(f"\0MNIST_{name.upper()}=1".encode() for name in _HINTS),
    *(f"{name} = 1".encode() for name in _HINTS),
]
TOKENS = [
    *(f"MNIST_{name.upper()}=".encode() for name in _HINTS),
    *(f"--{name.replace('_', '-')}=".encode() for name in _HINTS),
    *(f"{name} = ".encode() for name in _HINTS),
    *(b"true", b"nan", b"inf", b"1_000", b"0x1F", b"1e5", b"auto", b"on", b"::1", b"localhost"),
]


def _resolve(host: str, *_: Any, **__: Any) -> Any:
    """Instead of a look-up in the network: only localhost has an address."""
    if host != "localhost":
        raise OSError(f"{host} has no address")
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]


socket.getaddrinfo = _resolve
# What is the same for every input takes most of the time of `load`.
settings_module.parser = functools.cache(settings_module.parser)
settings_module.get_type_hints = functools.cache(get_type_hints)  # type: ignore[attr-defined]


def check(data: bytes) -> None:
    file, *others = data.split(b"\0")
    words = [other.decode("utf-8", "surrogateescape") for other in others]
    flags = [word for word in words if word.startswith("--")]
    environ = dict(word.split("=", 1) for word in words if "=" in word and word not in flags)
    _FILE.write_bytes(file)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            settings = load([*flags, *([f"--config={_FILE}"] if file else [])], environ)
    except SettingsError as error:
        assert str(error)
        assert len(str(error)) < 2000 + len(data)
        return
    except SystemExit as stop:  # argparse: --help, or a flag without its value
        assert stop.code in (0, 2)
        assert output.getvalue()
        return
    for field in dataclasses.fields(Settings):
        value, kind = getattr(settings, field.name), _HINTS[field.name]
        if get_origin(kind) is None:
            assert isinstance(value, kind)
        elif get_origin(kind) is tuple:
            assert all(name and isinstance(name, str) for name in value)
        else:
            assert value in get_args(kind)
        low, high = field.metadata["low"], field.metadata["high"]
        assert low is None or value >= low
        assert high is None or value <= high
    with _FILE.open(encoding="utf-8") as text:  # with the ends of lines as `load` reads them
        values = tomllib.loads(text.read())
    for name, value in values.items():
        overridden = any(name.upper() in word.upper().replace("-", "_") for word in words)
        if not overridden and name not in ("host", "load_model", "models", "spinning"):
            assert getattr(settings, name) == type(getattr(settings, name))(value)
    if settings.allows_control and settings.model_control_mode == "auto":
        address = settings.host
        assert address == "localhost" or ipaddress.ip_address(address).is_loopback
