"""Packs the handler and starts TorchServe with dynamic batching, as its documentation describes."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WORKERS = int(os.environ["WORKERS"])
PORT = int(os.environ["HTTP_PORT"])
MANAGEMENT_PORT = int(os.environ["GRPC_PORT"])

folder = Path(tempfile.mkdtemp(prefix="torchserve-"))
tools = Path(sys.executable).parent
subprocess.run(  # noqa: S603 (tools of its own environment)
    [
        tools / "torch-model-archiver", "--model-name", "mnist", "--version", "1",
        "--handler", "handler.py", "--export-path", folder,
    ],
    check=True,
)  # fmt: skip
model = {
    "defaultVersion": True,
    "marName": "mnist.mar",
    "minWorkers": WORKERS,
    "maxWorkers": WORKERS,
    "batchSize": 64,
    "maxBatchDelay": 1,
    "responseTimeout": 120,
}
(folder / "config.properties").write_text(
    f"inference_address=http://127.0.0.1:{PORT}\n"
    f"management_address=http://127.0.0.1:{MANAGEMENT_PORT}\n"
    "enable_metrics_api=false\n"
    "disable_token_auth=true\n"
    f"model_store={folder}\n"
    "load_models=mnist.mar\n"
    f"models={json.dumps({'mnist': {'1': model}})}\n"
)
os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
os.environ["LOG_LOCATION"] = os.environ["METRICS_LOCATION"] = str(folder)
os.chdir(folder)
os.execv(  # noqa: S606 (without a shell, on purpose)
    tools / "torchserve",
    [
        "torchserve",
        "--start",
        "--foreground",
        "--disable-token-auth",
        "--ts-config",
        "config.properties",
    ],
)
