"""The servers under test: this server, the floors below it, and its rivals.

A contender is data: the command that starts it, its environment, and the path for each wire
format it accepts. `server_process.py` replaces the texts in braces. The folder `rivals/<name>` is
what a user of that rival would write.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks.paths import FOLDER
from benchmarks.wire_formats import GRPC_PATH

Kind = Literal["ours", "floor", "limit", "rival"]

_MODULE = ("{python}", "-m")
_GRANIAN = (
    *_MODULE, "granian", "--loop", "uvloop", "--host", "127.0.0.1", "--port", "{http_port}",
    "--workers", "{workers}", "--no-ws", "--log-level", "error", "--interface",
)  # fmt: skip
_INFER = "/v2/models/mnist/infer"


@dataclass(frozen=True, slots=True)
class Contender:
    """One server under test.

    `endpoints` maps wire formats to paths. `encodings` maps a wire format that a rival does not
    accept to the nearest one that it does. `scenarios` are shell patterns; empty means all.
    `requirements` names what goes into a rival's virtual environment; other contenders run on this
    interpreter. `packages` are those whose versions go into the results. `interpreter` is the
    Python that creates a rival's environment. A `secured` contender gets a folder `{secrets}` with
    what `access.make` writes, and is called with TLS and the key.
    """

    name: str
    title: str
    kind: Kind
    command: Sequence[str]
    endpoints: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    encodings: Mapping[str, str] = field(default_factory=dict)
    scenarios: Sequence[str] = ()
    packages: Sequence[str] = ()
    interpreter: str = sys.executable
    secured: bool = False
    note: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder of a rival's code."""
        return FOLDER / "rivals" / self.name if self.kind == "rival" else None

    @property
    def requirements(self) -> Path | None:
        """The pinned packages of a rival's virtual environment."""
        return self.folder / "requirements.txt" if self.folder else None

    def encoding(self, wire: str) -> str:
        """The wire format that this contender receives in place of the scenario's."""
        return self.encodings.get(wire, wire)


_SETTINGS = {
    "MNIST_MODELS": "{models}",
    "MNIST_HTTP_PORT": "{http_port}",
    "MNIST_GRPC_PORT": "{grpc_port}",
    "MNIST_WORKERS": "{workers}",
}
TLS = {"MNIST_TLS_CERTIFICATE": "{secrets}/server.pem", "MNIST_TLS_KEY": "{secrets}/server.key"}
_KEYS = {"MNIST_KEYS_FILE": "{secrets}/keys"}
_ALL = {"raw": "/predict", "png": "/predict", "json": _INFER, "binary": _INFER, "grpc": GRPC_PATH}
_DIGITS = {"raw": "/predict", "png": "/predict"}
_PROTOCOL = {"json": _INFER, "binary": _INFER, "grpc": GRPC_PATH}

OURS = Contender(
    name="ours",
    title="this server",
    kind="ours",
    command=(*_MODULE, "service.cli"),
    endpoints=_ALL,
    environment=_SETTINGS,
    packages=("granian", "grpcio"),
)
OURS_SECURED = replace(
    OURS,
    name="ours-secured",
    title="this server, with TLS and an API key",
    environment=_SETTINGS | TLS | _KEYS,
    secured=True,
)

