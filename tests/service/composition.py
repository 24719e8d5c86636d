"""Operations put together as `service.worker` does it, for tests that need no process."""

from __future__ import annotations

from service.core.batching import BatchLimits
from service.operations.administration import Administration
from service.operations.inference import Operations
from service.repository.models import Repository
from service.runtime.shared_memory import SharedRegions
from service.settings import Settings


def operations_of(repository: Repository, default_model: str) -> Operations:
    """All operations on a repository, with default settings."""
    regions = SharedRegions(0, 1 << 20)
    administration = Administration(repository, regions, Settings(), BatchLimits())
    return Operations(repository, default_model, regions, administration)
