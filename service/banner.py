"""What a person sees at a terminal when the server is ready: where to click, and what answers.

The supervisor has shown name and version before.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Sequence

from service.core.errors import excerpt
from service.http.routes import ROUTES
from service.repository.card import content
from service.repository.models import ServedModel
from service.runtime.session import BUILT_WITHOUT_CUDA, CUDA, cuda_is_built_in
from service.settings import Settings

_LABEL = 12  # columns
_MOST_MODELS = 4


def width() -> int:
    """Columns of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def banner(settings: Settings, models: Sequence[ServedModel], columns: int) -> list[str]:
    """The lines of the banner. `models` are the newest versions, the default model first."""
    host = f"[{settings.own_host}]" if ":" in settings.own_host else settings.own_host
    url = f"http{'s' if settings.has_tls else ''}://{host}:{settings.http_port}"
    rows = [("Playground" if settings.playground else "HTTP", f"{url}/")]
    if any(route.path == "/docs" for route in ROUTES):
        rows.append(("API", f"{url}/docs"))
    rows += [
        ("gRPC", f"{host}:{settings.grpc_port}{' with TLS' if settings.has_tls else ''}"),
        ("Metrics", f"{url}/metrics"),
    ]
    if settings.health_port:
        rows.append(("Health", f"http://{host}:{settings.health_port}/v2/health/ready"))
    if settings.host != settings.own_host:
        rows.append(("", "and on every other address of this machine"))
    rows += [("Model", _described(model)) for model in models[:_MOST_MODELS]]
    if not models:
        rows.append(("Model", f"none yet: mnist-train publishes one into {settings.models}"))
    if (more := len(models) - _MOST_MODELS) > 0:
        rows.append(("", f"and {more} more"))
    if models:
        rows.append(("Provider", _provider(settings, models[0])))
    rows.append(("Workers", str(settings.workers)))
    lines = [""]
    for label, text in rows:
        lines += textwrap.wrap(
            text,
            max(columns, 40),
            initial_indent=f"  {label:<{_LABEL}}",
            subsequent_indent=" " * (_LABEL + 2),
            break_on_hyphens=False,
            break_long_words=False,
        )
    return [*lines, "", "  Ctrl-C stops the server.", ""]


def _described(model: ServedModel) -> str:
    """The name and version of a model, and what its card says of its quality."""
    text = f"{excerpt(model.name)} version {model.version}"
    try:
        card = json.loads(content(model.card_file, model.model_file))
    except (OSError, ValueError):  # there is none; a card that cannot be read is not loaded
        return text
    accuracy = card.get("accuracy")
    if isinstance(accuracy, float) and 0 <= accuracy <= 1:
        text += f", {accuracy:.2%} of its test images right"
    return text


def _provider(settings: Settings, model: ServedModel) -> str:
    if model.session.provider == CUDA:
        return "CUDA"
    if settings.provider == "cpu":
        return "CPU, as the setting provider says"
    why = model.session.fallback if cuda_is_built_in() else BUILT_WITHOUT_CUDA.partition(";")[0]
    return f"CPU: {why}"
