"""Keeps operator state (loaded models, log level, shared memory) identical in all workers.

Strategy: the kernel hands a call to any worker, but a loaded model, a registered region or the log
level must hold in all of them, and statistics are the sum over all. So the state that operators
ask for is one value, `DesiredState`, in one file of a folder that the supervisor creates. A change
takes a lock that all workers share. It is applied first in the worker that received it; if that
succeeds, the worker saves the new state and tells every other worker to follow, each over a Unix
socket of its own in the same folder, before the client is answered. A worker that cannot follow at
once catches up at its next poll (`catch_up`); a respawned worker starts from the saved state.

On a socket, one JSON object goes each way: a command, and its answer or error.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.core import errors
from service.core.statistics import Counters
from service.runtime.shared_memory import SharedRegion

log = logging.getLogger(__name__)

# Long enough to load and warm up a large model.
_ANSWER_TIMEOUT_S = 60.0
_BACKLOG = 1024

# The errors that one worker reports to another, by their names on the socket.
_ERRORS: dict[str, type[errors.ServiceError]] = {
    "AlreadyExists": errors.AlreadyExists,
    "Forbidden": errors.Forbidden,
    "InternalError": errors.InternalError,
    "InvalidArgument": errors.InvalidArgument,
    "ModelLoadError": errors.ModelLoadError,
    "ModelNotFound": errors.ModelNotFound,
    "NotFound": errors.NotFound,
    "Unavailable": errors.Unavailable,
}
_ERROR_NAMES = {kind: name for name, kind in _ERRORS.items()}


@dataclass(frozen=True, kw_only=True)
class DesiredState:
    """What operators want of every worker.

    `log_level` of the root logger, None for the one in the settings; `regions` of shared memory by
    name; `unloaded`, the models to keep out; `loads`, how often operators asked to load each
    model: a worker reloads a model whose count has grown.
    """

    log_level: int | None = None
    regions: Mapping[str, SharedRegion] = field(default_factory=dict)
    unloaded: frozenset[str] = frozenset()
    loads: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(
            {
                "log_level": self.log_level,
                "regions": {name: region._asdict() for name, region in self.regions.items()},
                "unloaded": sorted(self.unloaded),
                "loads": dict(self.loads),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> DesiredState:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(
            log_level=values["log_level"],
            regions={name: SharedRegion(**region) for name, region in values["regions"].items()},
            unloaded=frozenset(values["unloaded"]),
            loads=values["loads"],
        )


class VersionStatistics(Counters):
    """The counters of one loaded version, with its names, by those of Triton's extension."""

    name: str
    version: str


@dataclass(frozen=True)
class Follow:
    """Read the saved state, and bring the worker in line with it."""


@dataclass(frozen=True)
class AskStatistics:
    """Statistics of one model and version; empty names stand for all."""

    model: str = ""
    version: str = ""


@dataclass(frozen=True)
class Flush:
    """Write the metrics observed so far to the files that all workers read."""


Question = AskStatistics | Flush


