"""The composition root of one worker process.

One asyncio loop holds the HTTP front, the gRPC front, the batchers and the models, so a request
needs no lock and no thread hand-off between its socket and its inference.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flask

from service.access.gate import KeysWatch, gate_of
from service.access.keys import KeysError
from service.access.limits import limits_of
from service.access.origins import Origins
from service.access.tls import NotUsableYet, Tls
from service.banner import banner, width
from service.core.batching import Batcher, BatchLimits
from service.core.budget import SWEEP_S, Budget
from service.core.callers import Callers
from service.core.errors import ProviderUnavailable, ServiceError, is_used_up
from service.core.held_outputs import HeldOutputs, outputs_are_small, row_bytes
from service.core.turns import Turns
from service.grpc.front import GrpcFront
from service.http.answering import HttpApp
from service.http.compression import Compression
from service.http.connections import Connections
from service.http.flask_app import create_app
from service.http.front import HttpFront
from service.http.health_port import HealthPort
from service.http.listener import HttpListener
from service.http.openapi.viewer import Viewer
from service.http.playground.pages import Playground
from service.observe import metrics
from service.observe.logs import is_for_people, only_problems
from service.observe.loop_lag import LagMonitor
from service.observe.metrics import Metrics, ModelMetrics, TritonModelMetrics
from service.observe.recorder import RequestRecorder
from service.observe.traces import Traces
from service.operations.administration import Administration
from service.operations.digits import Digits
from service.operations.inference import Inference
from service.ports import Listeners, accept_no_more
from service.repository.models import Repository
from service.runtime.allocator import Returns, resident, return_memory, trim
from service.runtime.run_thread import RunThread
from service.runtime.session import (
    BUILT_WITHOUT_CUDA,
    ROWS_OF_A_RUN,
    Session,
    SessionOptions,
    cuda_is_built_in,
)
from service.runtime.shared_memory import SharedRegions
from service.runtime.trial import Trials
from service.settings import Settings, SettingsError, is_loopback, load

if TYPE_CHECKING:
    from service.observe.spans import SpanExporter
    from service.pulse import Lifecycle, Pulse

log = logging.getLogger(__name__)

_METRICS_S = 0.5
_BEAT_S = 0.25  # the supervisor replaces a worker that has not beaten for 5 s
# How long a thread keeps Python's global lock when another one asks for it. Python's default of
# 5 ms is what each step of the event loop would wait while a thread converts JSON.
_SWITCH_INTERVAL_S = 0.0005
_REMINDER_S = 60.0  # between two log lines that say that descriptors are used up
_FAREWELL_S = 1.0  # of drain_seconds: HTTP/1 clients are told to leave, with their next answer
_SLACK_S = 2.0  # past stop_timeout; the supervisor kills a worker 5 s past it


class Service:
    """The models, operations and metrics behind both fronts. Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        state_folder: Path | None = None,
        waits: Callable[[bool], None] = lambda is_waiting: None,
    ) -> None:
        """`waits` is that of `Trials`."""
        self.settings = settings
        self.budget = Budget(settings.max_inflight_bytes, count_refusal=Metrics.inflight_refused)
        self.held_outputs = HeldOutputs(self.budget)
        self.models_changed: Callable[[], None] = lambda: None
        self.replace_me: Callable[[], None] = lambda: None
        self.metrics = Metrics()
        traces = None
        if settings.traces:
            traces = Traces(share=settings.traces_sample, per_second=settings.traces_per_second)
        self.recorder = RequestRecorder(self.metrics, settings.log_requests, traces=traces)
        self.limits = limits_of(settings, Metrics.limited)
        self.gate = gate_of(settings, metrics.access_refused, self.limits)
        self.keys: KeysWatch | None = None
        if self.gate is not None and settings.keys_file:
            self.keys = KeysWatch(self.gate, Path(settings.keys_file), state_folder)
        self.executor = ThreadPoolExecutor(thread_name_prefix="load")
        self.overloaded: set[Batcher] = set()  # these refuse most requests, before they are read
        limits = BatchLimits(
            max_batch_size=settings.max_batch_size,
            max_queue=settings.max_queue,
            max_delay_s=settings.max_queue_delay / 1000,
            inline_budget_s=settings.inline_budget / 1000,
            max_queue_s=settings.max_queue_seconds,
            max_run_s=settings.max_run_seconds,
        )

        model_metrics = TritonModelMetrics if settings.triton_metrics else ModelMetrics

        def make_batcher(name: str, version: str, session: Session) -> Batcher:
            within = limits.within(session.batching)
            thread = RunThread(f"run {name} {version}")
            rows = max(within.max_batch_size, session.rows_of_a_run) * session.batchable
            is_small = outputs_are_small(session.outputs, rows)
            return Batcher(
                session,
                within._replace(part_rows=session.rows_of_a_run),
                thread,
                statistics=model_metrics(name, version),
                on_hang=partial(self._hangs, name, version),
                max_split=session.batching.max_split,
                overloaded=self.overloaded,
                between_runs=thread.next_run,
                held=self.held_outputs,
                row_bytes=row_bytes(session.outputs) * session.batchable,
                has_small_runs=is_small,
            )

        self.repository = Repository(
            settings.models,
            SessionOptions(
                provider=settings.provider,
                intra_op_threads=settings.intra_op_threads,
                spinning=settings.spinning,
                max_rows=max(settings.max_batch_size, ROWS_OF_A_RUN),
                max_run_s=settings.max_run_seconds,
            ),
            make_batcher=make_batcher,
            executor=self.executor,
            keep=settings.versions,
            only=settings.models_to_load,
            on_change=self._models_changed,
            trials=Trials(state_folder, waits),
        )
        regions = SharedRegions(settings.shared_memory_regions, settings.max_request_bytes)
        self.administration = Administration(
            repository=self.repository,
            regions=regions,
            settings=settings,
            limits=limits,
            state_folder=state_folder,
        )
        self.inference = Inference(
            self.repository,
            settings.model,
            regions,
            overloaded=self.overloaded,
            max_json_bytes=settings.max_json_bytes,
            server_name=settings.server_name,
            typed_answers=settings.typed_answers,
            limits=self.limits,
            hides_models="read" not in settings.anonymous,
        )
        self.digits = Digits(
            self.repository,
            settings.model,
            max_image_pixels=settings.max_image_pixels,
            max_decoded_pixels=settings.max_decoded_pixels,
            max_decodings=settings.max_decodings,
            max_json_bytes=settings.max_json_bytes,
            max_read_digits=settings.max_read_digits,
            limits=self.limits,
        )
        self.http_app = HttpApp(
            inference=self.inference,
            digits=self.digits,
            administration=self.administration,
            recorder=self.recorder,
            compression=Compression(
                settings.max_request_bytes, settings.compress_min_bytes, self.budget
            ),
            playground=Playground(settings.model, enabled=settings.playground),
            viewer=Viewer(enabled=settings.playground),
        )

    def _models_changed(self) -> None:
        loaded = {
            (model.name, model.version, model.session.provider, model.sha256)
            for model in self.repository.loaded
        }
        self.metrics.models_loaded(loaded, len(self.repository.failures))
        self.models_changed()

    def _hangs(self, name: str, version: str) -> None:
        log.error(
            "A run of model %s version %s was ended after %g s (max_run_seconds), but continues; "
            "this worker has to be replaced.",
            name,
            version,
            self.settings.max_run_seconds,
        )
        self.replace_me()

    async def flush_metrics(self) -> None:
        """Flush the metrics every half second, so a killed worker loses no more than that.

        Also log how many log lines were left out.
        """
        while True:
            await asyncio.sleep(_METRICS_S)
            self.metrics.inflight_bytes(self.budget.in_flight)
            if self.settings.triton_metrics:
                models = self.repository.loaded
                self.metrics.pending({(m.name, m.version): m.batcher.waiting for m in models})
            try:
                metrics.flush()
            except OSError as error:  # without this task, no metric would ever be written again
                log.error("Metrics cannot be written: %s. The next try is in a minute.", error)
                await asyncio.sleep(_REMINDER_S)
            self.recorder.log_left_out()

    async def watch_budget(self) -> None:
        """Refuse the requests that wait too long for room, or hold it without using it.

        After much was in use, once the worker has little to do, return the memory to the system.
        """
        loop = asyncio.get_running_loop()
        returns = Returns(resident(), loop.time())
        while True:
            await asyncio.sleep(SWEEP_S)
            self.budget.sweep()
            if reason := returns.due(self.budget.used, resident(), loop.time()):
                await loop.run_in_executor(None, trim, reason == "large requests")

    async def watch_descriptors(self) -> None:
        """Log that no file descriptor is free, at most once a minute.

        The gRPC front does not say so, and Granian says it for each connection. Whatever else needs
        a descriptor keeps what it has, tries again, and leaves the log to this.
        """
        logging.getLogger("_granian.workers").addFilter(
            lambda record: "TooManyOpenFiles" not in record.getMessage()
        )
        while True:
            await asyncio.sleep(_METRICS_S)
            try:
                os.close(os.open(os.devnull, os.O_RDONLY))
            except OSError as error:
                log.error(
                    "New connections wait: %s; so do new versions of models and changes by "
                    "operators. The limit is %d per process; raise it (ulimit -n), or lower "
                    "max_connections.",
                    error.strerror,
                    resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                )
                await asyncio.sleep(_REMINDER_S)

    async def watch(self) -> None:
        """Every `poll_interval` seconds, catch up with other workers and look for new versions."""
        while True:
            await asyncio.sleep(self.settings.poll_interval)
            try:
                await self.administration.shared_state.catch_up()
                if self.settings.polls:
                    await self.repository.refresh()
            except ProviderUnavailable as error:
                log.error("A new version cannot be served: %s.", error)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):  # `watch_descriptors` logs them
                    log.error("Cannot look for new versions: %s.", error)
            except Exception:  # without this task, no new version would ever be served
                log.exception("Cannot look for new versions; the next poll tries again.")


