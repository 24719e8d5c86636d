"""The loaded models, and how new versions replace old ones without losing a request.

Strategy: a new version is loaded and warmed up in a thread, and then takes over by one assignment
on the event loop; requests in flight keep the version that they started with. A version that fails
to load changes nothing but `failures`. It is tried again when its file changes, or when an operator
asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from service.core.batching import Batcher, Batching
from service.core.classification.classifier import Classifier, NotAClassifier, classifier_of
from service.core.classification.pictures import PictureError
from service.core.digits import DIGIT_LABELS, OTHER_LABELS, DigitLayout, NotDigits, layout_of
from service.core.errors import (
    InvalidArgument,
    ModelLoadError,
    ModelNotFound,
    ProviderUnavailable,
    Unavailable,
    excerpt,
    is_used_up,
)
from service.repository.agreement import (
    declared_batching,
    ignored_by,
    labels_of,
    picture_rule,
    presented,
    unused_of,
)
from service.repository.card import Card
from service.repository.card import content as card_content
from service.repository.card import read as read_card
from service.repository.triton_config import (
    TritonConfig,
    TritonConfigs,
    VersionPolicy,
)
from service.repository.versions import (
    CONFIG_FILE,
    OnDisk,
    Signature,
    VersionOnDisk,
    digest_of_all,
    digests,
    external_weights,
    parse_version,
    printable,
    scan,
)
from service.repository.warm_up import samples
from service.runtime.presented import present
from service.runtime.session import Session, SessionOptions, cuda_is_built_in
from service.runtime.session import load as load_session
from service.runtime.trial import LARGEST_BYTES, HostError, Trial, Trials

log = logging.getLogger(__name__)


class ServedModel(NamedTuple):
    """One loaded version of a model, ready to answer requests.

    `config` is what config.pbtxt declares, `ignored` what it sets that has no effect on this model,
    `unused` what its card and labels say without effect, `labels` the names of classes by output.
    `layout` says how it classifies digits; None if it does not, and `layout_problem` says why.
    `classifier` says how it classifies anything else; None if it does not, or if its card does not
    say.
    """

    name: str
    version: str
    card: Card
    card_file: Path
    model_file: Path
    config: TritonConfig
    ignored: Sequence[str]
    unused: Sequence[str]
    labels: Mapping[str, Sequence[str]]
    sha256: str
    session: Session
    batcher: Batcher
    signature: Signature
    layout: DigitLayout | None
    layout_problem: str
    classifier: Classifier | None = None


class IndexEntry(NamedTuple):
    """A version on disk: whether it is loaded, and if not, why."""

    name: str
    version: str
    ready: bool
    reason: str


class _Failure(NamedTuple):
    """Why the model file with this signature could not be loaded.

    The signature is empty, and the version is tried again at the next refresh, if descriptors or
    memory were used up.
    """

    signature: Signature
    reason: str


class Repository:
    """The loaded versions of every model. Read and changed on one event loop only.

    `keep` is how many of the newest versions of a model stay loaded. `only` names the models to
    load without being asked by an operator; None stands for all. `make_batcher` is called with
    the name and version of a model and its session, in a thread; `on_change` after versions were
    loaded or unloaded, or a failure was recorded or removed. `trials` try models before they are
    loaded; None loads them untried.
    """

    def __init__(
        self,
        root: Path,
        options: SessionOptions,
        *,
        make_batcher: Callable[[str, str, Session], Batcher],
        executor: Executor,
        keep: int = 1,
        only: AbstractSet[str] | None = None,
        on_change: Callable[[], None] = lambda: None,
        trials: Trials | None = None,
    ) -> None:
        self._root = root
        self._options = options
        self._make_batcher = make_batcher
        self._executor = executor
        self._keep = keep
        self._only = only
        self._on_disk: AbstractSet[str] = frozenset()  # names of models, as of the last refresh
        self._on_change = on_change
        # name -> version -> model, newest version first
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._failed: dict[tuple[str, int], _Failure] = {}
        self._unservable: Mapping[tuple[str, str], str] = {}
        self._root_error = ""
        self._unloaded: AbstractSet[str] = frozenset()
        self._loads: dict[str, int] = {}
        self._has_refreshed = False
        # SHA-256 of a version -> the result of their verification, which a reload need not repeat.
        self._verified: dict[str, Batching] = {}
        self._refreshing = asyncio.Lock()
        self._configs = TritonConfigs()
        self._trials = trials

    def get(self, name: str, version: str = "") -> ServedModel:
        """The named version of a model, by default the newest one.

        Raises ModelNotFound if it is not loaded, InvalidArgument if `version` is not a number.
        """
        versions = self._models.get(name)
        if versions is None:
            # The first words, here and below, are those that Triton's clients look for.
            problem = "has no available versions" if name in self._on_disk else "is not found"
            raise ModelNotFound(
                f"Request for unknown model: '{excerpt(name)}' {problem}; "
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
                f"Request for unknown model: '{name}' version {version} is not found; "
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
    def wanted(self) -> set[str]:
        """The models to serve: those asked for, without those that an operator unloaded."""
        return self._wanted(self._on_disk)

    def _wanted(self, on_disk: AbstractSet[str]) -> set[str]:
        asked = on_disk if self._only is None else {*self._only, *self._loads}
        return {*asked} - self._unloaded

    @property
    def is_empty(self) -> bool:
        """Whether all models are to be loaded, but there was none at the last refresh."""
        return self._only is None and not self._on_disk

    @property
    def failures(self) -> Mapping[str, str]:
        """Why versions on disk are not served: `NAME/VERSION` (or the root) -> reason."""
        failures = {f"{name}/{number}": f.reason for (name, number), f in self._failed.items()}
        return failures | (
            {printable(str(self._root)): self._root_error} if self._root_error else {}
        )

    @property
    def unservable(self) -> Mapping[tuple[str, str], str]:
        """What was in the repository at the last refresh but cannot be a model, as in `OnDisk`."""
        return self._unservable

    async def index(self) -> list[IndexEntry]:
        """Every version on disk, by model, newest first, and what is there but cannot be served.

        Raises Unavailable if the repository cannot be read.
        """
        try:
            on_disk = await self._scan()
        except OSError as error:
            raise Unavailable(f"The model repository cannot be read: {error}.") from error
        entries = []
        for rank, version in (each for v in on_disk.models.values() for each in enumerate(v)):
            name, number = version.name, str(version.number)
            ready = number in self._models.get(name, ())
            failure = self._failed.get((name, version.number))
            reason = failure.reason if failure else ""
            if not ready and not reason:
                if name in self._unloaded:
                    reason = "unloaded"
                elif name not in self._models and self._only is not None:
                    reason = "not loaded: neither load_model nor a client asks for it"
                elif not self._policy(version).selects(version.number):
                    reason = f"not among the versions of version_policy in {CONFIG_FILE}"
                elif rank < self._policy(version).latest:
                    reason = "it has not been loaded so far"
                else:
                    reason = f"not among the newest {self._policy(version).latest}"
            entries.append(IndexEntry(name=name, version=number, ready=ready, reason=reason))
        for (name, number), reason in on_disk.unservable.items():
            entries.append(IndexEntry(name=name, version=number, ready=False, reason=reason))
        return entries

    async def card_of(self, name: str, version: str = "") -> bytes:
        """The file model.json of a loaded version, as it is now; `{}` if there is none.

        Raises what `get` does, and Unavailable if the file cannot be read.
        """
        served = self.get(name, version)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                None, card_content, served.card_file, served.model_file
            )
        except FileNotFoundError:
            return b"{}"
        except OSError as error:
            raise Unavailable(
                f"{served.card_file.name} of version {served.version} of '{excerpt(name)}' cannot "
                f"be read: {error}."
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
                # That descriptors are used up is logged by `Service.watch_descriptors`.
                if not self._root_error and error.errno not in (errno.EMFILE, errno.ENFILE):
                    log.error("The model repository %s cannot be read: %s.", self._root, error)
                self._root_error = printable(str(error))
                return
            self._root_error = ""
            changed, failed_before = False, dict(self._failed)
            self._log_unservable(on_disk)
            wanted = self._wanted(on_disk.models.keys())
            unreadable = self._models.keys() & on_disk.unreadable  # they stay as they are
            try:
                for name in sorted({*on_disk.models, *self._models} - unreadable):
                    versions = on_disk.models.get(name, []) if name in wanted else []
                    changed |= await self._serve_newest(name, versions)
            finally:
                await self._end_trials()
            self._on_disk = on_disk.models.keys() | unreadable
            # Deleting a broken version removes its failure.
            present = {
                (v.name, v.number)
                for versions in on_disk.models.values()
                for v in versions
                if self._policy(v).selects(v.number)
            }
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
            on_disk = await self._scan()
        except OSError as error:
            error_type = Unavailable if is_used_up(error) else ModelLoadError
            raise error_type(
                f"failed to load '{excerpt(name)}', failed to poll from model repository: {error}."
            ) from error
        versions = on_disk.models.get(name, [])
        if not versions:
            reasons = [
                f"version {number}: {reason}" if number else reason
                for (model, number), reason in on_disk.unservable.items()
                if model == name
            ]
            kind = ModelLoadError if reasons else ModelNotFound
            raise kind(
                f"failed to load '{excerpt(name)}', failed to poll from model repository: "
                f"{reasons[0] if reasons else 'it has no version there'}."
            )
        self._on_disk = {*self._on_disk, name}
        self._failed = {key: why for key, why in self._failed.items() if key[0] != name}
        try:
            await self._serve_newest(name, versions, reload=True)
        finally:
            await self._end_trials()
        self._unloaded -= {name}

    async def _serve_newest(
        self, name: str, on_disk: list[VersionOnDisk], *, reload: bool = False
    ) -> bool:
        """Serve the newest versions of a model that load and that its version policy selects.

        A version is loaded if it is new or its file has changed; with `reload`, in any case. Where
        loading fails, a version of the same number that is already loaded continues to serve.
        Returns whether the served versions changed. Raises ModelLoadError if the newest version
        fails to reload; the served versions then stay as they are.
        """
        served = self._models.get(name, {})
        newest: dict[str, ServedModel] = {}
        policy = self._policy(on_disk[0]) if on_disk else VersionPolicy()
        selected = [version for version in on_disk if policy.selects(version.number)]
        has_warned = False
        for version in selected:
            if len(newest) == policy.latest:
                break
            key = (name, version.number)
            model = served.get(str(version.number))
            is_current = model is not None and model.signature == version.signature
            has_failed = key in self._failed and self._failed[key].signature == version.signature
            if not has_failed and (reload or not is_current):
                if loaded := await self._try_to_load(version, reload):
                    self._log_loaded(loaded, () if has_warned else on_disk)
                    has_warned = True
                model = loaded or model
            if model is not None:
                newest[model.version] = model

        if reload and not selected:
            raise ModelLoadError(
                f"failed to load '{name}', no version is available: none on disk is among those "
                f"of version_policy in {CONFIG_FILE}."
            )
        if reload and (failure := self._failed.get((name, selected[0].number))):
            self._on_change()
            raise ModelLoadError(
                f"failed to load '{name}', versions that are not available: {selected[0].number} "
                f"({failure.reason})."
            )
        if list(newest.values()) == list(served.values()):
            return False
        if newest:
            self._models[name] = newest
        else:
            self._models.pop(name, None)
        for number in served.keys() - newest.keys():
            log.info("Unloaded %s version %s.", name, number)
        return True

    async def _try_to_load(self, version: VersionOnDisk, again: bool) -> ServedModel | None:
        """Load a version; None if that fails, which is logged and kept in `failures`."""
        key, loop = (version.name, version.number), asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(self._executor, self._load, version, again)
        except ModelLoadError as error:
            # Answers hold the reason, and it may quote the name of a file.
            failure = _Failure(version.signature, printable(error.message))
            if is_used_up(error):
                failure = failure._replace(signature=())
            if self._failed.get(key) != failure:
                log.error("Version %s of model %s is not served: %s.", *reversed(key), error)
            self._failed[key] = failure
            return None
        self._failed.pop(key, None)
        return model

    def _log_loaded(self, model: ServedModel, on_disk: Sequence[VersionOnDisk]) -> None:
        """Log a loaded version and, with those on disk, what its config.pbtxt sets in vain."""
        session, name = model.session, model.name
        log.info("Loaded %s version %s on %s.", name, model.version, session.provider)
        log.info("Batching of %s version %s: %s.", name, model.version, session.batching.reason)
        # The server reports a build without CUDA once, when it starts.
        if session.fallback and cuda_is_built_in():
            log.warning("%s runs without CUDA: %s.", name, session.fallback)
        if session.warm_up_error:
            log.warning(
                "The warm-up of %s version %s failed, but the model is served: %s. Sample inputs "
                "for it belong into warm_up of model.json or model_warmup of config.pbtxt.",
                name,
                model.version,
                session.warm_up_error.rstrip("."),
            )
        if model.unused:
            log.warning(
                "%s version %s makes no use of %s.",
                name,
                model.version,
                "; ".join(model.unused),
            )
        if not on_disk:
            return
        policy, present = self._policy(on_disk[0]), {version.number for version in on_disk}
        missing = [f"version {n} (not on disk)" for n in policy.specific if n not in present]
        if ignored := [*model.ignored, *missing]:
            log.warning(
                "%s of model %s sets what has no effect here: %s.",
                CONFIG_FILE,
                name,
                ", ".join(ignored),
            )

    def _log_unservable(self, on_disk: OnDisk) -> None:
        """Log once what is in the repository but cannot be served."""
        for (name, number), reason in on_disk.unservable.items():
            if self._unservable.get((name, number)) != reason:
                place = f"{name}/{number}" if number else name
                log.warning("%s in the model repository is not served: %s.", place, reason)
        self._unservable = on_disk.unservable

    def _policy(self, version: VersionOnDisk) -> VersionPolicy:
        """Which versions of the model of `version` are served."""
        return version.config.version_policy or VersionPolicy(latest=self._keep)

    async def _end_trials(self) -> None:
        if self._trials is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, self._trials.close)

    def _load(self, version: VersionOnDisk, again: bool) -> ServedModel:
        """Load one version, in a thread; `again` if an operator asks for it.

        Raises ModelLoadError, ProviderUnavailable.
        """
        try:
            return self._model_of(version, again)
        except (ModelLoadError, ProviderUnavailable):
            raise
        except OSError as error:
            raise ModelLoadError(f"loading it failed: {error}") from error
        except Exception as error:  # one model must not take the others down
            log.exception("Loading %s version %s failed.", version.name, version.number)
            raise ModelLoadError(f"loading it failed: {error!r}") from error

    def _model_of(self, version: VersionOnDisk, again: bool) -> ServedModel:
        """Load one version. Raises ModelLoadError, ProviderUnavailable, or any other error."""
        config, file, folder = version.config, version.file, version.model_folder
        if config.problem:
            raise ModelLoadError(config.problem)
        card = read_card(version.card, file)
        declared = declared_batching(card, config)
        weights = external_weights(version)
        try:
            by_file = digests(version)
        except OSError as error:
            raise ModelLoadError(f"cannot read {error.filename or file.name}: {error}") from error
        uncovered = card.check_digests(str(file.relative_to(version.folder)), by_file)
        if unchecked := [name for name in uncovered if name in weights]:
            log.warning(
                "The card of %s version %s has the SHA-256 of %s alone; as an object, sha256 has "
                "that of %s too.",
                version.name,
                version.number,
                file.name,
                ", ".join(unchecked),
            )
        sha256 = digest_of_all(by_file)
        options = self._options
        if config.intra_op_threads:
            options = options._replace(intra_op_threads=config.intra_op_threads)
        first_runs = [*card.samples, *samples(config, folder)]
        trial = Trial(sha256, file, options, declared, first_runs)
        session = self._session_of(version, trial, card, again)
        session.batching = session.batching._replace(queue=config.queue)
        rows = config.max_batch_size
        present(
            session,
            presented(
                config.inputs, session.inputs, rows, are_inputs=True, defaults=session.defaults
            ),
            presented(config.outputs, session.outputs, rows, are_inputs=False),
        )
        labels = labels_of(card, config, session.outputs, folder)
        layout, classifier, problem = None, None, OTHER_LABELS
        kinds = [card.kind(output.name) for output in session.outputs]
        tensors = session.inputs, session.outputs, kinds
        if card.picture is None and card.labels in ((), DIGIT_LABELS):
            try:
                layout = layout_of(*tensors, version.name)
            except NotDigits as error:
                problem = str(error)
        if layout is None:
            try:
                rule = picture_rule(card, config, session.inputs)
                classifier = classifier_of(*tensors, labels, rule)
            except NotAClassifier as error:
                problem = str(error)
            except PictureError as error:
                raise ModelLoadError(f"{version.card}: {error}") from error
        number = str(version.number)
        return ServedModel(
            name=version.name,
            version=number,
            card=card,
            card_file=version.card,
            model_file=file,
            config=config,
            ignored=[*config.ignored, *ignored_by(session, config)],
            unused=[*session.unserved, *unused_of(card, labels, session.outputs)],
            labels=labels,
            sha256=sha256,
            session=session,
            batcher=self._make_batcher(version.name, number, session),
            signature=version.signature,
            layout=layout,
            layout_problem=problem,
            classifier=classifier,
        )

    def _session_of(self, version: VersionOnDisk, trial: Trial, card: Card, again: bool) -> Session:
        """The session of a version, which is tried first unless it is large or our own export."""
        sha256, declared, trials = trial.sha256, trial.batching, self._trials
        batching = declared or self._verified.get(sha256)
        size = sum(file.stat().st_size for file in version.files)
        if trials is not None and not card.is_export and size <= LARGEST_BYTES:
            try:
                batching = trials.batching(trial, again=again)
            except HostError as error:
                log.warning(
                    "%s version %s is loaded untried: %s.", version.name, version.number, error
                )
        with trials.marked(sha256, again=again) if trials else contextlib.nullcontext():
            session = load_session(trial.path, trial.options, batching, trial.samples)
        if declared is None:
            self._verified[sha256] = session.batching
        return session

    async def _scan(self) -> OnDisk:
        loop = asyncio.get_running_loop()
        on_disk = await loop.run_in_executor(self._executor, scan, self._root, self._configs)
        reasons = {key: printable(reason) for key, reason in on_disk.unservable.items()}
        return on_disk._replace(unservable=reasons)
