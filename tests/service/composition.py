"""The operations put together as `service.worker` does it, for tests that need no process."""

from __future__ import annotations

from typing import NamedTuple

from service.core.batching import BatchLimits
from service.core.budget import Budget
from service.http.answering import HttpApp
from service.http.compression import Compression
from service.http.openapi.viewer import Viewer
from service.http.playground.pages import Playground
from service.observe.metrics import Metrics
from service.observe.recorder import RequestRecorder
from service.operations.administration import Administration
from service.operations.digits import Digits
from service.operations.inference import Inference
from service.repository.models import Repository
from service.runtime.shared_memory import SharedRegions
from service.settings import Settings


class Operations(NamedTuple):
    """The three objects that handlers need."""

    inference: Inference
    digits: Digits
    administration: Administration


def operations_of(repository: Repository, default_model: str) -> Operations:
    """All operations on a repository, with default settings."""
    regions = SharedRegions(0, 1 << 20)
    return Operations(
        Inference(repository, default_model, regions),
        Digits(repository, default_model),
        Administration(
            repository=repository, regions=regions, settings=Settings(), limits=BatchLimits()
        ),
    )


def http_app_of(operations: Operations) -> HttpApp:
    """Every HTTP endpoint on these operations, without a socket and without a request log."""
    return HttpApp(
        inference=operations.inference,
        digits=operations.digits,
        administration=operations.administration,
        recorder=RequestRecorder(Metrics(), "none"),
        compression=Compression(1 << 20, 1024, Budget(1 << 25)),
        playground=Playground(),
        viewer=Viewer(),
    )
