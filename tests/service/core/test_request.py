from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import InvalidArgument
from service.core.request import RegionSlice, region_of, scheduling_of, top_classes_of

NAME, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({}, None),
        ({"timeout": 0}, None),
        ({"timeout": 2_500_000, "mine": "x"}, 2.5),
        ({"priority": 3, "sequence_id": "s", "sequence_start": True}, None),
    ],
)
def test_timeout_is_in_microseconds(parameters: Any, seconds: float | None) -> None:
    assert scheduling_of(parameters)[0] == seconds


def test_parameters_without_effect_are_named_in_a_warning() -> None:
    assert scheduling_of({"priority": 0, "sequence_id": 0, "sequence_end": False})[1] == ""
    assert scheduling_of({"priority": 3, "mine": 1}) == (
        None,
        "priority: without effect; all requests are equal.",
    )
    warning = scheduling_of({"sequence_id": "s", "sequence_start": True, "timeout": 1})[1]
    assert warning.startswith("sequence_id, sequence_start: without effect; no model here keeps")


@pytest.mark.parametrize(
    "parameters",
    [
        {"timeout": -1},
        {"timeout": 1.5},
        {"timeout": True},
        {"timeout": "1"},
        {"priority": -1},
        {"sequence_id": 1.5},
        {"sequence_id": True},
        {"sequence_end": 1},
    ],
)
def test_parameter_of_the_wrong_type_is_rejected_by_name(parameters: Any) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(parameters))):
        scheduling_of(parameters)


def test_region_has_a_name_a_size_and_an_optional_offset() -> None:
    assert region_of("x", {}) is None
    assert region_of("x", {NAME: "r", SIZE: 5}) == RegionSlice("r", 0, 5)
    assert region_of("x", {NAME: "r", SIZE: 5, OFFSET: 7}) == RegionSlice("r", 7, 5)


@pytest.mark.parametrize(
    "parameters",
    [
        {NAME: 1, SIZE: 5},
        {NAME: "", SIZE: 5},
        {NAME: "r"},
        {NAME: "r", SIZE: 0},
        {NAME: "r", SIZE: 5.0},
        {NAME: "r", SIZE: 5, OFFSET: -1},
    ],
)
def test_incomplete_region_is_rejected(parameters: Any) -> None:
    with pytest.raises(InvalidArgument, match="x: shared_memory"):
        region_of("x", parameters)


def test_classification_is_a_whole_number() -> None:
    assert top_classes_of("x", {}) == 0
    assert top_classes_of("x", {"classification": 3}) == 3
    with pytest.raises(InvalidArgument, match="x: classification"):
        top_classes_of("x", {"classification": 1.0})