class SharedState:
    """One worker's side of the state that all workers share.

    `follow(state)` brings this worker in line with a state, and raises a ServiceError if it
    cannot. `answer(question)` answers a question, which changes nothing, with the statistics asked
    for, if any. Without a folder (`flask run`, tests) there is a single worker, and the state lasts
    as long as its process.
    """

    def __init__(
        self,
        folder: Path | None,
        follow: Callable[[DesiredState], Awaitable[None]],
        answer: Callable[[Question], Awaitable[list[VersionStatistics]]],
    ) -> None:
        self._folder = folder
        self._follow = follow
        self._answer = answer
        self._socket = folder / f"{os.getpid()}.sock" if folder else None
        self._server: asyncio.Server | None = None
        self._local = asyncio.Lock()
        self._state = DesiredState()
        self._followed = DesiredState()

    async def start(self) -> None:
        """Listen to the other workers, and catch up with the changes made so far."""
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(
                self._serve, self._socket, backlog=_BACKLOG
            )
        async with self._locked():
            await self.catch_up()

    def stop(self) -> None:
        """Stop listening to the other workers."""
        if self._server is not None and self._socket is not None:
            self._server.close()
            self._socket.unlink(missing_ok=True)

    async def catch_up(self) -> None:
        """Follow the state unless this worker already does. The next call retries a failure.

        Raises OSError if the state cannot be read.
        """
        state = self.state
        if state == self._followed:
            return
        try:
            await self._follow(state)
        except errors.ServiceError as error:
            log.warning("This worker cannot apply a change made in another: %s", error.message)
        else:
            self._followed = state

    async def change(self, change: Callable[[DesiredState], DesiredState]) -> None:
        """Replace the state in every worker by `change(state)`; one change at a time.

        Raises what `follow` raises in this worker, and Unavailable if the state cannot be read or
        written; then the state stays as it was. Raises Unavailable if another worker does not
        answer; that worker catches up later. A change that has begun is completed even if the
        caller is cancelled.
        """

        async def apply() -> None:
            async with self._locked():
                try:
                    state = change(self.state)
                except OSError as error:
                    raise self._unusable("read", error) from error
                # Written first: on a full disk nothing has changed yet.
                self._write(state)
                await self._follow(state)
                self._followed = state
                self._publish(state)
                for answer in await self._ask_others(Follow()):
                    if isinstance(answer, errors.ServiceError):
                        raise answer

        applying = asyncio.ensure_future(apply())
        # Retrieve the exception, or asyncio reports one that a cancelled caller never awaits.
        applying.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(applying)

    async def ask(self, question: Question) -> list[list[VersionStatistics]]:
        """Return the answers of all workers, this worker's first.

        Raises what answering raises, and Unavailable if a worker does not answer.
        """
        answers = [await self._answer(question)]
        for answer in await self._ask_others(question):
            if isinstance(answer, errors.ServiceError):
                raise answer
            if answer is not None:
                answers.append(answer)
        return answers

    async def _ask_others(
        self, command: Follow | Question
    ) -> list[list[VersionStatistics] | errors.ServiceError | None]:
        """Return what each other worker answers, its error, or None for one that has died."""
        if self._folder is None:
            return []
        try:
            # Not glob(): from Python 3.13 on, it takes a folder that it cannot list for empty.
            sockets = [path for path in self._folder.iterdir() if path.suffix == ".sock"]
        except OSError as error:
            return [
                errors.Unavailable(
                    f"The other workers cannot be asked ({error.strerror}); they will follow later."
                )
            ]
        others = (path for path in sockets if path != self._socket)
        return await asyncio.gather(*(self._ask_worker(path, command) for path in others))

    async def _ask_worker(
        self, path: Path, command: Follow | Question
    ) -> list[VersionStatistics] | errors.ServiceError | None:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(path)
                with contextlib.closing(writer):
                    writer.write(json.dumps(_command_to_json(command)).encode())
                    writer.write_eof()
                    answer = json.loads(await reader.read())
        except (OSError, ValueError, TimeoutError):
            if _is_alive(int(path.stem)):
                return errors.Unavailable("Another worker does not answer; it will follow later.")
            path.unlink(missing_ok=True)  # the worker that replaces it catches up
            return None
        if "error" in answer:
            return _ERRORS[answer["error"]](answer["message"])
        statistics: list[VersionStatistics] = answer["statistics"]
        return statistics

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out one command of another worker."""
        with contextlib.closing(writer):
            answer: dict[str, object]
            try:
                command = _command_from_json(json.loads(await reader.read()))
                if isinstance(command, Follow):
                    state = self.state
                    await self._follow(state)
                    self._followed = state
                    answer = {"statistics": []}
                else:
                    answer = {"statistics": await self._answer(command)}
            except OSError as error:
                answer = {
                    "error": "Unavailable",
                    "message": f"Another worker cannot follow now ({error.strerror}); it will "
                    "follow later.",
                }
            except errors.ServiceError as error:
                name = _ERROR_NAMES.get(type(error), "InternalError")
                answer = {"error": name, "message": error.message}
            except Exception:
                log.exception("A command of another worker failed.")
                answer = {"error": "InternalError", "message": "A worker failed; see its log."}
            writer.write(json.dumps(answer).encode())
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    @property
    def state(self) -> DesiredState:
        """The saved state, as it is now."""
        if self._folder is not None:
            with contextlib.suppress(FileNotFoundError):
                self._state = DesiredState.from_json((self._folder / "state.json").read_text())
        return self._state

    def _write(self, state: DesiredState) -> None:
        """Write `state` where no worker reads it yet. Raises Unavailable."""
        if self._folder is not None:
            try:
                (self._folder / "state.tmp").write_text(state.to_json())
            except OSError as error:
                raise self._unusable("written", error) from error

    def _unusable(self, verb: str, error: OSError) -> errors.Unavailable:
        """The error of a change that was not made because the folder cannot be used."""
        remedy = "free space there, then try again"
        if errors.is_used_up(error):
            remedy = "try again, or raise the limit of descriptors (ulimit -n)"
        return errors.Unavailable(
            f"The change was not made: the workers' folder {self._folder} cannot be {verb} "
            f"({error.strerror}); {remedy}."
        )

    def _publish(self, state: DesiredState) -> None:
        """Make `state`, which `_write` has written, the one that all workers read."""
        self._state = state
        if self._folder is not None:
            # By rename, so that a worker that reads at this moment sees one state or the other.
            (self._folder / "state.tmp").rename(self._folder / "state.json")

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Hold the lock that all workers share."""
        async with self._local:
            if self._folder is None:
                yield
                return
            try:
                lock = (self._folder / "lock").open("w")
            except OSError as error:
                raise self._unusable("written", error) from error
            with lock:  # closing the file releases the lock
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, fcntl.flock, lock, fcntl.LOCK_EX)
                yield


def _command_to_json(command: Follow | Question) -> dict[str, str]:
    match command:
        case Follow():
            return {"command": "follow"}
        case AskStatistics(model, version):
            return {"command": "statistics", "model": model, "version": version}
        case Flush():
            return {"command": "flush"}


def _command_from_json(values: Any) -> Follow | Question:
    """Read what `_command_to_json` wrote. Raises InvalidArgument for anything else."""
    match values:
        case {"command": "follow"}:
            return Follow()
        case {"command": "statistics", "model": str(model), "version": str(version)}:
            return AskStatistics(model, version)
        case {"command": "flush"}:
            return Flush()
    raise errors.InvalidArgument(f"Unknown command: {values}.")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
