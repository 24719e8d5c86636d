from __future__ import annotations

import logging
from typing import Any

import pytest

from service.core.errors import InvalidArgument, ServiceError, Unimplemented
from service.observe.log_settings import level_of, settings_of

LEVELS = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL + 10]


@pytest.mark.parametrize("level", LEVELS)
def test_the_settings_of_a_level_convert_back_to_it(level: int) -> None:
    for before in LEVELS:
        assert level_of(before, settings_of(level), logging.INFO) == level
    assert level_of(level, {}, logging.INFO) == level


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"log_info": False}, logging.WARNING),
        ({"log_info": False, "log_warning": False}, logging.ERROR),
        ({"log_verbose_level": 3}, logging.DEBUG),
        ({"log_format": "default", "log_file": ""}, logging.INFO),
        ({"log_info": False, "log_warning": None}, logging.WARNING),
    ],
)
def test_changes_move_the_threshold(changes: dict[str, Any], level: int) -> None:
    assert level_of(logging.INFO, changes, logging.INFO) == level


@pytest.mark.parametrize(
    ("changes", "kind", "name"),
    [
        ({"log_error": False}, InvalidArgument, "log_error"),
        ({"log_warning": False}, InvalidArgument, "log_warning"),
        ({"log_info": False, "log_verbose_level": 1}, InvalidArgument, "log_info"),
        ({"log_info": "no"}, InvalidArgument, "log_info"),
        ({"log_info": 0}, InvalidArgument, "log_info"),
        ({"log_verbose_level": True}, InvalidArgument, "log_verbose_level"),
        ({"log_level": 1}, InvalidArgument, "log_level"),
        ({"log_file": "/tmp/log"}, Unimplemented, "log_file"),
        ({"log_format": "ISO8601"}, Unimplemented, "log_format"),
    ],
)
def test_impossible_changes_are_refused_by_name(
    changes: dict[str, Any], kind: type[ServiceError], name: str
) -> None:
    with pytest.raises(kind, match=name):
        level_of(logging.INFO, changes, logging.INFO)
