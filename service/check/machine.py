"""What the machine, or the container, gives the server: cores, memory, files, folders, ports."""

from __future__ import annotations

import math
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path

from service import probe
from service.access.keys import KeysError, KeysFile
from service.access.limits import small_bursts
from service.access.tls import SOON_DAYS, Tls
from service.check import cgroup
from service.check.finding import Finding, count, error, ok, warning
from service.ports import NAMES, reserve
from service.settings import Settings, SettingsError, is_loopback
from service.supervisor import FOLDER_PREFIX, LONGEST_SOCKET_FOLDER, connections_within

_MIB = 1024 * 1024
# Memory of a worker (docs/decisions/memory.md): at rest, and at most, without the requests in
# flight and without its models. The supervisor imports neither ONNX Runtime nor Flask.
_REST_BYTES = 105 * _MIB
_MOST_BYTES = 224 * _MIB
_SUPERVISOR_BYTES = 50 * _MIB
_FOLDER_BYTES = _MIB  # of metrics and state, per worker
_TASKS = 32  # threads of a worker, and of the supervisor for it
_OTHER_TASKS = 16
_FUTURE_S = 3600.0  # a file that is newer than this was not written with the same clock


def network(settings: Settings) -> Iterator[Finding]:
    """Whether each port can be opened, and whether clients can reach it."""
    for name in NAMES:
        if port := getattr(settings, name):
            try:
                for reservation in reserve(settings, (name,)):
                    reservation.close()
            except SettingsError as refused:
                yield _refused_port(settings, name, str(refused))
            else:
                yield ok(name, f"Port {port} of {settings.host} is free.")
    if is_loopback(settings.host) and ("KUBERNETES_SERVICE_HOST" in os.environ or _is_image()):
        yield warning(
            "host",
            f"The server listens on {settings.host} of its container, which only processes in the "
            "same container or pod can reach.",
            "Set host to 0.0.0.0.",
        )


def access(settings: Settings) -> Iterator[Finding]:
    """Who may call, how often, and whether the file of keys can be used."""
    for excess in small_bursts(settings):
        yield _with_remedy("limits", excess)
    if settings.is_open_to_others:
        gate = "its trusted_proxies" if is_loopback(settings.host) else settings.host
        yield warning(
            "access",
            f"Everyone who reaches {gate} may call without a key.",
            "Set anonymous_scopes to none."
            if settings.keys_file
            else "Give out keys: mnist-keys add NAME --file FILE, and set keys_file to FILE.",
        )
    if not settings.keys_file:
        return
    file = KeysFile(Path(settings.keys_file))
    try:
        keys = file.read()
    except KeysError as refused:
        yield error("keys_file", str(refused), "Correct it, or make one with mnist-keys add.")
        return
    if exposure := file.exposure:
        yield _with_remedy("keys_file", exposure)
    elif keys:
        yield ok("keys_file", f"{settings.keys_file} lets {count(len(keys), 'caller')} in.")
    else:
        yield warning(
            "keys_file", f"{settings.keys_file} has no entry.", "Add one with mnist-keys add."
        )


def _with_remedy(subject: str, sentence: str) -> Finding:
    """A warning of a sentence that says what to do after its semicolon."""
    problem, _, remedy = sentence.partition("; ")
    return warning(subject, f"{problem}.", f"{remedy[:1].upper()}{remedy[1:]}")


def tls(settings: Settings) -> Iterator[Finding]:
    """Whether clients could use the certificate; nothing if there is no TLS."""
    if not settings.has_tls:
        return
    try:
        files = Tls(settings)
    except SettingsError as refused:
        yield error("TLS", str(refused), "Correct the files, or the settings that name them.")
        return
    files.close()
    text = f"The {files.described}."
    if files.days_left < SOON_DAYS:
        yield warning("TLS", text, "Renew it; the server reads it again when the files change.")
    else:
        yield ok("TLS", text)
    if settings.tls_client_auth == "required" and not settings.health_port:
        yield warning(
            "health_port",
            "Probes and Prometheus need a client certificate: no port answers without one.",
            "Set health_port, which stays plain and asks for none.",
        )


def _is_image() -> bool:
    """Whether this container was started for the server: another one may be for developing it."""
    try:
        return b"mnist-serve" in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return False


def _refused_port(settings: Settings, name: str, message: str) -> Finding:
    problem, _, remedy = message.partition(". ")
    if probe.serves_here(settings):
        return warning(
            name,
            f"Port {getattr(settings, name)} is in use, and a server like this one runs on port "
            f"{settings.http_port}; a second one would not start.",
            f"Ignore this if you examine the running server; else stop it, or choose another "
            f"{name}.",
        )
    return error(name, f"{problem}.", remedy)


def cores(settings: Settings) -> Finding:
    """Workers and their threads against the cores that this process may use."""
    available = len(os.sched_getaffinity(0))
    limit = cgroup.cpu_limit()
    usable = available if limit is None else min(available, max(1, math.ceil(limit)))
    text = f"{count(settings.workers, 'worker')} on {count(usable, 'core')}"
    if limit is not None and limit < available:
        text += f" (the container may use {limit:g} of {available})"
    if settings.workers > usable:
        return warning(
            "workers",
            f"{text}: more than one per core costs memory, and answers come later.",
            f"Set workers to {usable}.",
        )
    threads = settings.workers * settings.intra_op_threads
    if threads > usable:
        return warning(
            "workers",
            f"{text}, with {settings.intra_op_threads} threads per inference: {threads} threads "
            f"compete for {count(usable, 'core')}.",
            f"Set intra_op_threads to {max(1, usable // settings.workers)}.",
        )
    if settings.workers < usable:
        return ok("workers", f"{text}; --workers {usable} would use all of them.")
    return ok("workers", f"{text}.")


