"""Serves ONNX models over HTTP and gRPC. Never imports torch or training."""

from importlib.metadata import PackageNotFoundError, version

SERVER_NAME = "mnist-service"

try:
    __version__ = version("mnist-service")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+source"
