from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.http.openapi.contracts import TAGS, Contract
from service.http.openapi.schemas import SCHEMAS
from service.http.routes import ROUTES

CONTRACTS: list[Contract] = [route.contract for route in ROUTES]


def references(value: Any) -> Iterator[str]:
    """The names of all schemas that a value refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix("#/components/schemas/").partition("/")[0]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from references(each)


def test_every_schema_is_used_and_exists() -> None:
    used = set(references([list(contract) for contract in CONTRACTS]))
    used |= set(references(SCHEMAS)) | {"Error"}
    assert used == SCHEMAS.keys()


def test_every_group_is_used() -> None:
    assert {contract.tag for contract in CONTRACTS} == set(TAGS)


def test_a_route_that_changes_nothing_takes_no_body() -> None:
    for route in ROUTES:
        assert not (route.method == "GET" and route.contract.body), route
