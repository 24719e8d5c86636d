"""The supervisor: checks the settings, starts the worker processes, and stops them.

How a stop works: Ctrl-C at a terminal sends SIGINT to the supervisor and to its workers at once,
and service managers send SIGTERM to the supervisor or to all of them, sometimes after a SIGINT.
Only the supervisor decides. Its handler sets a flag, once, and is safe at any moment; the main
thread then sends SIGTERM to each worker and waits for it. A worker ignores SIGINT. It exits at once
on SIGTERM while it starts, and finishes its accepted requests afterwards (service/worker.py).

How a worker is replaced: each worker counts the beats of its event loop in memory that it shares
with the supervisor. A thread here kills a worker that has not beaten for 5 s, or that has used no
CPU time for 60 s before its first beat, and the main thread replaces every worker that has ended:
at once, unless it lived for a short time only; then later each time, since the next might end as
soon. A request that crashes its worker never ends the server. It ends when no worker serves and
several in one place have ended before they did.
SIGHUP replaces all of them, one after another: the old one stops when the new one serves. So does a
worker that asks for it, because a run of a model cannot be ended. The new one listens on the same
sockets (service/ports.py), so no connection is lost between the two. If the supervisor dies, the
kernel kills the workers.

This process imports no ONNX Runtime, no gRPC and no Flask: it only checks what it can before
workers start, and then supervises them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import fcntl
import logging
import logging.config
import math
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

from granian.constants import Interfaces, Loops
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.net import SocketHolder
from granian.server import MPServer
from granian.server.mp import WorkerProcess

from service import SERVER_NAME, __version__
from service.access.keys import SCOPES, Key, KeysError, KeysFile, SharedKeys
from service.access.limits import small_bursts
from service.access.tls import SOON_DAYS, Tls
from service.observe.logs import is_for_people, logging_config
from service.ports import Listeners, reserve
from service.pulse import Lifecycle, Pulse, Replacements, WatchedProcess
from service.repository.shipped import shipped_models
from service.runtime.packages import conflicting_packages
from service.settings import Settings, SettingsError, is_loopback

log = logging.getLogger(__name__)

# Linux limits the path of a Unix socket to 107 bytes; `operations.replication` names its own
# after process ids.
LONGEST_SOCKET_FOLDER = 90
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SLACK_S = 5  # past stop_timeout; a worker cuts its requests off earlier, and exits
_TICK_S = 0.5  # between two looks at the workers
_LATE_TICK_S = 1.5  # after a longer gap, the supervisor itself has not run
# A worker that lived for less than this is replaced after a pause, which doubles with each such
# worker in its place.
_SHORT_LIFE_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_MOST_FAILED_STARTS = 6  # of workers in one place that end before they serve, while none serves
_OWN_DESCRIPTORS = 100  # of a worker: files, sockets and pipes beside clients' connections
_LONGEST_START_S = 120.0  # how long a roll waits for a new worker before it stops the old one
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# What Granian reads of a connection before the worker asks for it, in bytes: of HTTP/1 the headers
# and what came with them; of HTTP/2 the headers, and the data of all calls that are not read yet.
_CONNECTION_BYTES = 64 * 1024
_CONNECTION_WINDOW = 128 * 1024
FOLDER_PREFIX = "mnist-serve-"


class Wakeup(threading.Event):
    """Wakes the supervisor's main thread: a set() ends the current wait() or the next one.

    It replaces the base class, whose set() waits for a lock that the interrupted main thread may
    itself hold. A main thread that waits on any lock also slept through the second of two signals,
    in about 1 of 75 stops. Here it reads a pipe, to which the interpreter writes for every signal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)

    def listen_to_signals(self) -> None:
        """End a wait() for every signal that has a Python handler."""
        signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: wait() will end anyway
            os.write(self._writes, b"!")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a set() or a signal. Granian passes no timeout."""
        os.read(self._reads, 4096)
        return True

    def clear(self) -> None:
        """Nothing to do. In the base class, a signal just before this call would be forgotten."""


class Supervisor(MPServer):
    """Granian's supervisor, with a stop that no second signal and no busy machine disturbs."""

    wrks: list[WatchedProcess]  # type: ignore[assignment]

    def __init__(self, settings: Settings, tls: Tls | None = None) -> None:
        # Workers are forked, since a forked worker has the handler below from its first
        # instruction on; a spawned one would have none for as long as Python starts.
        if sys.platform == "linux":
            multiprocessing.set_start_method("fork", force=True)
        self._kill_after_s = int(settings.drain_seconds + settings.stop_timeout) + _SLACK_S
        super().__init__(
            "service.worker:Worker",
            settings.host,
            settings.http_port,
            interface=Interfaces.RSGI,
            workers=settings.workers,
            loop=Loops.uvloop if sys.platform != "win32" else Loops.auto,
            websockets=False,
            backpressure=settings.max_connections,
            http1_settings=HTTP1Settings(
                header_read_timeout=int(settings.header_timeout * 1000),
                max_buffer_size=_CONNECTION_BYTES,
            ),
            http2_settings=HTTP2Settings(
                # Unread bytes of all calls of a connection; the same for one call.
                initial_connection_window_size=_CONNECTION_WINDOW,
                initial_stream_window_size=_CONNECTION_WINDOW,
                max_headers_size=_CONNECTION_BYTES,
                max_send_buffer_size=_CONNECTION_BYTES,
                keep_alive_interval=int(settings.keepalive_interval * 1000) or None,
                keep_alive_timeout=math.ceil(settings.keepalive_timeout),
            ),
            log_level=LogLevels.debug if settings.log_level == "debug" else LogLevels.warning,
            log_dictconfig=logging_config(settings),
            respawn_failed_workers=True,
            workers_kill_timeout=self._kill_after_s,
        )
        self._pid = os.getpid()
        self._lifecycle = Lifecycle(
            supervisor=self._pid,
            startup_failed=multiprocessing.Event(),
            stopping=multiprocessing.RawValue(ctypes.c_bool, False),
            speaker=multiprocessing.Lock(),
            starting=multiprocessing.Semaphore(settings.workers - 1),
            host=multiprocessing.Lock(),
            has_greeted=multiprocessing.RawValue(ctypes.c_bool, False),
            replaced=multiprocessing.RawValue(Replacements),
        )
        self._retired: list[WatchedProcess] = []
        # By the index of the workers, in a row.
        self._short_lives: dict[int, int] = {}
        self._failed_starts: dict[int, int] = {}
        self._opened: list[Listeners] = []
        self.settings = settings
        self._tls = tls
        self.main_loop_interrupt: Wakeup = Wakeup()

    def _drop_shared_socket(self) -> None:
        """At a stop: with the workers, the queues of their sockets end."""
        super()._drop_shared_socket()  # type: ignore[no-untyped-call]
        for listeners in self._opened:
            listeners.close()

    def run(self, state_folder: Path) -> int:
        """Serve until a signal. Returns the exit status."""
        load_worker = partial(_load_worker, self.settings, self._lifecycle, state_folder, self._tls)
        threading.Thread(target=self._watch_workers, name="watch", daemon=True).start()
        if self._tls:
            self._follow_certificate(self._tls)
        try:
            if not self.interrupt_signal:
                self.serve(
                    _run_worker if self.settings.fast_http else None,
                    target_loader=load_worker,
                    wrap_loader=False,
                )
        except SystemExit:
            # Granian raises it if a worker ended by itself, as by a SIGTERM to the whole group.
            if not self.interrupt_signal:
                raise
        return 1 if self._lifecycle.startup_failed.is_set() else 0

    def signal_handler_interrupt(self, number: int, *_: object) -> None:
        """Stop; in a forked worker that has no handlers of its own yet, exit at once."""
        if os.getpid() != self._pid:
            if number == signal.SIGTERM:
                os._exit(0)
        else:
            self.interrupt_signal = True

    def _spawn_worker(  # type: ignore[override]
        self,
        idx: int,
        target: Any,
        callback_loader: Any,
        *,
        replaces: WatchedProcess | None = None,
    ) -> WatchedProcess:
        if self._tls:
            self.ssl_ctx = self._tls.for_granian()
        pulse = multiprocessing.RawValue(Pulse)
        listeners = self._listeners(replaces)
        if sys.platform == "linux":
            # In place of the description of a socket that each worker would open itself.
            http = listeners.get("http_port")
            holder: Any = None
            if http is not None:
                holder = SocketHolder(http.fileno(), False, self.backlog)  # type: ignore[call-arg]
            self._shd = holder
        load = partial(self._in_worker, callback_loader, pulse, listeners)
        worker = super()._spawn_worker(idx, target, load)
        return WatchedProcess(worker, pulse, listeners)

    def _listeners(self, replaces: WatchedProcess | None) -> Listeners:
        """The sockets of the worker that a new one replaces, or else new ones."""
        listeners = Listeners({})
        try:
            if replaces is None or replaces.has_ended:
                listeners = Listeners.bound(self.settings)
            else:
                listeners = replaces.listeners.duplicate()
        except OSError:
            pass  # the worker opens the port itself, or says why it cannot
        self._opened = [each for each in self._opened if not each.is_closed] + [listeners]
        return listeners

    def _in_worker(self, load: Any, pulse: Pulse, listeners: Listeners) -> Any:
        """Close what a forked worker inherits of the others' sockets, then load it."""
        for others in self._opened:
            if others is not listeners:
                others.close()
        return load(pulse, listeners)

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        """Replace workers that have ended, and all of them after SIGHUP, until a signal to stop."""
        while True:
            self.main_loop_interrupt.wait()
            if self.interrupt_signal:
                return
            for worker in self.wrks:
                if worker.has_ended and worker.replace_at is None:
                    worker.replace_at = time.monotonic() + self._pause_after(worker)
            if self._is_crash_loop():
                return
            now = time.monotonic()
            ended = [worker for worker in self.wrks if now >= (worker.replace_at or now + 1)]
            if self.reload_signal and not ended:
                self.reload_signal = False
                log.info("All workers are replaced, one after another.")
                ended = list(self.wrks)
            for worker in self.wrks:
                if worker.pulse.has_stuck_run and worker not in ended:
                    log.error(
                        "Worker-%d has a run of a model that cannot be ended; a new worker "
                        "replaces it.",
                        worker.idx + 1,
                    )
                    self._lifecycle.replaced.stuck_run += 1
                    ended.append(worker)
            for worker in ended:
                if self.interrupt_signal or not self._replace(worker, spawn_target, target_loader):
                    break
            if self.interrupt_signal:
                return
            if self.reload_signal:
                self.main_loop_interrupt.set()

    def _is_crash_loop(self) -> bool:
        for index, count in self._failed_starts.items():
            if count >= _MOST_FAILED_STARTS:
                log.error(
                    "Worker crash loop: worker-%d ended %d times before it served, and no worker "
                    "serves; the log says above how they ended.",
                    index + 1,
                    count,
                )
                self.interrupt_children.append(index)  # exit status 1
                return True
        return False

    def _pause_after(self, worker: WatchedProcess) -> float:
        """Seconds until a worker that has ended is replaced. Counts its end."""
        if worker.pulse.has_served or self._serves():
            self._failed_starts.clear()
        elif not worker.is_silent:
            self._failed_starts[worker.idx] = self._failed_starts.get(worker.idx, 0) + 1
        if worker.pulse.has_served and time.monotonic() - worker.birth >= _SHORT_LIFE_S:
            self._short_lives.pop(worker.idx, None)
            return 0.0
        lives = self._short_lives[worker.idx] = self._short_lives.get(worker.idx, 0) + 1
        if lives == 1:
            return 0.0
        return min(_FIRST_PAUSE_S * 2.0 ** min(lives - 2, 10), _LONGEST_PAUSE_S)

    def _serves(self) -> bool:
        return any(each.pulse.has_served and not each.has_ended for each in self.wrks)

    def _replace(self, old: WatchedProcess, spawn_target: Any, target_loader: Any) -> bool:
        """Start a new worker in the place of an old one, which stops when the new one serves.

        If the new one cannot be started or ends before it serves, the old one stays, and the result
        is False.
        """
        has_ended = old.has_ended
        new = None
        try:
            new = self._spawn_worker(old.idx, spawn_target, target_loader, replaces=old)
            new.pulse.has_forerunner = not has_ended
            new.start()
        except OSError as error:  # no descriptor, memory or process is left
            log.error("Worker-%d cannot be replaced now: %s.", old.idx + 1, error.strerror)
            if new is not None:  # or the kernel would give it connections
                new.close_listeners()
            old.pulse.has_stuck_run = False
            if has_ended:
                old.replace_at = time.monotonic() + _LONGEST_PAUSE_S
            return False
        place = self.wrks.index(old)
        self.wrks[place] = new
        if has_ended:
            if old.is_silent:
                self._lifecycle.replaced.silent += 1
            else:
                self._lifecycle.replaced.ended += 1
            return True
        self._retired.append(old)
        end = time.monotonic() + _LONGEST_START_S
        while not (new.pulse.beats or new.has_ended or old.has_ended or self.interrupt_signal):
            if time.monotonic() > end:
                log.warning(
                    "Worker-%d does not serve after %d s; the old one stops all the same.",
                    new.idx + 1,
                    _LONGEST_START_S,
                )
                break
            time.sleep(0.02)
        if new.has_ended and not old.has_ended and not self.interrupt_signal:
            log.error(
                "The new worker-%d ended before it served; the old one continues. Correct what the "
                "log says above, then send SIGHUP again.",
                new.idx + 1,
            )
            self.wrks[place] = old
            self._retired.remove(old)
            old.pulse.has_stuck_run = False  # until its next such run
            return False
        hand_over_s = self.settings.hand_over_s
        old.retire(self._kill_after_s + hand_over_s)
        # So that at most one worker more than usual takes memory. Not while one is missing.
        end = time.monotonic() + hand_over_s
        while not (old.has_ended or self.interrupt_signal or time.monotonic() > end):
            if any(worker.has_ended for worker in self.wrks):
                break
            time.sleep(0.02)
        return True

    def _watch_workers(self) -> None:
        """Kill workers that hang, and retired ones that do not stop in time. Runs in a thread."""
        last = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            now = time.monotonic()
            # A machine that was suspended or very busy silences every loop, and this one too.
            has_run, last = now - last < _LATE_TICK_S, now
            for worker in [*self.wrks, *self._retired]:
                if worker.has_ended or worker.is_silent:
                    if worker in self._retired:
                        self._retired.remove(worker)
                    elif worker.replace_at is not None and now >= worker.replace_at:
                        self.main_loop_interrupt.set()
                elif not has_run:
                    worker.forget_silence()
                elif worker.hangs(now):
                    worker.is_silent = True
                    log.error(
                        "Worker-%d did not respond for %d s and is killed%s.",
                        worker.idx + 1,
                        worker.patience_s,
                        "" if worker.interrupt_by_parent else "; a new worker replaces it",
                    )
                    worker.inner.kill()
                elif worker.pulse.has_stuck_run and worker.kill_at == float("inf"):
                    self.main_loop_interrupt.set()
                elif now > worker.kill_at:
                    worker.is_silent = True
                    log.warning(
                        "Killing worker-%d, which was replaced: it did not stop within %d s.",
                        worker.idx + 1,
                        self._kill_after_s + self.settings.hand_over_s,
                    )
                    worker.inner.kill()

    def _follow_certificate(self, tls: Tls) -> None:
        """Say from now on what becomes of new files of TLS, and replace workers of Granian.

        The server's own fronts and grpcio take them over as they are.
        """

        def say_problem(error: SettingsError) -> None:
            log.error("TLS continues with the certificate that it has: %s", error)

        def take_over() -> None:
            say_certificate(tls)
            if not self.settings.fast_http:
                self.reload_signal = True
                self.main_loop_interrupt.set()

        tls.follow(take_over, say_problem)

    def _stop_workers(self) -> None:
        """Stop all workers; kill those that are too slow.

        Granian asks `join` and `is_alive`, and its watcher threads wait for the same processes.
        When a watcher has reaped a worker but has not run since, both report a live worker, and
        Granian kills a process that no longer exists. The sentinel of a process has no such gap.
        """
        workers = [*self.wrks, *self._retired]
        for worker in workers:
            worker.interrupt_by_parent = True  # before any of them exits because of `stopping`
        self._lifecycle.stopping.value = True
        for worker in workers:
            worker.terminate()  # type: ignore[no-untyped-call]
        alive = {worker.inner.sentinel: worker for worker in workers}
        end = time.monotonic() + self._kill_after_s
        while alive and (left_s := end - time.monotonic()) > 0:
            for sentinel in connection.wait(list(alive), left_s):
                del alive[sentinel]
        for worker in alive.values():
            log.warning(
                "Killing worker-%d: it did not stop within %d s.",
                worker.idx + 1,
                self._kill_after_s,
            )
            worker.kill()  # type: ignore[no-untyped-call]
        for worker in workers:
            worker.join()  # type: ignore[no-untyped-call]
        self.wrks.clear()