class Worker:
    """What each worker process runs: `run` with the server's own HTTP/1, or as Granian's RSGI app.

    How a worker stops: only SIGTERM stops it. Before it accepts requests, it exits at once. Later,
    `_stop` runs once, as a task of the event loop: it reports not ready for `drain_seconds`, and
    stops the HTTP front and the gRPC front. Granian stops by a signal, and calls `__rsgi_del__`
    when the accepted HTTP requests are answered.

    How a worker is replaced: its successor listens on the same sockets. It accepts no more, and
    lets its clients leave before it closes their connections: among them are some whose TLS
    handshake is not done or whose first request is on its way.
    """

    def __init__(
        self,
        settings: Settings,
        lifecycle: Lifecycle,
        state_folder: Path,
        pulse: Pulse,
        listeners: Listeners,
        tls: Tls | None = None,
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._tls = tls
        self._state_folder = state_folder
        self._lifecycle = lifecycle
        self._pulse = pulse
        self._accepts_requests = False
        self._stopping: asyncio.Task[None] | None = None
        self._exiting: asyncio.Task[NoReturn] | None = None  # so that it is not collected
        self._health: HealthPort | None = None
        self._spans: SpanExporter | None = None
        self._stop_by = 0.0
        self._callers = Callers(
            settings.trusted_proxies, forwards_certificates=settings.forwarded_certificates
        )
        self._turns = Turns()
        self._http = HttpFront(
            max_request_bytes=settings.max_request_bytes,
            body_timeout=settings.body_timeout,
            fast_lane=settings.fast_lane,
            callers=self._callers,
            origins=origins_of(settings),
            notes_clients=tls is not None and not settings.fast_http,
            reads_ahead=settings.fast_http,
        )
        self._listener: HttpListener | None = None
        if settings.fast_http:
            self._listener = HttpListener(
                self._http, self._http, settings, self._turns, tls, self._http.refuse_early
            )
        self._connections = Connections(
            settings, self._http.in_flight, self._http, self._http.heard
        )
        self.__rsgi__ = self._http.__call__  # what Granian calls for every request

    def run(self, loop: asyncio.AbstractEventLoop) -> NoReturn:
        """Serve until SIGTERM, without Granian; then exit."""
        self.__rsgi_init__(loop)
        loop.run_forever()  # until `_stop`
        loop.run_until_complete(self._exit())
        raise AssertionError("the process has ended")

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Load the models and open the ports; Granian accepts HTTP requests after this."""
        return_memory()
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
            greets = is_for_people(self._settings) and not self._lifecycle.has_greeted.value
            with only_problems(self._settings) if greets else contextlib.nullcontext():
                loop.run_until_complete(self._start(loop))
        except (ProviderUnavailable, RuntimeError, OSError, ServiceError) as error:
            if is_used_up(error):  # the next one may have more: the supervisor starts it
                log.error("Cannot start now: %s.", str(error).rstrip("."))
                os._exit(1)
            self._give_up(str(error).rstrip("."))

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Finish the accepted gRPC calls; Granian has already finished the HTTP requests."""
        loop.run_until_complete(asyncio.wait([self._begin_stop(loop)]))
        loop.run_until_complete(self._exit())

    def _on_sigterm(self, loop: asyncio.AbstractEventLoop, number: int, frame: object) -> None:
        if not self._accepts_requests:
            os._exit(0)
        loop.call_soon_threadsafe(self._begin_stop, loop)

    def _begin_stop(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        if self._stopping is None:
            self._stopping = loop.create_task(self._stop(loop))
        return self._stopping

    async def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        settings, leaving_grpc = self._settings, None
        if self._pulse.is_retired:
            leaving_grpc = loop.create_task(self._grpc.stop(settings.stop_timeout))
            await self._hand_over()
        else:  # it answers probes until it exits
            self._service.inference.stopping = True
            if settings.drain_seconds:
                self._grpc.publish_health()
                farewell_s = min(_FAREWELL_S, settings.drain_seconds)
                await asyncio.sleep(settings.drain_seconds - farewell_s)
                self._leave()
                await asyncio.sleep(farewell_s)
            self._leave()
        self._service.inference.stopping = True
        self._service.administration.shared_state.stop()
        self._stop_by = time.monotonic() + settings.stop_timeout
        loop.call_later(settings.stop_timeout + _SLACK_S, self._cut_off)
        if self._listener is not None:
            leaving_grpc = leaving_grpc or loop.create_task(self._grpc.stop(settings.stop_timeout))
            await asyncio.gather(self._listener.stop(), leaving_grpc)
            loop.stop()
            return
        signal.signal(signal.SIGINT, self._stop_granian)
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        await (leaving_grpc or self._grpc.stop(settings.stop_timeout))

    def _leave(self) -> None:
        """Tell the clients of HTTP to leave."""
        self._http.is_leaving = True
        if self._listener is not None:
            self._listener.retire()

    async def _hand_over(self) -> None:
        """Leave the ports and the clients of HTTP to the successor."""
        self._leave()
        if self._health:
            self._health.stop()
        if self._listener is not None:
            self._listener.accept_no_more()
            await self._listener.wait_until_none(
                self._settings.hand_over_s, lambda: self._lifecycle.stopping.value
            )
            return
        http = self._listeners.get("http_port")
        if http is None:
            return
        # Without a free descriptor, Granian accepts until it closes its own.
        with contextlib.suppress(OSError):
            accept_no_more(http.fileno())
        await self._connections.wait_until_none(
            self._settings.hand_over_s, lambda: self._lifecycle.stopping.value
        )

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Show the supervisor that the event loop runs."""
        self._pulse.beats += 1
        loop.call_later(_BEAT_S, self._beat, loop)

    def _ask_for_successor(self) -> None:
        """Serve on until the supervisor has started a new worker and stops this one."""
        self._pulse.has_stuck_run = True

    def _cut_off(self) -> None:
        log.warning(
            "HTTP requests are still open %g s after the ports closed (stop_timeout and %g s); "
            "they are cut off.",
            self._settings.stop_timeout + _SLACK_S,
            _SLACK_S,
        )
        self._exiting = asyncio.get_running_loop().create_task(self._exit())

    async def _exit(self) -> NoReturn:
        if self._spans is not None:
            # In a thread, and the loop runs on: the collector may not answer, and the supervisor
            # kills a worker whose loop is silent.
            seconds = max(self._stop_by + _SLACK_S / 2 - time.monotonic(), 0.0)
            thread = ThreadPoolExecutor(1, "flush")  # its own: the others may all be busy
            await asyncio.get_running_loop().run_in_executor(thread, self._spans.stop, seconds)
        metrics.flush()
        # Python itself would first wait for the threads of executors, and a model load that one of
        # them has begun cannot be interrupted.
        os._exit(0)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._settings

        def waits(is_waiting: bool) -> None:
            self._pulse.is_waiting = is_waiting

        service = self._service = Service(settings, self._state_folder, waits)
        service.replace_me = self._ask_for_successor
        if service.keys is not None:
            try:
                service.keys.start()
            except KeysError as error:
                # The supervisor has read the file before, but could not keep its keys.
                if self._pulse.has_forerunner:
                    raise RuntimeError(str(error).rstrip(".")) from None  # it has the old keys
                log.error("%s This worker accepts no key until it is corrected.", error)
        metrics.share(self._lifecycle.replaced)
        if service.recorder.traces is not None:
            # It takes 12 MB, and its thread would not survive a fork.
            from service.observe.spans import SpanExporter

            self._spans = SpanExporter(service.recorder.traces)
        await service.administration.start()
        explains_cpu = settings.provider == "auto" and not cuda_is_built_in()
        if explains_cpu and self._lifecycle.speaker.acquire(block=False):
            log.info("Models run on the CPU: %s.", BUILT_WITHOUT_CUDA)
        # Exclude everything imported so far from garbage collection: scanning it paused the worker
        # for 35 ms, the 99th percentile of latency. Models load later and stay collectable.
        gc.freeze()
        # Of 700 new objects, Python's default, most belong to the requests in flight: a collection
        # would visit them for nothing, 4 % of the time of a gRPC call.
        gc.set_threshold(10_000, 5, 5)
        await service.repository.refresh()
        state = service.inference.readiness()
        if self._pulse.has_forerunner and not state.ready:
            raise RuntimeError(state.reason.rstrip("."))  # the old worker may serve
        self._http.start(
            service.http_app,
            create_app(service.http_app, loop, settings.max_request_bytes, service.gate),
            service.budget,
            service.gate,
        )
        self._grpc = GrpcFront(
            inference=service.inference,
            digits=service.digits,
            administration=service.administration,
            recorder=service.recorder,
            settings=settings,
            budget=service.budget,
            callers=self._callers,
            turns=self._turns,
            gate=service.gate,
            tls=self._tls,
        )
        self._accepts_requests = True
        self._pulse.has_served = True  # from here on, a request may end this process
        await self._grpc.start(self._listeners.get("grpc_port"))
        if self._listener is not None:
            self._listener.start(service.budget, self._listeners.get("http_port"))
        if settings.health_port:
            self._health = HealthPort(
                service.http_app,
                settings.host,
                settings.health_port,
                service.gate,
                origins_of(settings),
            )
            self._health.start(
                (settings.own_host, settings.http_port), self._listeners.get("health_port")
            )
        service.models_changed = self._grpc.publish_health
        self._follow(service, loop)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._lag = LagMonitor(service.metrics.loop_lag)
        # Not at once: the first beat shows that the HTTP port is open too.
        loop.call_later(_BEAT_S, self._beat, loop)
        self._say_ready()

    def _follow(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        """Watch from now on what changes: files, connections, and what this process has left."""
        if self._tls is not None:
            self._tls.follow(on_problem=_say_problem)
        if service.keys is not None:
            service.keys.following = loop.create_task(service.keys.follow())
        self._watching = loop.create_task(service.watch())
        self._flushing = loop.create_task(service.flush_metrics())
        self._watching_budget = loop.create_task(service.watch_budget())
        if self._listener is None:
            self._watching_connections = loop.create_task(self._connections.watch())
        self._watching_descriptors = loop.create_task(service.watch_descriptors())

    def _say_ready(self) -> None:
        settings, state = self._settings, self._service.inference.readiness()
        where = f"HTTP on port {settings.http_port}, gRPC on port {settings.grpc_port}"
        if settings.has_tls:
            where = where.replace("HTTP", "HTTPS").replace("gRPC", "gRPC with TLS")
        if settings.health_port:
            where += f", health on port {settings.health_port}"
        if state.ready:
            repository = self._service.repository
            names = [settings.model] if repository.versions(settings.model) else []
            names = names or list(dict.fromkeys(model.name for model in repository.loaded))
            models = [repository.get(name) for name in names]
            log.info(
                "Serving %s: %s of %s.",
                ", ".join(
                    f"{model.name} version {model.version} on {model.session.provider}"
                    for model in models
                )
                or "no model yet",
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
        shared = self._lifecycle
        is_last = is_for_people(settings) and not shared.starting.acquire(block=False)
        if is_last and shared.host.acquire(block=False):
            newest = {model.name: model for model in reversed(self._service.repository.loaded)}
            models = sorted(newest.values(), key=lambda model: model.name != settings.model)
            for line in banner(settings, models, width()):
                log.info("%s", line, extra={"is_bare": True})
            shared.has_greeted.value = True

    def _give_up(self, reason: str) -> NoReturn:
        """Stop the whole server: a respawned worker would fail in the same way.

        If this worker was to replace one that serves, it stops alone.
        """
        log.error("Cannot start: %s.", reason)
        if self._pulse.has_forerunner:
            os._exit(1)
        self._lifecycle.startup_failed.set()
        os.kill(os.getppid(), signal.SIGTERM)
        # Not until SIGTERM comes: its handler may wait for the event loop, which no longer runs.
        while not self._lifecycle.stopping.value:
            time.sleep(0.05)
        os._exit(1)


def _say_problem(error: SettingsError) -> None:
    if isinstance(error, NotUsableYet):  # the supervisor says what is wrong with the files
        log.error("This worker continues with the certificate that it has: %s", error)


def origins_of(settings: Settings) -> Origins:
    """What the settings say of web pages and of the server's names.

    Names are checked where anyone may call because only this machine can.
    """
    checks_hosts = is_loopback(settings.host) and bool(settings.anonymous)
    return Origins(settings.allowed_origins, settings.allowed_hosts, checks_hosts=checks_hosts)


def flask_app() -> flask.Flask:
    """Flask alone, for `flask --app service.worker:flask_app run`: no gRPC, no RSGI front."""
    settings = load([])
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="loop", daemon=True).start()

    async def make() -> Service:
        service = Service(settings)
        if service.keys is not None:
            service.keys.start()
            service.keys.following = asyncio.ensure_future(service.keys.follow())
        await service.repository.refresh()
        return service

    service = asyncio.run_coroutine_threadsafe(make(), loop).result()
    return create_app(
        service.http_app,
        loop,
        settings.max_request_bytes,
        service.gate,
        # Its answers have no headers of CORS: no other origin is of use.
        origins_of(dataclasses.replace(settings, allowed_origins=())),
    )
