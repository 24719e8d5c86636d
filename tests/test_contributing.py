"""docs/CONTRIBUTING.md against the tree: "to add X, edit Y" names places that exist."""

from __future__ import annotations

import re

from service.core.datatypes import BYTES, DTYPES
from service.runtime.ort_values import _DATATYPES
from tests.conftest import ROOT

CONTRIBUTING = (ROOT / "docs" / "CONTRIBUTING.md").read_text()
KINDS = [
    "a datatype",
    "a route",
    "a recipe knob",
    "an execution provider",
    "an error",
    "a metric",
    "a field of the model card",
    "an augmentation",
    "a setting",
    "a gRPC method",
]
# `NAME` in `PATH`, or `NAME` and `NAME` in `PATH`.
_PLACES = re.compile(r"(?:`(\w+)` and )?`(\w+)` in `([\w./-]+)`")


def section(title: str) -> str:
    """The text of one section of the document."""
    return CONTRIBUTING.split(f"## {title}\n")[1].split("\n## ")[0]


def rows() -> dict[str, tuple[str, str]]:
    """Kind of change -> its cells "edit" and "its tests"."""
    lines = [line for line in section("To add X, edit Y").splitlines() if line.startswith("| a")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {kind: (edit, tests) for kind, edit, tests in cells}


def defines(path: str, name: str) -> bool:
    """Whether a Python file defines a name; whether another file has it as a word."""
    text = (ROOT / path).read_text()
    if not path.endswith(".py"):
        return re.search(rf"\b{name}\b", text) is not None
    return (
        re.search(rf"^\s*((async )?def|class) {name}\b|^\s*{name}\s*[:=]", text, re.M) is not None
    )


def test_the_table_has_ten_kinds_of_change() -> None:
    assert list(rows()) == KINDS


def test_every_file_of_the_table_exists_and_defines_the_name_beside_it() -> None:
    missing = []
    for kind, (edit, _) in rows().items():
        places = _PLACES.findall(edit)
        assert places, kind
        for *names, path in places:
            if not (ROOT / path).exists():
                missing.append(f"{kind}: {path}")
            else:
                missing += [f"{kind}: {n} in {path}" for n in names if n and not defines(path, n)]
    assert missing == []


def test_every_test_file_of_the_table_exists() -> None:
    paths = {path for _, tests in rows().values() for path in re.findall(r"`([^`]+)`", tests)}
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_path_of_the_map_and_of_the_reading_order_exists() -> None:
    text = section("The map of the code") + section("Reading order")
    paths = set(
        re.findall(r"`((?:service|training|clients|proto|models|deploy|tests)/[\w./-]*)`", text)
    )
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_file_to_read_first_is_in_the_folder_of_its_row() -> None:
    lines = [line for line in section("The map of the code").splitlines() if "/`" in line]
    assert len(lines) > 12
    for line in lines:
        _, folder_cell, _, file_cell, _ = line.split("|")
        folders = [ROOT / path for path in re.findall(r"`([^`]+)`", folder_cell)]
        files = re.findall(r"`([^`]+)`", file_cell)
        links = re.findall(r"\]\(([^)]+)\)", file_cell)
        assert files or links, line
        for file in files:
            places = [place / file for folder in folders for place in (folder, folder.parent)]
            assert any(place.exists() for place in places), f"{file} of {line}"


def test_every_datatype_has_its_line_in_each_place_that_the_table_names() -> None:
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    # Not the stub: tritonclient, in other tests of this process, defines the same messages.
    proto = (ROOT / "proto" / "inference" / "model_config.proto").read_text()
    for datatype in DTYPES:
        assert datatype in _DATATYPES.values()
        name = "STRING" if datatype == BYTES else datatype
        assert f"  TYPE_{name} = " in proto
        assert re.search(rf"^\| .*\b{datatype}\b.* \| supported", protocol, re.M), datatype
