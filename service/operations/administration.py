"""The control plane: models, their statistics, the log level, shared memory.

Every change is a change of the `DesiredState` of all workers, which each worker follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from service.access.origins import host_name
from service.core.batching import BatchLimits
from service.core.errors import (
    AlreadyExists,
    Forbidden,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    excerpt,
)
from service.core.off_loop import OffLoop
from service.core.request import Parameters
from service.core.statistics import Counters, merge
from service.observe import metrics
from service.observe.log_settings import LogSettings, level_of, settings_of
from service.operations.replication import (
    AskStatistics,
    DesiredState,
    Flush,
    Question,
    SharedState,
    VersionStatistics,
)
from service.repository.model_config import ModelConfig, configuration
from service.repository.models import IndexEntry, Repository
from service.runtime.shared_memory import SharedRegion, SharedRegions
from service.settings import Settings, is_loopback

log = logging.getLogger(__name__)

_LONGEST_FLUSH_S = 1.0  # how long a scrape waits for the other workers

TraceSettings = dict[str, str | list[str]]


def _trace_settings(settings: Settings) -> TraceSettings:
    """The protocol's trace settings, in Triton's words for none and for OpenTelemetry."""
    is_on, share = settings.traces, settings.traces_sample
    return {
        "trace_level": ["TIMESTAMPS" if is_on else "OFF"],
        "trace_rate": str(round(1 / share) if is_on and share else 0),  # one of this many
        "trace_count": "-1" if is_on else "0",  # no limit
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "opentelemetry" if is_on else "",
    }


class Administration:
    """The control plane of one worker. Belongs to one event loop, as the repository does."""

    def __init__(
        self,
        *,
        repository: Repository,
        regions: SharedRegions,
        settings: Settings,
        limits: BatchLimits,
        state_folder: Path | None = None,
    ) -> None:
        self._repository = repository
        self._regions = regions
        self._settings = settings
        self._limits = limits
        self._default_level = logging.getLevelNamesMapping()[settings.log_level.upper()]
        self.max_json_bytes = settings.max_json_bytes
        self._exposing = asyncio.Lock()
        self._next_exposition: asyncio.Task[bytes] | None = None
        # Not the thread for conversions, which others keep busy.
        self._exposition_thread = OffLoop("exposition")
        self.shared_state = SharedState(state_folder, self._follow, self._answer)

    async def start(self) -> None:
        """Start from the saved state. A region whose memory no longer exists is unregistered."""
        await self.shared_state.start()
        for name in self._unregistered(self.shared_state.state):
            log.warning(
                "Shared memory region %s no longer exists; it is unregistered.", excerpt(name)
            )
            await self.unregister_region(name)

    async def _follow(self, state: DesiredState) -> None:
        """Bring this worker in line with a state. Raises what loading and registering raise."""
        level = self._default_level if state.log_level is None else state.log_level
        logging.getLogger().setLevel(level)
        for region in self._regions.status():
            if state.regions.get(region.name) != region:
                self._regions.unregister(region.name)
        await self._repository.follow(state.unloaded, state.loads)
        for name in self._unregistered(state):
            self._regions.register(state.regions[name])

    def _unregistered(self, state: DesiredState) -> set[str]:
        """Regions of the state that this worker has not registered."""
        return state.regions.keys() - {region.name for region in self._regions.status()}

    async def _answer(self, question: Question) -> list[VersionStatistics]:
        """Answer a question that this or another worker asks of every worker."""
        match question:
            case Flush():
                metrics.flush()
                return []
            case AskStatistics(name, version):
                if version:
                    models = [self._repository.get(name, version)]
                else:
                    if name:
                        self._repository.get(name)
                    models = [m for m in self._repository.loaded if name in ("", m.name)]
                return [
                    {"name": m.name, "version": m.version, **m.batcher.statistics.as_dict()}
                    for m in models
                ]

    async def load_model(self, name: str, parameters: Parameters) -> None:
        """Load the newest versions of a model, or reload them.

        Raises Forbidden, Unimplemented for any parameter, and what `Repository.follow` raises.
        """
        self._check_control()
        if parameters:
            raise Unimplemented(
                f"failed to load '{excerpt(name)}': parameter {excerpt(next(iter(parameters)))} is "
                "not supported; a model is loaded as it is in the repository."
            )
        await self.shared_state.change(
            lambda state: replace(
                state,
                unloaded=state.unloaded - {name},
                loads={**state.loads, name: state.loads.get(name, 0) + 1},
            )
        )

    async def unload_model(self, name: str) -> None:
        """Unload a model until it is loaded again. Raises Forbidden, ModelNotFound."""
        self._check_control()
        await self._repository.check_known(name)
        await self.shared_state.change(
            lambda state: replace(state, unloaded=state.unloaded | {name})
        )

    async def index(self, ready: bool = False) -> list[IndexEntry]:
        """Every version in the repository; with `ready`, the loaded ones. Raises Unavailable."""
        return [entry for entry in await self._repository.index() if entry.ready or not ready]

    def configuration(self, name: str, version: str = "") -> ModelConfig:
        """How a model is served, as a ModelConfig. Raises ModelNotFound."""
        settings = self._settings
        return configuration(
            self._repository.get(name, version),
            self._limits,
            versions=settings.versions,
            workers=settings.workers,
        )

    async def card(self, name: str, version: str = "") -> bytes:
        """The model card of a loaded version; `{}` if it has none. Raises what `card_of` does."""
        return await self._repository.card_of(name, version)

    async def statistics(self, name: str = "", version: str = "") -> list[VersionStatistics]:
        """Statistics of a model (and version), or of all models, summed over all workers.

        Raises ModelNotFound.
        """
        by_version: dict[tuple[str, str], list[Counters]] = {}
        for worker in await self.shared_state.ask(AskStatistics(name, version)):
            for counters in worker:
                by_version.setdefault((counters["name"], counters["version"]), []).append(counters)
        return [
            {"name": model, "version": number, **merge(counters)}
            for (model, number), counters in by_version.items()
        ]

    async def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus' text format.

        It takes 10 ms, and 200 ms for 100 models in 16 workers. So one is made at a time, and all
        scrapes that arrive meanwhile share the next one, which has what happened before they came.
        """
        if self._next_exposition is None:
            self._next_exposition = asyncio.ensure_future(self._expose())
        return await asyncio.shield(self._next_exposition)

    async def _expose(self) -> bytes:
        async with self._exposing:
            self._next_exposition = None
            # If a worker does not answer, the metrics of the others are still worth having, and so
            # are its own of half a second ago.
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(_LONGEST_FLUSH_S):
                    await self.shared_state.ask(Flush())
            return await self._exposition_thread(metrics.exposition)

    def log_settings(self) -> LogSettings:
        return settings_of(logging.getLogger().level)

    async def change_log_settings(self, changes: Mapping[str, object]) -> LogSettings:
        """Change some of the log settings, and return all of them.

        Raises Forbidden, and what `level_of` raises.
        """
        if changes:
            self._check_control("changing the log level")
            level = level_of(logging.getLogger().level, changes, self._default_level)
            await self.shared_state.change(lambda state: replace(state, log_level=level))
        return self.log_settings()

    def trace_settings(self, changes: Mapping[str, object], model: str = "") -> TraceSettings:
        """The trace settings of the server or of a model, which follow from `traces`.

        Raises ModelNotFound, InvalidArgument for an unknown setting, and Unimplemented for a
        setting that would change.
        """
        if model:
            self._repository.get(model)
        current = _trace_settings(self._settings)
        for name, value in changes.items():
            if name not in current:
                names = ", ".join(current)
                raise InvalidArgument(
                    f"'{excerpt(name)}' is not a trace setting; they are {names}."
                )
            unchanged = current[name]
            # None and [] reset a setting to its default. JSON may have numbers as such.
            values = value if isinstance(value, list) else [] if value is None else [value]
            # Lists may be long, and so may the text of one.
            given = [str(v) for v in values[:2] if not isinstance(v, list | dict)]
            if values and given != (unchanged if isinstance(unchanged, list) else [unchanged]):
                state = "on" if self._settings.traces else "off"
                raise Unimplemented(f"{name}: tracing is {state} in this server and stays {state}.")
        return current

    async def register_region(self, region: SharedRegion) -> None:
        """Register system shared memory. Raises what `SharedRegions.register` raises."""

        def register(state: DesiredState) -> DesiredState:
            if region.name in state.regions:
                raise AlreadyExists.region(region.name)
            return replace(state, regions={**state.regions, region.name: region})

        await self.shared_state.change(register)

    async def unregister_region(self, name: str = "") -> None:
        """Unregister one region of system shared memory, or all of them."""

        def unregister(state: DesiredState) -> DesiredState:
            left = {key: region for key, region in state.regions.items() if name and key != name}
            return replace(state, regions=left)

        await self.shared_state.change(unregister)

    def regions(self, name: str = "") -> list[SharedRegion]:
        """All registered regions, or the named one. Raises NotFound."""
        return self._regions.status(name)

    def cuda_regions(self, name: str = "") -> list[SharedRegion]:
        """The registered regions of CUDA memory: always none. Raises NotFound for any name."""
        if name:
            raise NotFound(f"CUDA shared memory region '{excerpt(name)}' is not registered.")
        return []

    def register_cuda_region(self) -> None:
        """Raise Unimplemented, always."""
        raise Unimplemented(
            "CUDA shared memory is not supported by this server; send the tensors, or use system "
            "shared memory."
        )

    def check_host(self, host: str | None) -> None:
        """Raise Forbidden for a change that another machine may have requested, by its Host.

        Where changes are allowed because only this machine can reach the server, its Host must be
        this machine as well: a proxy on it may pass on what others ask for.
        """
        if (
            self._settings.trusts_loopback
            and self._settings.model_control_mode == "auto"
            and host
            and not is_loopback(host_name(host))
        ):
            raise Forbidden(
                f"Host is '{excerpt(host)}', but only this machine may make changes; start the "
                "server with --model-control-mode explicit to allow others."
            )

    def _check_control(self, change: str = "explicit model load / unload") -> None:
        if not self._settings.allows_control:
            mode = self._settings.model_control_mode
            raise Forbidden(
                f"{change} is not allowed: this server is open to other machines; "
                "give out keys (keys_file), or start it with --model-control-mode explicit to "
                "allow it."
                if mode == "auto"
                else f"{change} is not allowed (model_control_mode is {mode})."
            )
