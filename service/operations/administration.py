"""What operators ask of the service: its models, their statistics, its log, shared memory.

Every change is one of the state that `Control` keeps for all workers, and that each follows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.core.batching import BatchLimits
from service.core.errors import (
    AlreadyExists,
    Forbidden,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from service.core.request import Parameters
from service.core.statistics import merge
from service.observe import metrics
from service.observe.log_settings import LogSettings, level_of, settings_of
from service.operations.replication import Command, Control, State
from service.repository.model_config import configuration
from service.repository.models import IndexEntry, Repository
from service.runtime.shared_memory import Regions, Registered
from service.settings import Settings, is_loopback

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
        self._default_level = logging.getLevelNamesMapping()[settings.log_level.upper()]
        self.control = Control(control_folder, self._follow, self._answer)

    async def _follow(self, state: State) -> None:
        """Bring this worker in line with what operators want of the server.

        A state has the `log_level`; the `regions` of shared memory, by name; the models that are
        `unloaded`; and how often each was to be loaded anew, `loads`. Each may be missing.
        """
        logging.getLogger().setLevel(state.get("log_level", self._default_level))
        regions = state.get("regions", {})
        for known in self._regions.status():
            if regions.get(known.name) != known._asdict():
                self._regions.unregister(known.name)
        await self._repository.follow(set(state.get("unloaded", ())), state.get("loads", {}))
        for name in self._missing(regions):
            self._regions.register(Registered(**regions[name]))

    async def start(self) -> None:
        """Begin where the other workers are. A region whose memory is gone by now is forgotten."""
        await self.control.start()
        for name in self._missing(self.control.state.get("regions", {})):
            log.warning("Shared memory region %s is gone; it is unregistered.", name)
            await self.unregister_region(name)

    def _missing(self, regions: Mapping[str, Any]) -> set[str]:
        return regions.keys() - {region.name for region in self._regions.status()}

    async def _answer(self, command: Command) -> Any:
        """Answer another worker's question."""
        match command:
            case {"do": "statistics", "model": name, "version": version}:
                return self._statistics(name, version)
            case {"do": "flush"}:
                return metrics.flush()
        raise InvalidArgument(f"Unknown command: {command}.")

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

        def change(state: State) -> None:
            state["unloaded"] = [out for out in state.get("unloaded", ()) if out != name]
            loads = state.setdefault("loads", {})
            loads[name] = loads.get(name, 0) + 1

        await self.control.change(change)

    async def unload_model(self, name: str) -> None:
        """Unload a model until it is loaded again. Raises Forbidden, ModelNotFound."""
        self._check_control()
        await self._repository.check_known(name)

        def change(state: State) -> None:
            state["unloaded"] = sorted({*state.get("unloaded", ()), name})

        await self.control.change(change)

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

    async def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus' text format."""
        # A worker that does not answer is no reason to know nothing of the others.
        with contextlib.suppress(Unavailable):
            await self.control.ask({"do": "flush"})
        return metrics.exposition()

    def log_settings(self) -> LogSettings:
        """The log settings as they are."""
        return settings_of(logging.getLogger().level)

    async def change_log_settings(self, changes: Mapping[str, object]) -> LogSettings:
        """Change some of the log settings; all of them as they are then.

        Raises Forbidden, and what `level_of` raises.
        """
        if changes:
            self._check_control()
            level = level_of(logging.getLogger().level, changes, self._default_level)
            await self.control.change(lambda state: state.update(log_level=level))
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
            said = value if isinstance(value, list) else [] if value is None else [value]
            # Nothing means: back to the default. Numbers may come as such.
            if said and [str(each) for each in said] != (off if isinstance(off, list) else [off]):
                raise Unimplemented(f"{name}: tracing is off in this server and stays off.")
        return dict(_TRACE_OFF)

    async def register_region(self, region: Registered) -> None:
        """Register system shared memory. Raises what `Regions.register` raises."""

        def change(state: State) -> None:
            regions = state.setdefault("regions", {})
            if region.name in regions:
                raise AlreadyExists(f"Shared memory region '{region.name}' is already registered.")
            regions[region.name] = region._asdict()

        await self.control.change(change)

    async def unregister_region(self, name: str = "") -> None:
        """Forget a region of system shared memory, or all of them."""

        def change(state: State) -> None:
            kept = state.get("regions", {}).items() if name else ()
            state["regions"] = {known: region for known, region in kept if known != name}

        await self.control.change(change)

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

    def check_origin(self, host: str | None, origin: str | None) -> None:
        """Raise Forbidden for a change that a web page asks for, by the headers of its request.

        A browser sends an Origin with whatever a page asks of another server. Where control is
        allowed because nobody but this machine reaches the server, the Host must be this machine
        as well: a page may have its own name resolve to it (DNS rebinding).
        """
        named = urlsplit(f"//{host or ''}")
        if origin is not None and urlsplit(origin).netloc != named.netloc:
            raise Forbidden(f"Changes are not taken from web pages of other servers ({origin}).")
        if self._settings.control == "auto" and host and not is_loopback(named.hostname or ""):
            raise Forbidden(
                f"Host is '{host}', but changes are taken from this machine alone; start the "
                "server with --control on to take them from others."
            )

    def _check_control(self) -> None:
        if not self._settings.allows_control:
            raise Forbidden(
                "Models and the log cannot be changed from outside: this server listens beyond "
                "this machine. Start it with --control on to allow it."
                if self._settings.control == "auto"
                else "Models and the log cannot be changed from outside (control is off)."
            )
