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
from service.core.errors import InvalidArgument, ModelNotFound
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
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._executor, scan, self._root)
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

    async def _refresh_model(self, name: str, found: list[FoundVersion]) -> bool:
        loaded = self._models.get(name, {})
        kept: dict[str, ServedModel] = {}
        for version in found:
            if len(kept) == self._keep:
                break
            model = await self._current_or_loaded(version, loaded.get(str(version.version)))
            if model is not None:
                kept[model.version] = model
        if list(kept.values()) == list(loaded.values()):
            return False
        if kept:
            self._models[name] = kept
        else:
            del self._models[name]
        for version_name in loaded.keys() - kept.keys():
            log.info("Unloaded %s version %s.", name, version_name)
        return True

    async def _current_or_loaded(
        self, found: FoundVersion, current: ServedModel | None
    ) -> ServedModel | None:
        key = (found.name, found.version)
        if current is not None and current.signature == found.signature:
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
        if model.session.fallback:
            # A CPU-only build is what the extra 'cpu' is for; a CUDA build that fails is not.
            level = logging.WARNING if cuda_is_built_in() else logging.INFO
            log.log(level, "%s runs without CUDA: %s.", model.name, model.session.fallback)
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
