"""All operations of a worker on small models, in this process and without a socket."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from service.core.batching import Batcher, BatchLimits
from service.observe.metrics import Metrics
from service.observe.recorder import RequestRecorder
from service.operations.administration import Administration
from service.operations.digits import Digits
from service.operations.inference import Inference
from service.repository.models import Repository
from service.runtime.session import SessionOptions
from service.runtime.shared_memory import SharedRegions
from service.settings import Settings
from tests.conftest import SHIPPED_MODELS
from tests.e2e.onnx_models import publish_identity, publish_scalar, publish_sum
from tests.service.composition import Operations

T = TypeVar("T")

# Every datatype as `identity_*`: `x` [N,2] to `y` [N,2].
IDENTITIES = ("BOOL", "UINT8", "INT32", "UINT64", "FP16", "FP32", "FP64", "BF16", "BYTES")
MODELS = ("mnist", "sum", "scalar", *(f"identity_{name.lower()}" for name in IDENTITIES))
# An object in /dev/shm that requests may register.
MEMORY = "mnist-fuzz"
_MAX_BYTES = 1 << 20


class Application:
    """The operations of one worker and the event loop on which they run."""

    def __init__(self, regions: int = 0) -> None:
        logging.disable(logging.CRITICAL)
        root = Path(tempfile.mkdtemp(prefix="fuzz-models-"))
        shutil.copytree(SHIPPED_MODELS / "mnist", root / "mnist")
        for datatype in IDENTITIES:
            publish_identity(root, datatype)
        publish_sum(root)
        publish_scalar(root)
        if regions:
            (Path("/dev/shm") / MEMORY).write_bytes(bytes(64))
        self._loop = asyncio.new_event_loop()
        # Runs go inline, so that the same inputs always take the same path.
        limits = BatchLimits(inline_budget_s=60.0)
        executor = ThreadPoolExecutor(1)

        async def load() -> Operations:
            repository = Repository(
                root,
                SessionOptions("cpu"),
                make_batcher=lambda name, version, session: Batcher(session, limits, executor),
                executor=executor,
            )
            await repository.refresh()
            memory = SharedRegions(regions, _MAX_BYTES)
            return Operations(
                Inference(repository, "mnist", memory),
                Digits(repository, "mnist", max_image_pixels=128 * 128),
                Administration(
                    repository=repository, regions=memory, settings=Settings(), limits=limits
                ),
            )

        self.operations = self.run(load())
        assert not self.operations.inference.repository.failures
        self.recorder = RequestRecorder(Metrics(), "none")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; one that takes a minute hangs."""
        return self._loop.run_until_complete(asyncio.wait_for(work, 60.0))

    def check_intact(self) -> None:
        """No request has changed what others get, and no work is left behind."""
        assert self.operations.inference.readiness().ready
        assert asyncio.all_tasks(self._loop) == set()
        for served in self.operations.inference.repository.loaded:
            assert served.batcher.queued_rows == 0
