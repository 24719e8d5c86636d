"""Client of mnist-service: digits over HTTP and gRPC, typed, synchronous and asyncio.

asyncio, httpx, numpy, grpcio and Pillow are imported when they are first needed, not with this
module.
"""

from typing import TYPE_CHECKING, Any

from mnist_client.address import TLS
from mnist_client.client import Client
from mnist_client.errors import (
    AccessDenied,
    ClientError,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerError,
    UnexpectedAnswer,
    Unreachable,
)
from mnist_client.images import Image
from mnist_client.results import (
    Box,
    Health,
    ModelMetadata,
    Prediction,
    ReadDigit,
    Reading,
    ServerMetadata,
    Step,
    Tensor,
    Timings,
)
from mnist_client.retries import Retries

if TYPE_CHECKING:
    from mnist_client.aio import AsyncClient

__all__ = [
    "TLS",
    "AccessDenied",
    "AsyncClient",
    "Box",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Health",
    "Image",
    "InvalidImage",
    "InvalidRequest",
    "ModelMetadata",
    "NotFound",
    "Overloaded",
    "Prediction",
    "ReadDigit",
    "Reading",
    "Retries",
    "ServerError",
    "ServerMetadata",
    "Step",
    "Tensor",
    "Timings",
    "UnexpectedAnswer",
    "Unreachable",
]


def __getattr__(name: str) -> Any:  # PEP 562
    if name != "AsyncClient":
        raise AttributeError(f"module 'mnist_client' has no attribute '{name}'")
    from mnist_client.aio import AsyncClient

    return AsyncClient
