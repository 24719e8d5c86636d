"""What the server imports, which is most of what it does before it is ready."""

from __future__ import annotations

import subprocess
import sys

# Of training, of building models, of tests.
NOT_NEEDED = {"matplotlib", "onnx", "scipy", "sklearn", "torch", "torchvision", "training", "tests"}


def test_the_server_imports_nothing_that_only_training_needs() -> None:
    code = "import sys, service.cli, service.supervisor, service.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"granian", "onnxruntime"} <= packages
    assert not NOT_NEEDED & packages
