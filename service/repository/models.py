"""The loaded models, and how new versions replace old ones without losing a request.

Strategy: a new version is loaded and warmed up in a thread, and then takes over by one assignment
on the event loop; requests in flight keep the version that they started with. A version that fails
to load changes nothing but `failures`. It is tried again when its file changes, or when an operator
asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from service.core.batching import Batcher, Batching
from service.core.digits import DigitLayout, NotDigits, layout_of
from service.core.errors import InvalidArgument, ModelLoadError, ModelNotFound, Unavailable, excerpt
from service.repository.card import Card
from service.repository.card import content as card_content
from service.repository.card import read as read_card
from service.repository.triton_config import CONFIG_FILE, read_max_batch_size
from service.repository.versions import (
    CARD_FILE,
    MODEL_FILE,
    Signature,
    VersionOnDisk,
    file_sha256,
    parse_version,
    scan,
)
from service.runtime.session import Session, SessionOptions, cuda_is_built_in
from service.runtime.session import load as load_session

log = logging.getLogger(__name__)


class ServedModel(NamedTuple):
    """One loaded version of a model, ready to answer requests.

    `layout` says how it classifies digits; None if it does not, and `layout_problem` says why.
    """

    name: str
    version: str
    card: Card
    sha256: str
    session: Session
    batcher: Batcher
    signature: Signature
    layout: DigitLayout | None
    layout_problem: str


def declared_batching(card: Card, max_batch_size: int | None) -> Batching | None:
    """What a card and config.pbtxt declare together; None if neither says anything.

    Where they disagree, the one that forbids batching wins: that can only cost speed.
    """
    if card.batching is False:
        overrules = f", which overrules {CONFIG_FILE}" if max_batch_size else ""
        return Batching(False, f"off: declared in {CARD_FILE}{overrules}")
    if max_batch_size == 0:
        overrules = f", which overrules {CARD_FILE}" if card.batching else ""
        return Batching(False, f"off: max_batch_size is 0 in {CONFIG_FILE}{overrules}")
    if max_batch_size is not None:
        return Batching(True, f"declared in {CONFIG_FILE}", max_rows=max_batch_size)
    return Batching(True, f"declared in {CARD_FILE}") if card.batching else None


class IndexEntry(NamedTuple):
    """A version on disk: whether it is loaded, and if not, why."""

    name: str
    version: str
    ready: bool
    reason: str


class _Failure(NamedTuple):
    """Why the model file with this signature could not be loaded."""

    signature: Signature
    reason: str


class Repository:
    """The loaded versions of every model. Read and changed on one event loop only.

    `keep` is how many of the newest versions of a model stay loaded. `make_batcher` is called with
    the name and version of a model and its session, in a thread; `on_change` after versions were
    loaded or unloaded, or a failure was recorded or removed.
    """

    def __init__(
        self,
        root: Path,
        options: SessionOptions,
        *,
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
        self._failed: dict[tuple[str, int], _Failure] = {}
        self._root_error = ""
        self._unloaded: AbstractSet[str] = frozenset()
        self._loads: dict[str, int] = {}
        self._has_refreshed = False
        # Files of a version -> the result of their verification, which a reload need not repeat.
        self._verified: dict[object, Batching] = {}
        self._refreshing = asyncio.Lock()

    def get(self, name: str, version: str = "") -> ServedModel:
        """The named version of a model, by default the newest one.

        Raises ModelNotFound if it is not loaded, InvalidArgument if `version` is not a number.
        """
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(
                f"Model '{excerpt(name)}' is not loaded; "
                f"loaded are: {', '.join(self._models) or 'none'}."
            )
        if not version:
            return next(iter(versions.values()))
        if parse_version(version) is None:
            raise InvalidArgument(
                f"Version '{excerpt(version)}' is not a whole number from 1 to 10^18 - 1."
            )
        if version not in versions:
            raise ModelNotFound(
                f"Version {version} of model '{name}' is not loaded; "
                f"loaded are: {', '.join(versions)}."
            )
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """The loaded versions of a model, newest first; empty for a model that is not loaded."""
        return list(self._models.get(name, ()))

    @property
    def loaded(self) -> list[ServedModel]:
        """Every loaded version of every model."""
        return [model for versions in self._models.values() for model in versions.values()]

    @property
    def failures(self) -> Mapping[str, str]:
        """Why versions on disk are not served: `NAME/VERSION` (or the root) -> reason."""
        failures = {f"{name}/{number}": f.reason for (name, number), f in self._failed.items()}
        return failures | ({str(self._root): self._root_error} if self._root_error else {})

    async def index(self) -> list[IndexEntry]:
        """Every version on disk, by model, newest first.

        Raises Unavailable if the repository cannot be read.
        """
        try:
            on_disk = await self._scan()
        except OSError as error:
            raise Unavailable(f"The model repository cannot be read: {error}.") from error
        entries = []
        for version in (v for versions in on_disk.values() for v in versions):
            name, number = version.name, str(version.number)
            ready = number in self._models.get(name, ())
            failure = self._failed.get((name, version.number))
            reason = failure.reason if failure else ""
            if not ready and not reason:
                is_unloaded = name in self._unloaded
                reason = "unloaded" if is_unloaded else f"not among the newest {self._keep}"
            entries.append(IndexEntry(name=name, version=number, ready=ready, reason=reason))
        return entries

    async def card_of(self, name: str, version: str = "") -> bytes:
        """The file model.json of a loaded version, as it is now; `{}` if there is none.

        Raises what `get` does, and Unavailable if the file cannot be read.
        """
        served = self.get(name, version)
        path = self._root / served.name / served.version / CARD_FILE
        try:
            return await asyncio.get_running_loop().run_in_executor(None, card_content, path)
        except FileNotFoundError:
            return b"{}"
        except OSError as error:
            raise Unavailable(
                f"{CARD_FILE} of version {served.version} of '{excerpt(name)}' cannot be read: "
                f"{error}."
            ) from None

    async def check_known(self, name: str) -> None:
        """Raise ModelNotFound if a model is neither loaded nor on disk."""
        if name not in self._models and all(e.name != name for e in await self.index()):
            raise ModelNotFound(f"Model '{excerpt(name)}' is not in the repository.")

    async def refresh(self) -> None:
        """Bring the loaded models in line with the repository folder.

        Raises ProviderUnavailable only; any other error is recorded in `failures`.
        """
        async with self._refreshing:
            self._has_refreshed = True
            try:
                on_disk = await self._scan()
            except OSError as error:
                if not self._root_error:
                    log.error("The model repository %s cannot be read: %s.", self._root, error)
                self._root_error = str(error)
                return
            self._root_error = ""
            changed, failed_before = False, dict(self._failed)
            for name in sorted({*on_disk, *self._models}):
                versions = [] if name in self._unloaded else on_disk.get(name, [])
                changed |= await self._serve_newest(name, versions)
            # Deleting a broken version removes its failure.
            present = {(v.name, v.number) for versions in on_disk.values() for v in versions}
            self._failed = {key: why for key, why in self._failed.items() if key in present}
            if changed or self._failed != failed_before:
                self._on_change()

    async def follow(self, unloaded: AbstractSet[str], loads: Mapping[str, int]) -> None:
        """Keep the `unloaded` models out, and reload each model whose count in `loads` has grown.

        Requests that a model has accepted are answered even if it is unloaded. Raises, for the
        first model that cannot be loaded, ModelNotFound if it is not on disk and ModelLoadError if
        its newest version is broken; the versions of it that were loaded before stay loaded.
        """
        async with self._refreshing:
            for name, count in loads.items():
                is_requested = count > self._loads.get(name, 0) and name not in unloaded
                # Before the first refresh nothing is loaded; that refresh loads everything.
                if is_requested and self._has_refreshed:
                    await self._reload(name)
                self._loads[name] = count
            for name in unloaded - self._unloaded:
                await self._serve_newest(name, [])
            self._unloaded = unloaded
            self._on_change()

    async def _reload(self, name: str) -> None:
        try:
            versions = (await self._scan()).get(name, [])
        except OSError as error:
            raise ModelLoadError(f"The model repository cannot be read: {error}.") from error
        if not versions:
            raise ModelNotFound(f"Model '{excerpt(name)}' is not in the repository.")
        self._failed = {key: why for key, why in self._failed.items() if key[0] != name}
        await self._serve_newest(name, versions, reload=True)
        self._unloaded -= {name}

    async def _serve_newest(
        self, name: str, on_disk: list[VersionOnDisk], *, reload: bool = False
    ) -> bool:
        """Serve the newest versions of a model that load, at most `keep` of them.

        A version is loaded if it is new or its file has changed; with `reload`, in any case. Where
        loading fails, a version of the same number that is already loaded continues to serve.
        Returns whether the served versions changed. Raises ModelLoadError if the newest version
        fails to reload; the served versions then stay as they are.
        """
        served = self._models.get(name, {})
        newest: dict[str, ServedModel] = {}
        for version in on_disk:
            if len(newest) == self._keep:
                break
            key = (name, version.number)
            model = served.get(str(version.number))
            is_current = model is not None and model.signature == version.signature
            has_failed = key in self._failed and self._failed[key].signature == version.signature
            if not has_failed and (reload or not is_current):
                loop = asyncio.get_running_loop()
                try:
                    model = await loop.run_in_executor(self._executor, self._load, version)
                except ModelLoadError as error:
                    self._failed[key] = _Failure(version.signature, error.message)
                    log.error(
                        "Version %s of model %s is not served: %s.", version.number, name, error
                    )
                else:
                    self._failed.pop(key, None)
                    log.info(
                        "Loaded %s version %s on %s.", name, model.version, model.session.provider
                    )
                    log.info(
                        "Batching of %s version %s: %s.",
                        name,
                        model.version,
                        model.session.batching.reason,
                    )
                    # The server reports a build without CUDA once, when it starts.
                    if model.session.fallback and cuda_is_built_in():
                        log.warning("%s runs without CUDA: %s.", name, model.session.fallback)
            if model is not None:
                newest[model.version] = model

        if reload and (failure := self._failed.get((name, on_disk[0].number))):
            self._on_change()
            raise ModelLoadError(f"Version {on_disk[0].number} of '{name}': {failure.reason}.")
        if list(newest.values()) == list(served.values()):
            return False
        if newest:
            self._models[name] = newest
        else:
            self._models.pop(name, None)
        for number in served.keys() - newest.keys():
            log.info("Unloaded %s version %s.", name, number)
        return True

    def _load(self, version: VersionOnDisk) -> ServedModel:
        """Load one version, in a thread. Raises ModelLoadError, ProviderUnavailable."""
        card = read_card(version.folder / CARD_FILE)
        max_batch_size = read_max_batch_size(version.folder.parent / CONFIG_FILE)
        try:
            sha256 = file_sha256(version.folder / MODEL_FILE)
            # Weights in files of their own are not in that hash.
            beside = [f for f in version.folder.iterdir() if f.name not in (MODEL_FILE, CARD_FILE)]
            status = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in beside)
        except OSError as error:
            raise ModelLoadError(f"cannot read {MODEL_FILE}: {error}") from error
        if card.sha256 and card.sha256 != sha256:
            raise ModelLoadError(
                f"{MODEL_FILE} has SHA-256 {sha256}, but its card says {card.sha256}"
            )
        declared = declared_batching(card, max_batch_size)
        files = (sha256, *status)
        session = load_session(
            version.folder / MODEL_FILE, self._options, declared or self._verified.get(files)
        )
        if declared is None:
            self._verified[files] = session.batching
        layout, problem = None, ""
        try:
            kinds = [card.kind(output.name) for output in session.outputs]
            layout = layout_of(session.inputs, session.outputs, kinds)
        except NotDigits as error:
            problem = str(error)
        number = str(version.number)
        return ServedModel(
            name=version.name,
            version=number,
            card=card,
            sha256=sha256,
            session=session,
            batcher=self._make_batcher(version.name, number, session),
            signature=version.signature,
            layout=layout,
            layout_problem=problem,
        )

    async def _scan(self) -> dict[str, list[VersionOnDisk]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, scan, self._root)