def supervise(settings: Settings) -> int:
    """Check the settings and serve. Returns the exit status; raises SettingsError."""
    tls = Tls(settings) if settings.has_tls else None
    keys = _read_keys(settings)
    reserved = _preflight(settings)  # kept for the life of the server; workers inherit them
    logging.config.dictConfig(logging_config(settings))
    if settings.models == shipped_models() and not Path("models").exists():
        log.info(
            "There is no folder ./models: serving the model that comes with the package. "
            "mnist-train publishes into ./models; restart mnist-serve to serve from there."
        )
    _warn_of_access(settings)
    if tls:
        say_certificate(tls)
    if is_for_people(settings):  # the rest of the banner follows when the models are loaded
        title = f"  {SERVER_NAME} {__version__} loads the models in {settings.models}"
        log.info("%s", title, extra={"is_bare": True})
    supervisor = Supervisor(_within_descriptors(settings), tls)
    # From here on a stop has something to clean up.
    supervisor.main_loop_interrupt.listen_to_signals()
    for number in _SIGNALS:
        signal.signal(number, supervisor.signal_handler_interrupt)
    with _own_folder() as folder:
        # The workers share their metrics, and the state that operators set.
        metrics, state = Path(folder, "metrics"), Path(folder, "state")
        if len(str(state)) > LONGEST_SOCKET_FOLDER:
            raise SettingsError(
                f"{state} is too long for the path of a Unix socket; set TMPDIR to a shorter "
                "folder."
            )
        metrics.mkdir()
        state.mkdir()
        if settings.keys_file:
            SharedKeys(state).write(keys)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        status = supervisor.run(state)
        # A late second signal must not change the status: when Python ends, it gives each signal
        # its default action back, except for those that are ignored.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    for reservation in reserved:
        reservation.close()
    return status


