"""The serving layer: ONNX models over HTTP and gRPC. Never imports torch or training."""

from importlib.metadata import PackageNotFoundError, version

SERVER_NAME = "mnist-service"

try:
    __version__ = version("mnist-service")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"
