"""The composition root of one worker process.

One asyncio loop holds the HTTP front, the gRPC front, the batchers and the models, so a request
needs no lock and no thread hand-off between its socket and its inference.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NoReturn

import flask

from service.core.batching import Batcher, BatchLimits
from service.core.errors import ProviderUnavailable
from service.grpc.front import GrpcFront
from service.http.answering import HttpApp
from service.http.compression import Compression
from service.http.flask_app import create_app
from service.http.front import HttpFront
from service.observe import metrics
from service.observe.metrics import Metrics, ModelMetrics
from service.observe.recorder import RequestRecorder
from service.operations.administration import Administration
from service.operations.digits import Digits
from service.operations.inference import Inference
from service.repository.models import Repository
from service.runtime.session import ROWS_OF_A_RUN, Session, SessionOptions
from service.runtime.shared_memory import SharedRegions
from service.settings import Settings, load

log = logging.getLogger(__name__)

_METRICS_S = 0.5


class Service:
    """The models, operations and metrics behind both fronts. Belongs to one event loop."""

    def __init__(self, settings: Settings, state_folder: Path | None = None) -> None:
        self.settings = settings
        self.models_changed: Callable[[], None] = lambda: None
        self.metrics = Metrics()
        self.recorder = RequestRecorder(self.metrics, settings.log_requests)
        self.executor = ThreadPoolExecutor(thread_name_prefix="inference")
        limits = BatchLimits(
            max_batch_size=settings.max_batch_size,
            max_queue=settings.max_queue,
            max_delay_s=settings.max_queue_delay / 1000,
            inline_budget_s=settings.inline_budget / 1000,
        )

        def make_batcher(name: str, version: str, session: Session) -> Batcher:
            return Batcher(session, limits, self.executor, ModelMetrics(name, version))

        self.repository = Repository(
            settings.models,
            SessionOptions(
                provider=settings.provider,
                intra_op_threads=settings.intra_op_threads,
                spinning=settings.spinning,
                max_rows=max(settings.max_batch_size, ROWS_OF_A_RUN),
            ),
            make_batcher=make_batcher,
            executor=self.executor,
            keep=settings.versions,
            on_change=self._models_changed,
        )
        regions = SharedRegions(settings.shared_memory_regions, settings.max_request_bytes)
        self.administration = Administration(
            repository=self.repository,
            regions=regions,
            settings=settings,
            limits=limits,
            state_folder=state_folder,
        )
        self.inference = Inference(self.repository, settings.model, regions)
        self.digits = Digits(self.repository, settings.model, settings.max_image_pixels)
        self.http_app = HttpApp(
            inference=self.inference,
            digits=self.digits,
            administration=self.administration,
            recorder=self.recorder,
            compression=Compression(settings.max_request_bytes, settings.compress_min_bytes),
        )

    def _models_changed(self) -> None:
        loaded = {
            (model.name, model.version, model.session.provider, model.sha256)
            for model in self.repository.loaded
        }
        self.metrics.models_loaded(loaded, len(self.repository.failures))
        self.models_changed()

    async def flush_metrics(self) -> None:
        """Flush the metrics every half second, so a killed worker loses no more than that."""
        while True:
            await asyncio.sleep(_METRICS_S)
            metrics.flush()

    async def watch(self) -> None:
        """Look for new versions every `poll_interval` seconds."""
        while True:
            await asyncio.sleep(self.settings.poll_interval)
            await self.administration.shared_state.catch_up()
            try:
                await self.repository.refresh()
            except ProviderUnavailable as error:
                log.error("A new version cannot be served: %s.", error)


class Worker:
    """The RSGI application that Granian runs in each worker process."""

    def __init__(self, settings: Settings, startup_failed: Event, state_folder: Path) -> None:
        self._settings = settings
        self._state_folder = state_folder
        self._startup_failed = startup_failed
        self._tasks: list[asyncio.Task[None]] = []
        self._http = HttpFront(
            max_request_bytes=settings.max_request_bytes,
            body_timeout=settings.body_timeout,
            fast_lane=settings.fast_lane,
        )
        self.__rsgi__ = self._http.__call__  # what Granian calls for every request

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Load the models and open the gRPC port; Granian accepts HTTP requests after this."""
        try:
            loop.run_until_complete(self._start(loop))
        except (ProviderUnavailable, RuntimeError, OSError) as error:
            self._give_up(str(error))
        # Granian's own handler would stop the HTTP front only. This one stops both fronts.
        loop.add_signal_handler(signal.SIGTERM, self._stop_soon)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Finish the accepted gRPC calls; Granian has already finished the HTTP requests."""
        self._begin_stopping(loop)
        loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        metrics.flush()
        self._service.executor.shutdown(wait=False, cancel_futures=True)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._settings
        service = self._service = Service(settings, self._state_folder)
        await service.administration.start()
        # Exclude everything imported so far from garbage collection: scanning it paused the worker
        # for 35 ms, the 99th percentile of latency. Models load later and stay collectable.
        gc.freeze()
        await service.repository.refresh()
        self._http.start(
            service.http_app, create_app(service.http_app, loop, settings.max_request_bytes)
        )
        self._grpc = GrpcFront(
            inference=service.inference,
            digits=service.digits,
            administration=service.administration,
            recorder=service.recorder,
            settings=settings,
        )
        await self._grpc.start()
        service.models_changed = self._grpc.publish_health
        if settings.poll_interval:
            self._watching = loop.create_task(service.watch())
        self._flushing = loop.create_task(service.flush_metrics())
        self._say_ready()

    def _say_ready(self) -> None:
        settings, state = self._settings, self._service.inference.readiness()
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
                "Not ready: %s mnist-train publishes one into %s; the server then loads it. %s.",
                state.reason,
                settings.models.resolve(),
                where,
            )

    def _stop_soon(self) -> None:
        self._begin_stopping(asyncio.get_running_loop())
        os.kill(os.getpid(), signal.SIGINT)  # Granian's own handler, for the HTTP front

    def _begin_stopping(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._service.inference.stopping:
            self._service.inference.stopping = True
            self._service.administration.shared_state.stop()
            self._tasks.append(loop.create_task(self._grpc.stop(self._settings.stop_timeout)))

    def _give_up(self, reason: str) -> NoReturn:
        """Stop the whole server: a respawned worker would fail in the same way."""
        log.error("Cannot start: %s.", reason)
        self._startup_failed.set()
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
        sys.exit(1)


def flask_app() -> flask.Flask:
    """Flask alone, for `flask --app service.worker:flask_app run`: no gRPC, no RSGI front."""
    settings = load([])
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="loop", daemon=True).start()

    async def make() -> Service:
        service = Service(settings)
        await service.repository.refresh()
        return service

    service = asyncio.run_coroutine_threadsafe(make(), loop).result()
    return create_app(service.http_app, loop, settings.max_request_bytes)
