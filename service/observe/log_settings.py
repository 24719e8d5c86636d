"""Converts the log level to the protocol's log settings, and back.

Source: Triton's "Logging Extension". It switches three kinds of lines on and off one by one; here
they are thresholds, so that a kind is logged only if all more severe kinds are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from service.core.errors import InvalidArgument, Unimplemented, excerpt

LogSettings = dict[str, bool | int | str]
_SILENT = logging.CRITICAL + 10
_SWITCHES = {
    "log_error": logging.ERROR,
    "log_warning": logging.WARNING,
    "log_info": logging.INFO,
}


def settings_of(level: int) -> LogSettings:
    """The log settings that correspond to a level of the root logger."""
    switches = {name: level <= threshold for name, threshold in _SWITCHES.items()}
    verbose = int(level <= logging.DEBUG)
    return {"log_file": "", **switches, "log_verbose_level": verbose, "log_format": "default"}


def level_of(level: int, changes: Mapping[str, object], default: int) -> int:
    """The level that results from changes to the log settings of `level`.

    A change to None resets a setting to its value at the level `default`. Raises InvalidArgument
    for an unknown setting, a value of the wrong type and switches that contradict each other;
    Unimplemented for another file or format.
    """
    settings = settings_of(level)
    for name, value in changes.items():
        if name not in settings:
            raise InvalidArgument(
                f"'{excerpt(name)}' is not a log setting; they are {', '.join(settings)}."
            )
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
        new_level = logging.DEBUG
    else:
        thresholds = [threshold for name, threshold in _SWITCHES.items() if settings[name]]
        new_level = min(thresholds, default=_SILENT)
    for name, threshold in _SWITCHES.items():
        if settings[name] != (new_level <= threshold):
            raise InvalidArgument(
                f"{name}: warnings cannot be logged without errors, nor information and verbose "
                "lines without warnings."
            )
    return new_level