def _warn_of_access(settings: Settings) -> None:
    """Log who may call that perhaps should not, and more often."""
    for excess in small_bursts(settings):
        log.warning("%s", excess)
    if settings.keys_file and (exposure := KeysFile(Path(settings.keys_file)).exposure):
        log.warning("%s", exposure)
    if settings.is_open_to_others:
        remedy = "Allow it to holders of keys only (--anonymous-scopes none)"
        if not settings.keys_file:
            remedy = (
                "Give out keys: mnist-keys add NAME --file FILE, then start with --keys-file FILE"
            )
        log.warning(
            "Everyone who reaches %s may call this server without a key (%s). %s; or listen on "
            "this machine only, without proxies (--host 127.0.0.1).",
            settings.host if not is_loopback(settings.host) else "its trusted_proxies",
            ", ".join(scope for scope in SCOPES if scope in settings.anonymous),
            remedy,
        )


def say_certificate(tls: Tls) -> None:
    """Log which certificate is served from now on."""
    if tls.days_left < SOON_DAYS:
        log.warning("TLS: %s: renew it.", tls.described)
    else:
        log.info("TLS: %s.", tls.described)


def _within_descriptors(settings: Settings) -> Settings:
    """Raise the limit of file descriptors, and lower max_connections to what it allows."""
    with contextlib.suppress(OSError, ValueError):  # macOS refuses its own "unlimited"
        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = connections_within(limit)
    if limit == resource.RLIM_INFINITY or settings.max_connections <= room:
        return settings
    log.warning(
        "max_connections is %d instead of %d: the limit of file descriptors is %d (ulimit -n).",
        room,
        settings.max_connections,
        limit,
    )
    return dataclasses.replace(settings, max_connections=room)