def memory(settings: Settings, model_bytes: int) -> Finding:
    """The memory that the container or machine has, against what the workers may take."""
    limit = cgroup.memory_limit()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    whose = "machine has" if limit is None or limit > total else "container may use"
    limit = total if limit is None else min(limit, total)
    each = _MOST_BYTES + settings.max_inflight_bytes + model_bytes
    need = settings.workers * each + _SUPERVISOR_BYTES
    least = settings.workers * (_REST_BYTES + model_bytes) + _SUPERVISOR_BYTES
    text = (
        f"{count(settings.workers, 'worker')} may take up to {_megabytes(need)}, and the {whose} "
        f"{_megabytes(limit)}"
    )
    if limit >= need:
        return ok("memory", f"{text}.")
    fitting = (limit - _SUPERVISOR_BYTES) // each
    remedy = f"Raise the limit to {_megabytes(need)}"
    if fitting:
        remedy += f", or set workers to {fitting}"
    if limit < least:
        return error(
            "memory",
            f"{text}, which is less than the {_megabytes(least)} that an idle server takes: the "
            "kernel would kill it.",
            f"{remedy}.",
        )
    return warning("memory", f"{text}: under load the kernel may kill the server.", f"{remedy}.")


def descriptors(settings: Settings) -> Finding:
    """The limit of open files against the connections of a worker."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = connections_within(limit)
    if limit == resource.RLIM_INFINITY or settings.max_connections <= room:
        shown = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
        return ok(
            "open files",
            f"The limit is {shown}, enough for {settings.max_connections} connections.",
        )
    return warning(
        "open files",
        f"The hard limit of {limit:,} files leaves room for {room} connections, and "
        f"max_connections is {settings.max_connections}.",
        f"Raise the limit (ulimit -Hn, LimitNOFILE of systemd, --ulimit nofile of Docker), or set "
        f"max_connections to {room}.",
    )


def tasks(settings: Settings) -> Iterator[Finding]:
    """The limit of processes and threads of the container; nothing if there is none."""
    limit, need = cgroup.task_limit(), settings.workers * _TASKS + _OTHER_TASKS
    if limit is None:
        return
    text = f"The container may have {limit:,} processes and threads"
    if limit >= need:
        yield ok("processes", f"{text}.")
        return
    yield error(
        "processes",
        f"{text}, and {count(settings.workers, 'worker')} may need {need}.",
        f"Raise the limit (--pids-limit of Docker, TasksMax of systemd) to {need}.",
    )


def shared_memory(settings: Settings) -> Finding:
    """Whether the workers can share locks, and clients regions of a useful size."""
    subject, folder = "/dev/shm", Path("/dev/shm")  # noqa: S108 - the kernel's, nothing is created
    try:
        get_context("fork").Lock()  # the supervisor and its workers share some
    except OSError as failed:
        return error(
            subject,
            f"Processes cannot share a lock in /dev/shm: {failed.strerror}.",
            "Mount a tmpfs at /dev/shm that this user may write to.",
        )
    if not settings.shared_memory_regions:
        return ok(subject, "Processes can share locks; clients share no memory.")
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < settings.max_request_bytes:
        return warning(
            subject,
            f"{_megabytes(free)} are free, and one region may hold a request of "
            f"{_megabytes(settings.max_request_bytes)}.",
            "Enlarge it (--shm-size of Docker, an emptyDir with medium Memory in Kubernetes), or "
            "remove regions that no program uses.",
        )
    return ok(subject, f"{_megabytes(free)} are free for regions of clients.")


def temporary_folder(settings: Settings) -> Finding:
    """Whether the supervisor can have its folder: metrics, state and sockets of the workers."""
    subject = "TMPDIR"
    try:
        with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
            state = f"{folder}/state"
            if len(state) > LONGEST_SOCKET_FOLDER:
                return error(
                    subject,
                    f"{state} is too long for the path of a Unix socket.",
                    "Set TMPDIR to a shorter folder.",
                )
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{folder}/socket")
            status = os.statvfs(folder)
    except OSError as failed:
        return error(
            subject,
            f"The server cannot write into a temporary folder: {failed.strerror or failed}.",
            "Set TMPDIR to a folder that this user may write to; in a container with a read-only "
            "file system, mount a tmpfs at /tmp.",
        )
    free, need = status.f_bavail * status.f_frsize, settings.workers * _FOLDER_BYTES
    place, asked = tempfile.gettempdir(), os.environ.get("TMPDIR")
    if asked and Path(asked).absolute() != Path(place).absolute():
        return warning(
            subject,
            f"TMPDIR is '{asked}', where the server cannot write; it would use {place}.",
            "Set TMPDIR to a folder that this user may write to, or remove it.",
        )
    if free < need:
        return warning(
            subject,
            f"{place} has {_megabytes(free)} free, and the metrics may take {_megabytes(need)}: "
            "some would be lost.",
            "Make room there, or set TMPDIR to another folder.",
        )
    return ok(subject, f"{place} is writable, with {_megabytes(free)} free.")


def clock(files: Sequence[Path]) -> Finding:
    """Whether the clock is not behind the files that the server reads."""
    now = time.time()
    written = {}
    for file in (Path(__file__), *files):
        try:
            written[file] = file.stat().st_mtime
        except OSError:
            continue
    newest = max(written, key=lambda file: written[file], default=None)
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if newest is None or written[newest] <= now + _FUTURE_S:
        return ok("clock", f"{shown}.")
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(written[newest]))
    return warning(
        "clock",
        f"It is {shown} by the clock, but {newest} was written at {at}: times in logs, metrics and "
        "certificates will be wrong.",
        "Synchronise the clock (timedatectl set-ntp true); if the file's time is wrong, touch it.",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
