"""What one worker is told, all workers of the server do.

The kernel hands a call to any worker, but loading a model, registering shared memory or changing
the log level must hold in all of them, and statistics are the sum over all. Each worker listens on
a Unix socket in a folder that the supervisor made; a command is carried out in every worker before
its caller is answered, and what must outlast a worker is kept in a file, from which a respawned
worker catches up.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from service.core import errors

log = logging.getLogger(__name__)

Command = dict[str, Any]
# Long enough for a large model to be loaded and warmed up.
_ANSWER_TIMEOUT_S = 60.0


class Control:
    """One worker's end. `apply` carries a command out in this worker and returns JSON values.

    Without a folder (`flask run`, tests) there is one worker, and nothing outlasts it.
    """

    def __init__(self, folder: Path | None, apply: Callable[[Command], Awaitable[Any]]) -> None:
        self._folder = folder
        self._apply = apply
        self._socket = folder / f"{os.getpid()}.sock" if folder else None
        self._server: asyncio.Server | None = None
        self._local = asyncio.Lock()

    async def start(self) -> None:
        """Listen to the other workers, and catch up with what they were told before."""
        if self._socket is None:
            return
        self._socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        async with self._locked():
            remembered = self._remembered()
        for command in remembered.values():
            try:
                await self._apply(command)
            except errors.ServiceError as error:
                log.warning("An earlier command no longer holds: %s", error.message)

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None and self._socket is not None:
            self._server.close()
            self._socket.unlink(missing_ok=True)

    async def ask(self, command: Command) -> list[Any]:
        """The answers of all workers to a command that changes nothing, this worker's first.

        Raises what the command raises, and Unavailable if a worker does not answer.
        """
        answers = [await self._apply(command)]
        if self._folder:
            others = [path for path in self._folder.glob("*.sock") if path != self._socket]
            answers += await asyncio.gather(*(self._ask(path, command) for path in others))
        return [answer for answer in answers if answer is not _GONE]

    async def tell(
        self,
        command: Command,
        remember: str = "",
        forget: Callable[[str], bool] = lambda key: False,
    ) -> None:
        """Have all workers carry out a command, one such at a time.

        If it succeeds everywhere it is kept under the key `remember`, for workers to come; those
        kept under keys that `forget` is true of are dropped. Raises as `ask` does.
        """
        async with self._locked():
            await self.ask(command)
            if self._folder:
                kept = {k: v for k, v in self._remembered().items() if not forget(k)}
                if remember:
                    kept[remember] = command
                temporary = self._folder / "commands.tmp"
                temporary.write_text(json.dumps(kept))
                temporary.rename(self._folder / "commands.json")

    def _remembered(self) -> dict[str, Command]:
        try:
            kept: dict[str, Command] = json.loads(
                (self._folder or Path()).joinpath("commands.json").read_text()
            )
        except FileNotFoundError:
            return {}
        return kept

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

    async def _ask(self, path: Path, command: Command) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(path)
                with contextlib.closing(writer):
                    writer.write(json.dumps(command).encode())
                    writer.write_eof()
                    answer = json.loads(await reader.read())
        except (ConnectionError, FileNotFoundError, json.JSONDecodeError):
            path.unlink(missing_ok=True)  # killed: its successor will catch up
            return _GONE
        except TimeoutError:
            raise errors.Unavailable("Another worker of this server does not answer.") from None
        if "error" in answer:
            kind: type[errors.ServiceError] = getattr(errors, answer["error"])
            raise kind(answer["message"])
        return answer["value"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out one command of another worker."""
        with contextlib.closing(writer):
            try:
                answer = {"value": await self._apply(json.loads(await reader.read()))}
            except errors.ServiceError as error:
                answer = {"error": type(error).__name__, "message": error.message}
            except Exception:
                log.exception("A command of another worker failed.")
                answer = {"error": "InternalError", "message": "A worker failed; see its log."}
            writer.write(json.dumps(answer).encode())
            with contextlib.suppress(ConnectionError):
                await writer.drain()


_GONE = object()