def connections_within(limit: int) -> int:
    """How many connections each of HTTP and gRPC can have, with this many file descriptors."""
    return max((limit - _OWN_DESCRIPTORS) // 2, 1)


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """A temporary folder. Removes those of earlier servers that were killed.

    A lock in the folder shows that its server lives: the supervisor and its workers hold it, and
    the kernel releases it when the last of them has ended.
    """
    try:
        parent = tempfile.gettempdir()
    except OSError as error:
        raise SettingsError(
            f"The server cannot write into a temporary folder: {error.strerror}. Set TMPDIR to a "
            "folder that this user may write to."
        ) from None
    for path in Path(parent).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            with (path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                log.info("Removed %s, which a killed server left behind.", path)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        # By rename, so that no other server sees the file before it is locked.
        unlocked = Path(folder, "lock.new")
        with unlocked.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(Path(folder, "lock"))
            yield folder


@WorkerProcess.wrap_target  # type: ignore[untyped-decorator]
def _run_worker(
    number: int, worker: Any, sockets: Any, ipc: Any, loop: asyncio.AbstractEventLoop, *_: Any
) -> None:
    """What a worker process runs in place of Granian's own worker."""
    worker.run(loop)


def _load_worker(
    settings: Settings,
    lifecycle: Lifecycle,
    state_folder: Path,
    tls: Tls | None,
    pulse: Pulse,
    listeners: Listeners,
) -> Any:
    """Called in the worker process, where the heavy imports happen."""
    if sys.platform == "linux":
        # The kernel kills this process when the thread that forked it ends: the main thread of
        # the supervisor. It may have ended before this call.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != lifecycle.supervisor:
            os._exit(1)
    from service.worker import Worker

    return Worker(settings, lifecycle, state_folder, pulse, listeners, tls)


def _read_keys(settings: Settings) -> list[Key]:
    """The entries of the file of keys, if there is one. Raises SettingsError."""
    if not settings.keys_file:
        return []
    try:
        return KeysFile(Path(settings.keys_file)).read()
    except KeysError as error:
        raise SettingsError(str(error)) from None


def _preflight(settings: Settings) -> list[socket.socket]:
    """Reserve the ports. Raises SettingsError for what would otherwise show later, or never."""
    check_models(settings)
    if conflict := conflicting_packages():
        raise SettingsError(conflict)
    return reserve(settings)


def check_models(settings: Settings) -> None:
    """Raise SettingsError if there is nothing that could be a model repository."""
    if settings.models.is_file() and settings.models.suffix != ".onnx":
        raise SettingsError(f"{settings.models.resolve()} is neither a folder nor FILE.onnx.")
    if not settings.models.exists():
        raise SettingsError(
            f"The model repository {settings.models.resolve()} does not exist. "
            "Train a model with mnist-train, or choose another folder with --models."
        )
