"""The composition root of one worker process: everything is made and joined here.

One asyncio loop holds the HTTP front, the gRPC front, the batchers and the models, so that a
request needs no lock and no hand-off between its socket and its inference.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flask

from service.core.batching import Batcher, BatchLimits
from service.grpc.front import GrpcFront
from service.http.answering import Answerer
from service.http.compression import Compression
from service.http.flask_app import create_app
from service.http.front import HttpFront
from service.observe import metrics
from service.observe.metrics import Metrics
from service.observe.recorder import RequestRecorder
from service.operations.administration import Administration
from service.operations.inference import Operations
from service.repository.models import Repository
from service.runtime.session import (
    BUILT_WITHOUT_CUDA,
    ROWS_OF_A_RUN,
    ProviderUnavailable,
    Session,
    SessionOptions,
    cuda_is_built_in,
)
from service.runtime.shared_memory import Regions
from service.settings import Settings, load

if TYPE_CHECKING:
    from granian.rsgi import HTTPProtocol, Scope

    from service.supervisor import Lifecycle

log = logging.getLogger(__name__)

_FLASK_THREADS = 8
_METRICS_S = 0.5
_SLACK_S = 2.0  # past stop_timeout; the supervisor kills a worker 5 s past it


class Service:
    """What both fronts stand on: models, operations, metrics. Belongs to one event loop."""

    def __init__(self, settings: Settings, control_folder: Path | None = None) -> None:
        self.settings = settings
        self.models_changed: Callable[[], None] = lambda: None
        self.metrics = Metrics()
        self.recorder = RequestRecorder(self.metrics, settings.log_requests)
        self.executor = ThreadPoolExecutor(thread_name_prefix="inference")
        self._limits = BatchLimits(
            settings.max_batch_size,
            settings.max_queue,
            settings.max_queue_delay / 1000,
            settings.inline_budget / 1000,
        )
        self.repository = Repository(
            settings.models,
            SessionOptions(
                settings.provider,
                settings.intra_op_threads,
                settings.spinning,
                max(settings.max_batch_size, ROWS_OF_A_RUN),
            ),
            self._make_batcher,
            self.executor,
            settings.versions,
            self._models_changed,
        )
        regions = Regions(settings.shared_memory_regions, settings.max_request_bytes)
        self.administration = Administration(
            self.repository, regions, settings, self._limits, control_folder
        )
        self.operations = Operations(
            self.repository,
            settings.model,
            regions,
            self.administration,
            settings.max_image_pixels,
        )
        self.answerer = Answerer(
            self.operations,
            self.recorder,
            Compression(settings.max_request_bytes, settings.compress_min_bytes),
        )

    def _make_batcher(self, name: str, version: str, session: Session) -> Batcher:
        images, seconds, failures = self.metrics.batch_observer(name, version)

        def on_batch(rows: int, elapsed: float) -> None:
            images.observe(rows)
            seconds.observe(elapsed)

        def on_failure(error: Exception) -> None:
            failures.inc()
            log.error("Model %s version %s failed on a request: %s", name, version, error)

        return Batcher(session, self._limits, self.executor, on_batch, on_failure)

    def _models_changed(self) -> None:
        loaded = {
            (model.name, model.version, model.session.provider, model.sha256)
            for model in self.repository.loaded
        }
        self.metrics.models_loaded(loaded, len(self.repository.failures))
        self.models_changed()

    async def flush_metrics(self) -> None:
        """Write the metrics down, for ever: a worker that is killed loses the last of them only."""
        while True:
            await asyncio.sleep(_METRICS_S)
            metrics.flush()

    async def watch(self) -> None:
        """Look for new versions, for ever."""
        while True:
            await asyncio.sleep(self.settings.poll_interval)
            await self.administration.control.catch_up()
            try:
                await self.repository.refresh()
            except ProviderUnavailable as error:
                log.error("A new version cannot be served: %s.", error)


class Worker:
    """The RSGI application that Granian runs in each worker process.

    How a worker stops: only SIGTERM stops it. Before it accepts requests, it exits at once. Later,
    `_begin_stop` runs once, in the event loop: it stops the gRPC front and makes Granian stop the
    HTTP front. Granian calls `__rsgi_del__` when the accepted HTTP requests are answered.
    """

    def __init__(self, settings: Settings, lifecycle: Lifecycle, control_folder: Path) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._control_folder = control_folder
        self._accepts_requests = False
        self._stopping: asyncio.Task[None] | None = None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Load the models and open the gRPC port, before HTTP requests arrive."""
        # Granian has just installed one handler for both signals. A second call of it blocks the
        # process if the first has not been taken up, so it must run once: from `_begin_stop`.
        self._stop_granian = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Not `add_signal_handler` alone: uvloop loses a signal that arrives while the loop does
        # not run, as between this method and the serving of requests.
        loop.add_signal_handler(signal.SIGTERM, lambda: None)
        signal.signal(signal.SIGTERM, partial(self._on_sigterm, loop))
        if self._lifecycle.stopping.value:  # its SIGTERM may have gone to Granian's handler
            os._exit(0)
        try:
            loop.run_until_complete(self._start(loop))
        except (ProviderUnavailable, RuntimeError, OSError) as error:
            self._give_up(str(error))

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer one HTTP request."""
        await self._http(scope, protocol)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Finish the accepted gRPC calls; Granian has already finished the HTTP requests."""
        loop.run_until_complete(asyncio.wait([self._begin_stop(loop)]))
        self._exit()

    def _on_sigterm(self, loop: asyncio.AbstractEventLoop, number: int, frame: object) -> None:
        if not self._accepts_requests:
            os._exit(0)
        loop.call_soon_threadsafe(self._begin_stop, loop)

    def _begin_stop(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        if self._stopping is not None:
            return self._stopping
        self._service.operations.stopping = True
        self._service.administration.control.stop()
        timeout = self._settings.stop_timeout
        self._stopping = loop.create_task(self._grpc.stop(timeout))
        loop.call_later(timeout + _SLACK_S, self._cut_off)
        signal.signal(signal.SIGINT, self._stop_granian)
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return self._stopping

    def _cut_off(self) -> None:
        log.warning(
            "HTTP requests are unfinished %g s after SIGTERM (stop_timeout); they are cut off.",
            self._settings.stop_timeout,
        )
        self._exit()

    def _exit(self) -> NoReturn:
        # Python itself would first wait for the threads of executors, and a model load that one of
        # them has begun cannot be interrupted.
        metrics.flush()
        os._exit(0)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._settings
        service = self._service = Service(settings, self._control_folder)
        await service.administration.start()
        explains_cpu = settings.provider == "auto" and not cuda_is_built_in()
        if explains_cpu and self._lifecycle.speaker.acquire(block=False):
            log.info("Models run on the CPU: %s.", BUILT_WITHOUT_CUDA)
        # Modules and their like stay. A full collection that looks at them stops all for 35 ms,
        # which was the 99th percentile of latency. Models come later: they may go again.
        gc.freeze()
        await service.repository.refresh()
        self._http = HttpFront(
            service.answerer,
            create_app(service.answerer, loop, settings.max_request_bytes),
            ThreadPoolExecutor(_FLASK_THREADS, "flask"),
            max_request_bytes=settings.max_request_bytes,
            body_timeout=settings.body_timeout,
            fast_lane=settings.fast_lane,
        )
        self._grpc = GrpcFront(service.operations, service.recorder, settings)
        self._accepts_requests = True
        await self._grpc.start()
        service.models_changed = self._grpc.publish_health
        if settings.poll_interval:
            self._watching = loop.create_task(service.watch())
        self._flushing = loop.create_task(service.flush_metrics())
        self._say_ready()

    def _say_ready(self) -> None:
        settings, state = self._settings, self._service.operations.readiness()
        where = f"HTTP on port {settings.http_port}, gRPC on port {settings.grpc_port}"
        if state.ready:
            model = self._service.repository.get(settings.model)
            log.info(
                "Serving %s version %s on %s: %s of %s.",
                model.name,
                model.version,
                model.session.provider,
                where,
                settings.host,
            )
        else:
            log.warning(
                "Not ready: %s mnist-train publishes one into %s; it is taken up by itself. %s.",
                state.reason,
                settings.models.resolve(),
                where,
            )

    def _give_up(self, reason: str) -> NoReturn:
        """Stop the whole server: another worker would fail in the same way."""
        log.error("Cannot start: %s.", reason)
        self._lifecycle.startup_failed.set()
        os.kill(os.getppid(), signal.SIGTERM)
        while True:  # until SIGTERM; signal.pause() misses one that comes just before it
            time.sleep(0.05)


def flask_app() -> flask.Flask:
    """Flask alone, for `flask --app service.worker:flask_app run`: no gRPC, no fast lane."""
    settings = load([])
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="loop", daemon=True).start()

    async def make() -> Service:
        service = Service(settings)
        await service.repository.refresh()
        return service

    service = asyncio.run_coroutine_threadsafe(make(), loop).result()
    return create_app(service.answerer, loop, settings.max_request_bytes)
