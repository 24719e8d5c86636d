"""The models that are loaded, and how new versions replace old ones without losing a request.

A new version is loaded and warmed up in a thread and then swapped in by one assignment on the
event loop; requests in flight hold the version they started on. A version that fails to load
changes nothing but `failures`, and is tried again only when its file changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from service.core.batching import Batcher
from service.core.errors import InvalidArgument, LoadFailed, ModelNotFound, Unavailable
from service.repository.card import Card
from service.repository.card import read as read_card
from service.repository.versions import (
    CARD_FILE,
    MODEL_FILE,
    FoundVersion,
    file_sha256,
    parse_version,
    scan,
)
from service.runtime.session import LoadError, Session, SessionOptions, cuda_is_built_in
from service.runtime.session import load as load_session

log = logging.getLogger(__name__)


class ServedModel(NamedTuple):
    """One loaded version: what answers requests."""

    name: str
    version: str
    card: Card
    sha256: str
    session: Session
    batcher: Batcher
    signature: tuple[int, int, int]


class IndexEntry(NamedTuple):
    """A version on disk: whether it is loaded, and if not why, as far as that is known."""

    name: str
    version: str
    ready: bool
    reason: str


class Repository:
    """The loaded versions of every model. Read and changed on one event loop only."""

    def __init__(
        self,
        root: Path,
        options: SessionOptions,
        make_batcher: Callable[[str, str, Session], Batcher],
        executor: Executor,
        keep: int = 1,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._options = options
        self._make_batcher = make_batcher
        self._executor = executor
        self._keep = keep
        self._on_change = on_change
        # name -> version -> model, newest version first
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._failed: dict[tuple[str, int], tuple[tuple[int, int, int], str]] = {}
        self._root_error = ""
        self._unloaded: set[str] = set()
        self._loads: dict[str, int] = {}
        self._began = False
        self._refreshing = asyncio.Lock()

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model of that version, or of the newest one.

        Raises ModelNotFound if it is not loaded, InvalidArgument if `version` is not a number.
        """
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(
                f"Model '{name}' is not loaded; loaded are: {', '.join(self._models) or 'none'}."
            )
        if not version:
            return next(iter(versions.values()))
        if parse_version(version) is None:
            raise InvalidArgument(f"Version '{version}' is not a whole number from 1 up.")
        if version not in versions:
            raise ModelNotFound(
                f"Version {version} of model '{name}' is not loaded; "
                f"loaded are: {', '.join(versions)}."
            )
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """Loaded versions of a model, newest first; empty if there is none."""
        return list(self._models.get(name, ()))

    @property
    def loaded(self) -> list[ServedModel]:
        """Every loaded version of every model."""
        return [model for versions in self._models.values() for model in versions.values()]

    @property
    def failures(self) -> Mapping[str, str]:
        """Why versions on disk are not served: `NAME/VERSION` (or the root) -> reason."""
        failed = {f"{name}/{version}": why for (name, version), (_, why) in self._failed.items()}
        return failed | ({str(self._root): self._root_error} if self._root_error else {})

    async def refresh(self) -> None:
        """Bring what is loaded in line with what is on disk.

        Raises ProviderUnavailable, and only that: everything else becomes a failure on record.
        """
        async with self._refreshing:
            self._began = True  # from now on, what is asked for is more than to begin
            try:
                found = await self._scan()
            except OSError as error:
                if not self._root_error:
                    log.error("The model repository %s cannot be read: %s.", self._root, error)
                self._root_error = str(error)
                return
            self._root_error = ""
            changed, failed = False, dict(self._failed)
            for name in sorted(set(found) | set(self._models)):
                changed |= await self._refresh_model(name, found.get(name, []))
            on_disk = {(v.name, v.version) for versions in found.values() for v in versions}
            self._failed = {key: why for key, why in self._failed.items() if key in on_disk}
            if changed or self._failed != failed:
                self._on_change()

    async def follow(self, unloaded: set[str], loads: Mapping[str, int]) -> None:
        """Keep these models out, and load those anew whose count has grown.

        Requests that a model has accepted are answered even if it is unloaded. Raises, of the
        first model that cannot be loaded, ModelNotFound if it is not on disk, LoadFailed if its
        newest version is broken: then what was loaded of it, or that nothing was, stays.
        """
        async with self._refreshing:
            for name, count in loads.items():
                if count > self._loads.get(name, 0) and self._began and name not in unloaded:
                    await self._load_anew(name)
                self._loads[name] = count
            for name in unloaded - self._unloaded:
                await self._refresh_model(name, [])
            self._unloaded = set(unloaded)
            self._on_change()

    async def _load_anew(self, name: str) -> None:
        try:
            found = (await self._scan()).get(name, [])
        except OSError as error:
            raise LoadFailed(f"The model repository cannot be read: {error}.") from error
        if not found:
            raise ModelNotFound(f"Model '{name}' is not in the repository.")
        self._failed = {key: why for key, why in self._failed.items() if key[0] != name}
        kept = await self._load_versions(name, found, anew=True)
        if failure := self._failed.get((name, found[0].version)):
            self._on_change()
            raise LoadFailed(f"Version {found[0].version} of '{name}': {failure[1]}.")
        self._unloaded.discard(name)
        self._swap_in(name, kept)

    async def check_known(self, name: str) -> None:
        """Raise ModelNotFound if a model is neither loaded nor on disk."""
        if name not in self._models and all(e.name != name for e in await self.index()):
            raise ModelNotFound(f"Model '{name}' is not in the repository.")

    async def index(self) -> list[IndexEntry]:
        """Every version on disk, by model, newest first. Raises Unavailable if it is unreadable."""
        try:
            found = await self._scan()
        except OSError as error:
            raise Unavailable(f"The model repository cannot be read: {error}.") from error
        entries = []
        for version in (v for versions in found.values() for v in versions):
            name, number = version.name, str(version.version)
            ready = number in self._models.get(name, ())
            _, reason = self._failed.get((name, version.version), (None, ""))
            if not ready and not reason:
                out = name in self._unloaded
                reason = "unloaded" if out else f"not among the newest {self._keep}"
            entries.append(IndexEntry(name, number, ready, reason))
        return entries

    async def _scan(self) -> dict[str, list[FoundVersion]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, scan, self._root)

    async def _refresh_model(self, name: str, found: list[FoundVersion]) -> bool:
        if name in self._unloaded:
            found = []
        return self._swap_in(name, await self._load_versions(name, found))

    async def _load_versions(
        self, name: str, found: list[FoundVersion], anew: bool = False
    ) -> dict[str, ServedModel]:
        """The newest versions that can be served, newest first."""
        loaded = self._models.get(name, {})
        kept: dict[str, ServedModel] = {}
        for version in found:
            if len(kept) == self._keep:
                break
            model = await self._current_or_loaded(version, loaded.get(str(version.version)), anew)
            if model is not None:
                kept[model.version] = model
        return kept

    def _swap_in(self, name: str, kept: dict[str, ServedModel]) -> bool:
        """Serve these versions from now on; whether that is a change."""
        loaded = self._models.get(name, {})
        if list(kept.values()) == list(loaded.values()):
            return False
        if kept:
            self._models[name] = kept
        else:
            self._models.pop(name, None)
        for version_name in loaded.keys() - kept.keys():
            log.info("Unloaded %s version %s.", name, version_name)
        return True

    async def _current_or_loaded(
        self, found: FoundVersion, current: ServedModel | None, anew: bool
    ) -> ServedModel | None:
        key = (found.name, found.version)
        if current is not None and current.signature == found.signature and not anew:
            return current
        if key in self._failed and self._failed[key][0] == found.signature:
            return current
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(self._executor, self._load, found)
        except LoadError as error:
            self._failed[key] = (found.signature, str(error))
            log.error("Version %s of model %s is not served: %s.", found.version, found.name, error)
            return current
        self._failed.pop(key, None)
        log.info("Loaded %s version %s on %s.", model.name, model.version, model.session.provider)
        if model.session.fallback and cuda_is_built_in():  # else the server has said so, once
            log.warning("%s runs without CUDA: %s.", model.name, model.session.fallback)
        return model

    def _load(self, found: FoundVersion) -> ServedModel:
        card = read_card(found.folder / CARD_FILE)
        try:
            sha256 = file_sha256(found.folder / MODEL_FILE)
        except OSError as error:
            raise LoadError(f"cannot read {MODEL_FILE}: {error}") from error
        if card.sha256 and card.sha256 != sha256:
            raise LoadError(f"{MODEL_FILE} has SHA-256 {sha256}, its card says {card.sha256}")
        session = load_session(found.folder / MODEL_FILE, self._options)
        version = str(found.version)
        batcher = self._make_batcher(found.name, version, session)
        return ServedModel(found.name, version, card, sha256, session, batcher, found.signature)
