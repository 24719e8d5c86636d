"""What runs models: ONNX Runtime, imported nowhere else."""

import os

# ONNX Runtime's packages send their maker reports of its use unless this is set when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
