"""Who is measured: this server, the floors below it, and the rivals.

A contender is data: the command that starts it, its environment, and which wire formats it takes
where. Texts in braces are filled in by `processes.py`. A rival's own code is the folder
`rivals/<name>`, as its user would write it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.settings import FOLDER
from benchmarks.wire import GRPC_PATH

Kind = Literal["ours", "floor", "limit", "rival"]

_MODULE = ("{python}", "-m")
_GRANIAN = (
    *_MODULE, "granian", "--loop", "uvloop", "--host", "127.0.0.1", "--port", "{http_port}",
    "--workers", "{workers}", "--no-ws", "--log-level", "error", "--interface",
)  # fmt: skip
_INFER = "/v2/models/mnist/infer"


@dataclass(frozen=True, slots=True)
class Contender:
    """`endpoints` maps a wire format to its path; `encodings` says where a rival takes another.

    `scenarios` limits a contender to some (shell patterns). `requirements` is the file of a
    rival's own virtual environment; the others run on this interpreter. `packages` are those whose
    versions the results name, `interpreter` the Python that a rival's environment is made with.
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
    note: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder of a rival's own code."""
        return FOLDER / "rivals" / self.name if self.kind == "rival" else None

    @property
    def requirements(self) -> Path | None:
        """What a rival's virtual environment is made from."""
        return self.folder / "requirements.txt" if self.folder else None

    def encoding(self, wire: str) -> str:
        """The wire format that the contender is really sent for a scenario's."""
        return self.encodings.get(wire, wire)


_OURS = {
    "MNIST_MODELS": "{models}",
    "MNIST_HTTP_PORT": "{http_port}",
    "MNIST_GRPC_PORT": "{grpc_port}",
    "MNIST_WORKERS": "{workers}",
}
_ALL = {"raw": "/predict", "png": "/predict", "json": _INFER, "binary": _INFER, "grpc": GRPC_PATH}
_DIGITS = {"raw": "/predict", "png": "/predict"}
_PROTOCOL = {"json": _INFER, "binary": _INFER, "grpc": GRPC_PATH}

CONTENDERS: Sequence[Contender] = (
    Contender(
        "ours",
        "this server",
        "ours",
        (*_MODULE, "service.cli"),
        _ALL,
        _OURS,
        packages=("granian", "grpcio"),
    ),
    Contender(
        "ours-unbatched",
        "this server, max_batch_size 1",
        "ours",
        (*_MODULE, "service.cli"),
        _ALL,
        _OURS | {"MNIST_MAX_BATCH_SIZE": "1"},
        scenarios=("raw-1", "raw-64"),
        note="shows what batching is worth",
    ),
    Contender(
        "floor-rsgi",
        "floor: bare RSGI callable",
        "floor",
        (*_GRANIAN, "rsgi", "benchmarks.floors.rsgi:app"),
        _DIGITS,
        packages=("granian",),
    ),
    Contender(
        "floor-asgi",
        "floor: bare ASGI callable",
        "floor",
        (*_GRANIAN, "asgi", "benchmarks.floors.asgi:app"),
        _DIGITS,
        packages=("granian",),
    ),
    Contender(
        "floor-grpc",
        "floor: bare grpc.aio servicer",
        "floor",
        (*_MODULE, "benchmarks.floors.grpc_aio"),
        {"grpc": GRPC_PATH},
        packages=("grpcio",),
    ),
    Contender(
        "onnxruntime",
        "limit: ONNX Runtime in a loop, no server",
        "limit",
        (*_MODULE, "benchmarks.floors.in_process"),
        dict.fromkeys(_ALL, ""),
        scenarios=("bulk-*",),
        note="no server: nothing travels",
    ),
    Contender(
        "mlserver",
        "MLServer",
        "rival",
        ("{venv}/bin/mlserver", "start", "."),
        {"json": _INFER, "raw": _INFER, "grpc": GRPC_PATH},
        {
            "MLSERVER_HTTP_PORT": "{http_port}",
            "MLSERVER_GRPC_PORT": "{grpc_port}",
            "MLSERVER_METRICS_PORT": "{spare_port}",
            "MLSERVER_PARALLEL_WORKERS": "{parallel_workers}",
            "MLSERVER_DEBUG": "false",
        },
        encodings={"raw": "json"},
        packages=("mlserver",),
        note="has neither raw pixels nor binary tensors over HTTP: raw pixels are sent as its JSON",
    ),
    Contender(
        "kserve",
        "KServe (Python server)",
        "rival",
        (
            "{python}",
            "server.py",
            "--http_port",
            "{http_port}",
            "--grpc_port",
            "{grpc_port}",
            "--workers",
            "{workers}",
        ),
        {**_PROTOCOL, "raw": _INFER},
        encodings={"raw": "binary"},
        packages=("kserve",),
        note="has no raw pixels: they are sent as its protocol's binary tensors",
    ),
    Contender(
        "litserve",
        "LitServe",
        "rival",
        ("{python}", "server.py"),
        _DIGITS,
        encodings={"raw": "base64", "png": "base64-png"},
        packages=("litserve",),
        note="takes JSON and forms only: images are sent as base64 in JSON",
    ),
    Contender(
        "bentoml",
        "BentoML",
        "rival",
        (
            "{venv}/bin/bentoml",
            "serve",
            "server:Mnist",
            "--host",
            "127.0.0.1",
            "--port",
            "{http_port}",
        ),
        {"raw": "/predict", "png": "/predict_picture"},
        {"BENTOML_HOME": "{scratch}/bentoml", "BENTOML_DO_NOT_TRACK": "1"},
        encodings={"raw": "lists"},
        packages=("bentoml",),
        note="batches arrays only: raw pixels are sent as lists in JSON",
    ),
    Contender(
        "mosec",
        "Mosec",
        "rival",
        (
            "{python}",
            "server.py",
            "--address",
            "127.0.0.1",
            "--port",
            "{http_port}",
            "--log-level",
            "error",
        ),
        _DIGITS,
        {"MOSEC_WORKERS": "{workers}"},
        packages=("mosec",),
    ),
    Contender(
        "ray",
        "Ray Serve",
        "rival",
        ("{python}", "server.py"),
        _DIGITS,
        {"RAY_USAGE_STATS_ENABLED": "0"},
        packages=("ray",),
    ),
    Contender(
        "torchserve",
        "TorchServe",
        "rival",
        ("{python}", "server.py"),
        {"raw": "/predictions/mnist", "png": "/predictions/mnist"},
        packages=("torchserve", "torch"),
    ),
    Contender(
        "pytriton",
        "PyTriton",
        "rival",
        ("{python}", "server.py"),
        {**_PROTOCOL, "raw": _INFER},
        encodings={"raw": "binary"},
        packages=("nvidia-pytriton",),
        # The interpreter inside of its Triton is older than Python 3.11.7 and breaks on the
        # standard library of a newer one; Debian 12's is old enough.
        interpreter="/usr/bin/python3",
        note="has no raw pixels: they are sent as its protocol's binary tensors",
    ),
)
