"""Runs models with ONNX Runtime, which no other package imports."""

import os

# ONNX Runtime's packages send usage reports to Microsoft unless this is set when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
