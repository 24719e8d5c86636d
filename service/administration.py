"""What operators ask of the service: its models, their statistics, its log, shared memory.

Every change goes through `Control`, so that it holds in all workers; `apply` is what each of them
then does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.control import Command, Control
from service.core.batching import BatchLimits
from service.core.errors import Forbidden, InvalidArgument, NotFound, Unimplemented
from service.core.request import Parameters
from service.core.statistics import merge
from service.observe.log_settings import LogSettings, level_of, settings_of
from service.repository.config import configuration
from service.repository.repository import IndexEntry, Repository
from service.runtime.shared_memory import Regions, Registered
from service.settings import Settings

log = logging.getLogger(__name__)

# The protocol's trace settings, with the values that say that nothing is traced.
_TRACE_OFF: dict[str, str | list[str]] = {
    "trace_level": ["OFF"],
    "trace_rate": "0",
    "trace_count": "0",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "",
}


class Administration:
    """Lives on one event loop, as the repository does."""

    def __init__(
        self,
        repository: Repository,
        regions: Regions,
        settings: Settings,
        limits: BatchLimits,
        control_folder: Path | None = None,
    ) -> None:
        self._repository = repository
        self._regions = regions
        self._settings = settings
        self._limits = limits
        self.control = Control(control_folder, self.apply)

    async def apply(self, command: Command) -> Any:
        """Carry out a command in this worker."""
        match command:
            case {"do": "load", "model": name}:
                await self._repository.load(name)
            case {"do": "unload", "model": name}:
                await self._repository.unload(name)
            case {"do": "log", "level": level}:
                logging.getLogger().setLevel(level)
            case {"do": "register", "region": region}:
                self._regions.register(Registered(**region))
            case {"do": "unregister", "region": name}:
                self._regions.unregister(name)
            case {"do": "statistics", "model": name, "version": version}:
                return self._statistics(name, version)
            case _:
                raise InvalidArgument(f"Unknown command: {command}.")
        return None

    async def load_model(self, name: str, parameters: Parameters) -> None:
        """Load the newest versions of a model, anew if they are loaded.

        Raises Forbidden, Unimplemented for any parameter, and what `Repository.load` raises.
        """
        self._check_control()
        if parameters:
            raise Unimplemented(
                f"parameters: {next(iter(parameters))} is not supported; a model is loaded as it "
                "is in the repository."
            )
        await self.control.tell({"do": "load", "model": name}, forget=f"model {name}".__eq__)

    async def unload_model(self, name: str) -> None:
        """Unload a model until it is loaded again. Raises Forbidden, ModelNotFound."""
        self._check_control()
        await self.control.tell({"do": "unload", "model": name}, remember=f"model {name}")

    async def index(self, ready: bool = False) -> list[IndexEntry]:
        """Every version in the repository, or those that are served. Raises Unavailable."""
        return [entry for entry in await self._repository.index() if entry.ready or not ready]

    def configuration(self, name: str, version: str = "") -> dict[str, Any]:
        """How a model is served, as a ModelConfig. Raises ModelNotFound."""
        settings = self._settings
        return configuration(
            self._repository.get(name, version),
            self._limits,
            settings.versions,
            settings.workers,
        )

    async def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Statistics of a model (and version), or of all, over all workers.

        Raises ModelNotFound.
        """
        command = {"do": "statistics", "model": name, "version": version}
        by_model: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for of_worker in await self.control.ask(command):
            for model, number, counters in of_worker:
                by_model.setdefault((model, number), []).append(counters)
        return [
            {"name": model, "version": number} | merge(counters)
            for (model, number), counters in by_model.items()
        ]

    def _statistics(self, name: str, version: str) -> list[tuple[str, str, dict[str, Any]]]:
        if version:
            models = [self._repository.get(name, version)]
        else:
            if name:
                self._repository.get(name)
            models = [model for model in self._repository.loaded if name in ("", model.name)]
        return [(m.name, m.version, m.batcher.statistics.as_dict()) for m in models]

    def log_settings(self) -> LogSettings:
        """The log settings as they are."""
        return settings_of(logging.getLogger().level)

    async def change_log_settings(self, changes: Mapping[str, object]) -> LogSettings:
        """Change some of the log settings; all of them as they are then.

        Raises Forbidden, and what `level_of` raises.
        """
        if changes:
            self._check_control()
            default = logging.getLevelNamesMapping()[self._settings.log_level.upper()]
            level = level_of(logging.getLogger().level, changes, default)
            await self.control.tell({"do": "log", "level": level}, remember="log")
        return self.log_settings()

    def trace_settings(
        self, changes: Mapping[str, object], model: str = ""
    ) -> dict[str, str | list[str]]:
        """The trace settings of the server or of a model: tracing is off.

        Raises ModelNotFound, InvalidArgument for an unknown setting, and Unimplemented for a
        change of one.
        """
        if model:
            self._repository.get(model)
        for name, value in changes.items():
            if name not in _TRACE_OFF:
                known = ", ".join(_TRACE_OFF)
                raise InvalidArgument(f"'{name}' is not a trace setting; they are {known}.")
            off = _TRACE_OFF[name]
            if value not in (off, [off], [], None):  # nothing means: back to the default
                raise Unimplemented(f"{name}: tracing is off in this server and stays off.")
        return dict(_TRACE_OFF)

    async def register_region(self, region: Registered) -> None:
        """Register system shared memory. Raises what `Regions.register` raises."""
        command = {"do": "register", "region": region._asdict()}
        await self.control.tell(command, remember=f"region {region.name}")

    async def unregister_region(self, name: str = "") -> None:
        """Forget a region of system shared memory, or all of them."""
        keys = f"region {name}"
        forget = keys.__eq__ if name else lambda key: str(key).startswith("region ")
        await self.control.tell({"do": "unregister", "region": name}, forget=forget)

    def regions(self, name: str = "") -> list[Registered]:
        """The registered regions, or that one. Raises NotFound."""
        return self._regions.status(name)

    def cuda_regions(self, name: str = "") -> list[Registered]:
        """The registered regions of CUDA memory: none. Raises NotFound for any name."""
        if name:
            raise NotFound(f"CUDA shared memory region '{name}' is not registered.")
        return []

    def register_cuda_region(self) -> None:
        """Raise Unimplemented, always."""
        raise Unimplemented(
            "CUDA shared memory is not supported by this server; send the tensors, or use system "
            "shared memory."
        )

    def _check_control(self) -> None:
        if not self._settings.allows_control:
            raise Forbidden(
                "Models and the log cannot be changed from outside: this server listens beyond "
                "this machine. Start it with --control on to allow it."
                if self._settings.control == "auto"
                else "Models and the log cannot be changed from outside (control is off)."
            )