CONTENDERS: Sequence[Contender] = (
    OURS,
    OURS_SECURED,
    replace(
        OURS,
        name="ours-unbatched",
        title="this server, max_batch_size 1",
        environment=_SETTINGS | {"MNIST_MAX_BATCH_SIZE": "1"},
        packages=(),
        scenarios=("raw-1", "raw-64"),
        note="shows the effect of batching",
    ),
    Contender(
        name="floor-rsgi",
        title="floor: bare RSGI callable",
        kind="floor",
        command=(*_GRANIAN, "rsgi", "benchmarks.floors.rsgi:app"),
        endpoints=_DIGITS,
        packages=("granian",),
    ),
    Contender(
        name="floor-asgi",
        title="floor: bare ASGI callable",
        kind="floor",
        command=(*_GRANIAN, "asgi", "benchmarks.floors.asgi:app"),
        endpoints=_DIGITS,
        packages=("granian",),
    ),
    Contender(
        name="floor-grpc",
        title="floor: bare grpc.aio servicer",
        kind="floor",
        command=(*_MODULE, "benchmarks.floors.grpc_aio"),
        endpoints={"grpc": GRPC_PATH},
        packages=("grpcio",),
    ),
    Contender(
        name="onnxruntime",
        title="limit: ONNX Runtime in a loop, no server",
        kind="limit",
        command=(*_MODULE, "benchmarks.floors.in_process"),
        endpoints=dict.fromkeys(_ALL, ""),
        scenarios=("bulk-*",),
        note="measures inference alone, without any transport",
    ),
    Contender(
        name="mlserver",
        title="MLServer",
        kind="rival",
        command=("{venv}/bin/mlserver", "start", "."),
        endpoints={"json": _INFER, "raw": _INFER, "grpc": GRPC_PATH},
        environment={
            "MLSERVER_HTTP_PORT": "{http_port}",
            "MLSERVER_GRPC_PORT": "{grpc_port}",
            "MLSERVER_METRICS_PORT": "{spare_port}",
            "MLSERVER_PARALLEL_WORKERS": "{parallel_workers}",
            "MLSERVER_DEBUG": "false",
        },
        encodings={"raw": "json"},
        packages=("mlserver",),
        note="accepts neither raw pixels nor binary tensors over HTTP: raw pixels go as its JSON",
    ),
    Contender(
        name="kserve",
        title="KServe (Python server)",
        kind="rival",
        command=(
            "{python}",
            "server.py",
            "--http_port",
            "{http_port}",
            "--grpc_port",
            "{grpc_port}",
            "--workers",
            "{workers}",
        ),
        endpoints={**_PROTOCOL, "raw": _INFER},
        encodings={"raw": "binary"},
        packages=("kserve",),
        note="accepts no raw pixels: they are sent as its protocol's binary tensors",
    ),
    Contender(
        name="litserve",
        title="LitServe",
        kind="rival",
        command=("{python}", "server.py"),
        endpoints=_DIGITS,
        encodings={"raw": "base64", "png": "base64-png"},
        packages=("litserve",),
        note="accepts JSON and forms only: images are sent as base64 in JSON",
    ),
    Contender(
        name="bentoml",
        title="BentoML",
        kind="rival",
        command=(
            "{venv}/bin/bentoml",
            "serve",
            "server:Mnist",
            "--host",
            "127.0.0.1",
            "--port",
            "{http_port}",
        ),
        endpoints={"raw": "/predict", "png": "/predict_picture"},
        environment={"BENTOML_HOME": "{scratch}/bentoml", "BENTOML_DO_NOT_TRACK": "1"},
        encodings={"raw": "lists"},
        packages=("bentoml",),
        note="batches arrays only: raw pixels are sent as lists in JSON",
    ),
    Contender(
        name="mosec",
        title="Mosec",
        kind="rival",
        command=(
            "{python}",
            "server.py",
            "--address",
            "127.0.0.1",
            "--port",
            "{http_port}",
            "--log-level",
            "error",
        ),
        endpoints=_DIGITS,
        environment={"MOSEC_WORKERS": "{workers}"},
        packages=("mosec",),
    ),
    Contender(
        name="ray",
        title="Ray Serve",
        kind="rival",
        command=("{python}", "server.py"),
        endpoints=_DIGITS,
        environment={"RAY_USAGE_STATS_ENABLED": "0"},
        packages=("ray",),
    ),
    Contender(
        name="torchserve",
        title="TorchServe",
        kind="rival",
        command=("{python}", "server.py"),
        endpoints={"raw": "/predictions/mnist", "png": "/predictions/mnist"},
        packages=("torchserve", "torch"),
    ),
    Contender(
        name="pytriton",
        title="PyTriton",
        kind="rival",
        command=("{python}", "server.py"),
        endpoints={**_PROTOCOL, "raw": _INFER},
        encodings={"raw": "binary"},
        packages=("nvidia-pytriton",),
        # The interpreter inside its Triton fails on the standard library of Python 3.11.7 and
        # newer; Debian 12 has an older one.
        interpreter="/usr/bin/python3",
        note="accepts no raw pixels: they are sent as its protocol's binary tensors",
    ),
)
