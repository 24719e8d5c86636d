"""The models as the server would load them, and the execution provider that runs them.

The check composes the same `Service` as a worker and refreshes its repository, so that a model
fails here exactly if it fails there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.check.finding import Finding, error, ok, warning
from service.core.errors import ProviderUnavailable, Unavailable
from service.operations.inference import Readiness
from service.repository.models import Repository, ServedModel
from service.repository.versions import CONFIG_FILE, printable
from service.runtime import cuda
from service.runtime.session import BUILT_WITHOUT_CUDA, CUDA, cuda_is_built_in
from service.settings import Settings
from service.worker import Service

_MOST_SHOWN = 8  # models that load; broken ones are all shown
_CARD_LOG = "service.repository.card"


class Models(NamedTuple):
    """What a worker would have after its start; `provider_error` is why it would not start.

    `late` are the models, in this order, that were not loaded in the time for it.
    """

    repository: Repository
    readiness: Readiness
    provider_error: str
    card_warnings: list[str]
    late: list[str]

    @property
    def files(self) -> list[Path]:
        return [model.model_file for model in self.repository.loaded]

    @property
    def total_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


class _Kept(logging.Handler):
    """Keeps the warnings about cards, and prints no others: all else has findings of its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _CARD_LOG:
            self.messages.append(record.getMessage())


def load_models(settings: Settings, seconds: float | None = None) -> Models:
    """Load all models that a worker would load, or as many as it can in these seconds.

    The load of a model cannot be interrupted: if some are late, only os._exit ends the process.
    """
    kept = _Kept()
    logging.getLogger().addHandler(kept)

    async def refresh() -> Models:
        service, provider_error, late = Service(settings), "", []
        models = service.repository
        try:
            await asyncio.wait_for(models.refresh(), seconds)
        except ProviderUnavailable as unavailable:
            provider_error = str(unavailable)
        except TimeoutError:
            late = await _unfinished(models, seconds) or [str(settings.models)]
        return Models(models, service.inference.readiness(), provider_error, kept.messages, late)

    try:
        return asyncio.run(refresh())
    finally:
        logging.getLogger().removeHandler(kept)


async def _unfinished(models: Repository, seconds: float | None) -> list[str]:
    """The models that are neither loaded nor known to be broken; none if the disk is too slow."""
    try:
        entries = await asyncio.wait_for(models.index(), seconds)
    except (TimeoutError, Unavailable):
        return []
    loaded = {model.name for model in models.loaded}
    unknown = [each.name for each in entries if not each.ready and not each.reason]
    return [name for name in dict.fromkeys(unknown) if name not in loaded]


def provider(settings: Settings, models: Models) -> Finding:
    """Which execution provider runs the models, and why it is not CUDA."""
    if models.provider_error:
        reason = models.provider_error.partition("; install")[0].rstrip(".")
        return error(
            "provider",
            f"The setting provider is cuda, which does not work: {reason}.",
            "Install the extra 'gpu' instead of 'cpu' on a machine with an NVIDIA driver, or set "
            "provider to auto (CUDA if it works) or cpu.",
        )
    loaded = models.repository.loaded
    on_cuda = [model for model in loaded if model.session.provider == CUDA]
    if settings.provider == "cpu":
        return ok("provider", "CPU, as the setting provider says.")
    if on_cuda and len(on_cuda) == len(loaded):
        return ok("provider", "CUDA.")
    if not cuda_is_built_in():
        if missing := cuda.missing_device():
            return ok("provider", f"CPU: {BUILT_WITHOUT_CUDA.partition(';')[0]}; {missing}.")
        return warning(
            "provider",
            "Models run on the CPU although the NVIDIA driver shows a device: "
            f"{BUILT_WITHOUT_CUDA.partition(';')[0]}.",
            "Install the extra 'gpu' instead of 'cpu', or set provider to cpu.",
        )
    reasons = {model.session.fallback for model in loaded if model.session.fallback}
    reason = min(reasons, default=cuda.missing_device() or "no model is loaded").rstrip(".")
    return warning(
        "provider",
        f"Models run on the CPU although onnxruntime-gpu is installed: {reason}.",
        "Correct this, or set provider to cpu (the extra 'cpu' is enough for that). With provider "
        "cuda the server refuses to start on the CPU.",
    )


def repository(settings: Settings, models: Models) -> Iterator[Finding]:
    """Each version that is not served as it is meant to be, then those that are."""
    root = settings.models
    if models.late:
        more = len(models.late) - _MOST_SHOWN
        yield warning(
            "models",
            f"Not examined, since they did not load within {settings.check_seconds:g} s "
            f"(check_seconds): {', '.join(models.late[:_MOST_SHOWN])}"
            f"{f' and {more} more' if more > 0 else ''}.",
            "Give it more time: --check-seconds 60.",
        )
    elif not models.readiness.ready and not models.provider_error:
        yield error(
            "models",
            f"The server would not be ready: {models.readiness.reason}",
            f"Correct what is not served, publish a version into {root.resolve()} (mnist-train "
            "does), or set models or model.",
        )
    loaded = models.repository.loaded
    names = list(dict.fromkeys(model.name for model in loaded))
    known = [*names, *models.late]
    if names and settings.model not in known and settings.model != "mnist":
        yield warning(
            "models",
            f"The default model '{settings.model}' is not among those that load: "
            f"{', '.join(names[:_MOST_SHOWN])}.",
            "Set model to one of them; requests that name no model would get an error.",
        )
    for place, reason in models.repository.failures.items():
        yield warning(f"model {place}", f"It is not served: {reason.rstrip('.')}.", _remedy(reason))
    for (name, number), reason in models.repository.unservable.items():
        place = f"{name}/{number}" if number else name
        yield warning(
            f"model {place}",
            f"It is not served: {printable(reason)}.",
            "Correct the folder, or move it out of the repository.",
        )
    for message in models.card_warnings:
        yield warning("model.json", message, "Correct the name of the field.")
    for model in loaded:
        yield from _served(model)
    for name in names[:_MOST_SHOWN]:
        versions = [model for model in loaded if model.name == name]
        has_digest = all(model.card.sha256 or model.card.file_sha256 for model in versions)
        yield ok(
            f"model {name}",
            f"{'Version' if len(versions) == 1 else 'Versions'} "
            f"{', '.join(model.version for model in versions)}; "
            + ("the files are those of the card." if has_digest else "no SHA-256 in model.json."),
        )
    if len(names) > _MOST_SHOWN:
        yield ok("models", f"{len(names) - _MOST_SHOWN} more models load.")


def _served(model: ServedModel) -> Iterator[Finding]:
    """What a version that loads does not do as it was meant to."""
    subject = f"model {model.name}/{model.version}"
    if model.ignored:
        yield warning(
            subject,
            f"{CONFIG_FILE} sets what has no effect here: {', '.join(model.ignored)}.",
            "Remove these fields; docs/models.md says what each field does.",
        )
    if model.session.warm_up_error:
        yield warning(
            subject,
            f"Its warm-up fails: {model.session.warm_up_error.rstrip('.')}.",
            "Add sample inputs as warm_up of model.json, or model_warmup of config.pbtxt.",
        )


def _remedy(reason: str) -> str:
    if "SHA-256" in reason:
        return (
            "The files are damaged, or not those that were published: copy the version again, or "
            "correct sha256 of model.json."
        )
    if "needs the locale" in reason:
        return "Install the locale; the images of this project have en_US.UTF-8 and C.UTF-8."
    if CONFIG_FILE in reason:
        return f"Correct {CONFIG_FILE}; docs/models.md lists its fields."
    return "Correct the version, or delete its folder."
