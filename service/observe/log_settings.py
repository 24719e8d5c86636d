"""The log level as the protocol's log settings, and back.

Source: Triton's "Logging Extension". Its switches for three kinds of lines are thresholds here: a
kind is written only if all kinds more severe are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from service.core.errors import InvalidArgument, Unimplemented

LogSettings = dict[str, bool | int | str]
_NOTHING = logging.CRITICAL + 10
_SWITCHES = {
    "log_error": logging.ERROR,
    "log_warning": logging.WARNING,
    "log_info": logging.INFO,
}


def settings_of(level: int) -> LogSettings:
    """The settings that a level of the root logger stands for."""
    switches = {name: level <= least for name, least in _SWITCHES.items()}
    verbose = int(level <= logging.DEBUG)
    return {"log_file": "", **switches, "log_verbose_level": verbose, "log_format": "default"}


def level_of(level: int, changes: Mapping[str, object], default: int) -> int:
    """The level after changes to the settings that `level` stands for.

    A change to None sets a setting back to what it is at the level `default`.
    Raises InvalidArgument for an unknown setting, a value of the wrong type and switches that
    contradict each other; Unimplemented for another file or format.
    """
    settings = settings_of(level)
    for name, value in changes.items():
        if name not in settings:
            raise InvalidArgument(f"'{name}' is not a log setting; they are {', '.join(settings)}.")
        if value is None:
            value = settings_of(default)[name]  # noqa: PLW2901
        if type(value) is not type(settings[name]):
            kind = type(settings[name]).__name__
            raise InvalidArgument(f"{name}: must be of type {kind}.")
        if type(value) is int and value < 0:
            raise InvalidArgument(f"{name}: must be a whole number from 0 up.")
        if isinstance(value, str) and value != settings[name]:
            raise Unimplemented(f"{name}: cannot be changed; the log goes to standard error.")
        assert isinstance(value, bool | int | str)
        settings[name] = value
    if settings["log_verbose_level"]:
        wanted = logging.DEBUG
    else:
        on = [least for name, least in _SWITCHES.items() if settings[name]]
        wanted = min(on, default=_NOTHING)
    for name, least in _SWITCHES.items():
        if settings[name] != (wanted <= least):
            raise InvalidArgument(
                f"{name}: errors are always logged with warnings, and warnings with information "
                "and verbose lines."
            )
    return wanted
