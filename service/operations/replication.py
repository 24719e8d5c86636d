"""What one worker is told, all workers of the server do.

The kernel hands a call to any worker, but loading a model, registering shared memory or changing
the log level must hold in all of them, and statistics are the sum over all. What operators want is
kept as one state, in a file of a folder that the supervisor made. A change is first carried out in
the worker that was asked; if that succeeds it is written down, and every other worker is told to
follow, over a Unix socket each, before the caller is answered. A worker that cannot follow at once
does so later (`catch_up`), and one that is respawned begins with the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from service.core import errors

log = logging.getLogger(__name__)

State = dict[str, Any]
Command = dict[str, Any]
# Long enough for a large model to be loaded and warmed up.
_ANSWER_TIMEOUT_S = 60.0
_BACKLOG = 1024
_FOLLOW: Command = {"do": "follow"}
# Linux takes 107 bytes as the path of a socket.
LONGEST_FOLDER = 90


class Control:
    """One worker's end.

    `follow(state)` brings this worker in line with a state, and raises a ServiceError if it cannot;
    `answer(command)` answers a command that changes nothing, with JSON values. Without a folder
    (`flask run`, tests) there is one worker, and nothing outlasts it.
    """

    def __init__(
        self,
        folder: Path | None,
        follow: Callable[[State], Awaitable[None]],
        answer: Callable[[Command], Awaitable[Any]],
    ) -> None:
        self._folder = folder
        self._follow = follow
        self._answer = answer
        self._socket = folder / f"{os.getpid()}.sock" if folder else None
        self._server: asyncio.Server | None = None
        self._local = asyncio.Lock()
        self._state: State = {}
        self._followed: State = {}

    async def start(self) -> None:
        """Listen to the other workers, and catch up with what they were told before."""
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(
                self._serve, self._socket, backlog=_BACKLOG
            )
        async with self._locked():
            await self.catch_up()

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None and self._socket is not None:
            self._server.close()
            self._socket.unlink(missing_ok=True)

    async def catch_up(self) -> None:
        """Follow the state, if this worker does not yet; what is impossible is tried again."""
        state = self._read()
        if state == self._followed:
            return
        try:
            await self._follow(state)
        except errors.ServiceError as error:
            log.warning("This worker cannot follow what the server was told: %s", error.message)
        else:
            self._followed = state

    async def change(self, change: Callable[[State], None]) -> None:
        """Change the state by a function of it, in every worker; one change at a time.

        Raises what following it raises in this worker: then nothing is changed. Raises Unavailable
        if another worker does not answer; that one will follow later. Once begun it is finished,
        even if the caller goes away.
        """
        changing = asyncio.ensure_future(self._change(change))
        changing.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(changing)

    async def _change(self, change: Callable[[State], None]) -> None:
        async with self._locked():
            state = copy.deepcopy(self._read())
            change(state)
            await self._follow(state)
            self._followed = state
            self._write(state)
            for answer in await self._ask_others(_FOLLOW):
                if isinstance(answer, errors.ServiceError):
                    raise answer

    async def ask(self, command: Command) -> list[Any]:
        """The answers of all workers to a command that changes nothing, this worker's first.

        Raises what answering it raises, and Unavailable if a worker does not answer.
        """
        answers = [await self._answer(command), *await self._ask_others(command)]
        for answer in answers:
            if isinstance(answer, errors.ServiceError):
                raise answer
        return [answer for answer in answers if answer is not _GONE]

    async def _ask_others(self, command: Command) -> list[Any]:
        if self._folder is None:
            return []
        others = [path for path in self._folder.glob("*.sock") if path != self._socket]
        return await asyncio.gather(*(self._ask(path, command) for path in others))

    async def _ask(self, path: Path, command: Command) -> Any:
        """Another worker's answer, or the error that is in its place; _GONE if it has died."""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(path)
                with contextlib.closing(writer):
                    writer.write(json.dumps(command).encode())
                    writer.write_eof()
                    answer = json.loads(await reader.read())
        except (OSError, ValueError, TimeoutError):
            if _is_alive(int(path.stem)):
                return errors.Unavailable("Another worker does not answer; it will follow later.")
            path.unlink(missing_ok=True)  # its successor will catch up
            return _GONE
        if "error" in answer:
            kind: type[errors.ServiceError] = getattr(errors, answer["error"])
            return kind(answer["message"])
        return answer["value"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out one command of another worker."""
        with contextlib.closing(writer):
            try:
                command = json.loads(await reader.read())
                if command == _FOLLOW:
                    state = self._read()
                    await self._follow(state)
                    self._followed = state
                    answer: Command = {"value": None}
                else:
                    answer = {"value": await self._answer(command)}
            except errors.ServiceError as error:
                answer = {"error": type(error).__name__, "message": error.message}
            except Exception:
                log.exception("A command of another worker failed.")
                answer = {"error": "InternalError", "message": "A worker failed; see its log."}
            writer.write(json.dumps(answer).encode())
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    @property
    def state(self) -> State:
        """What is wanted of every worker."""
        return self._read()

    def _read(self) -> State:
        if self._folder is not None:
            with contextlib.suppress(FileNotFoundError):
                self._state = json.loads((self._folder / "state.json").read_text())
        return self._state

    def _write(self, state: State) -> None:
        self._state = state
        if self._folder is not None:
            temporary = self._folder / "state.tmp"
            temporary.write_text(json.dumps(state))
            temporary.rename(self._folder / "state.json")

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Hold the lock that all workers share."""
        async with self._local:
            if self._folder is None:
                yield
                return
            with (self._folder / "lock").open("w") as lock:  # closing it lets go of the lock
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, fcntl.flock, lock, fcntl.LOCK_EX)
                yield


_GONE = object()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
