"""The protos against those of the last release: old clients keep working, in bytes and in code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.proto.__main__ import PROTO, RELEASED, breaks, keep

SEED = """syntax = "proto3";
package seed.v1;

service Reader {
  rpc Read(Ask) returns (Answer);
  rpc All(stream Ask) returns (stream Answer);
}

message Ask {
  reserved 7 to 9;
  reserved "size";
  string model = 1;
  repeated uint32 pixels = 2;
  optional bool explain = 3;
  oneof input {
    bytes image = 4;
    bytes raw = 5;
  }
  Kind kind = 6;
  Page page = 10;
}

message Answer {
  map<string, string> properties = 1;
}

message Page {}

message Note {}

enum Kind {
  KIND_UNSPECIFIED = 0;
  KIND_DIGIT = 1;
  reserved 5;
}

enum Unit {
  UNIT_UNSPECIFIED = 0;
}
"""
# Kind of break: what is replaced, by what, and what the sentences say, each with its name.
BREAKS = {
    "a package is renamed": ("seed.v1;", "seed.v2;", ['package "seed.v1" was deleted', "changed"]),
    "a message is renamed": ("message Note", "message Word", ['message "Note" was deleted']),
    "a field is deleted": ("  string model = 1;\n", "", ['field "1" with name "model".*deleted']),
    "a field is renamed": ("string model", "string net", ["json_name", '"model" to "net"']),
    "a field gets another number": ("explain = 3", "explain = 12", ['"explain".*was deleted']),
    "a field gets another type": ("uint32 pixels", "int64 pixels", ['"uint32" to "int64"']),
    "an enum becomes a number": ("Kind kind", "uint32 kind", ['"kind".*"enum" to "uint32"']),
    "a message becomes another": ("Page page", "Answer page", ['"page".*"seed.v1.Page"']),
    "a list becomes one value": ("repeated uint32", "uint32", ['cardinality from "repeated"']),
    "a field loses its presence": ("optional bool", "bool", ["from.*explicit presence"]),
    "a field is named otherwise in JSON": (
        "explain = 3",
        'explain = 3 [json_name = "why"]',
        ['"json_name" from "explain" to "why"'],
    ),
    "a field leaves its oneof": (
        "    bytes raw = 5;\n  }\n",
        "  }\n  bytes raw = 5;\n",
        ['"raw".*presence', '"raw".*outside a oneof'],
    ),
    "a oneof is renamed": ("oneof input", "oneof source", ['"image"', '"raw"', 'oneof "input"']),
    "a map holds another type": (", string>", ", bytes>", ['"value".*"string" to "bytes"']),
    "an enum is renamed": ("enum Unit", "enum Measure", ['enum "Unit" was deleted']),
    "an enum value is deleted": ("  KIND_DIGIT = 1;\n", "", ['"1" on enum "Kind" was deleted']),
    "an enum value is renamed": ("KIND_DIGIT", "KIND_TEXT", ['"KIND_DIGIT" to "KIND_TEXT"']),
    "an enum value gets another number": ("DIGIT = 1", "DIGIT = 2", ['"Kind" was deleted']),
    "a service is renamed": ("service Reader", "service Eye", ['service "Reader" was deleted']),
    "a method is deleted": ("  rpc Read(Ask) returns (Answer);\n", "", ['RPC "Read".*deleted']),
    "a request gets another type": ("Read(Ask)", "Read(Page)", ['request.*"seed.v1.Ask"']),
    "an answer gets another type": (
        "(Ask) returns (Answer)",
        "(Ask) returns (Page)",
        ['response.*"seed.v1.Answer"'],
    ),
    "requests are no stream any more": ("stream Ask", "Ask", ['"All".*client streaming']),
    "answers are no stream any more": ("stream Answer", "Answer", ['"All".*server streaming']),
    "a reserved range shrinks": ("7 to 9", "7 to 8", ['reserved range "\\[7,9\\]"']),
    "a reserved name is forgotten": ('  reserved "size";\n', "", ['reserved name "size"']),
    "a reserved value of an enum is forgotten": (
        "  reserved 5;\n",
        "",
        ["Kind.*reserved|reserved"],
    ),
}
# Changes after which old clients keep working.
COMPATIBLE = {
    "a method": ("service Reader {", "service Reader { rpc New(Ask) returns (Answer);"),
    "a field": ("message Answer {", "message Answer { string text = 2;"),
    "a message": ("message Answer {", "message New {}\n\nmessage Answer {"),
    "an enum value": ("KIND_DIGIT = 1;", "KIND_DIGIT = 1; KIND_LETTER = 2;"),
    "a comment": ("message Answer {", "// What is on it.\nmessage Answer {"),
}


def protos(folder: Path, **texts: str) -> Path:
    """A folder of protos, given as name=text."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.proto").write_text(text)
    return folder


def test_the_protos_break_no_client_of_the_last_release() -> None:
    (released,) = RELEASED.glob("*.binpb")
    assert breaks(PROTO, released) == []


def test_the_kept_protos_are_those_of_the_newest_release_in_the_changelog() -> None:
    changelog = (ROOT / "docs" / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)[0]
    assert [path.name for path in RELEASED.glob("*.binpb")] == [f"{newest}.binpb"], (
        f"python -m tests.proto {newest} keeps the protos of this release."
    )


def test_a_release_replaces_the_kept_protos_by_its_own(tmp_path: Path) -> None:
    keep("1.0.0", tmp_path)
    keep("1.0.1", tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name == "1.0.1.binpb"
    assert breaks(PROTO, kept) == []
    without_digits = protos(tmp_path / "new", seed=SEED)
    assert 'Previously present package "digits.v1" was deleted.' in breaks(without_digits, kept)


@pytest.mark.parametrize("kind", BREAKS)
def test_each_kind_of_break_is_reported_in_a_sentence(kind: str, tmp_path: Path) -> None:
    before, after, expected = BREAKS[kind]
    assert SEED.count(before) == 1
    old = protos(tmp_path / "old", seed=SEED)
    new = protos(tmp_path / "new", seed=SEED.replace(before, after))
    sentences = breaks(new, old)
    assert len(sentences) == len(expected), sentences
    for words in expected:
        assert any(re.search(words, sentence) for sentence in sentences), (words, sentences)


@pytest.mark.parametrize("kind", COMPATIBLE)
def test_an_addition_is_no_break(kind: str, tmp_path: Path) -> None:
    before, after = COMPATIBLE[kind]
    assert SEED.count(before) == 1
    old = protos(tmp_path / "old", seed=SEED)
    assert breaks(protos(tmp_path / "new", seed=SEED.replace(before, after)), old) == []


def test_a_definition_may_move_to_another_file_of_its_package(tmp_path: Path) -> None:
    enum = SEED[SEED.index("enum Unit") :]
    other = f'syntax = "proto3";\npackage seed.v1;\n\n{enum}'
    rest = SEED.replace(enum, "").replace("v1;", 'v1;\nimport "other.proto";', 1)
    old = protos(tmp_path / "old", seed=SEED)
    assert breaks(protos(tmp_path / "new", seed=rest, other=other), old) == []


def test_protos_that_do_not_compile_are_reported(tmp_path: Path) -> None:
    old = protos(tmp_path / "old", seed=SEED)
    new = protos(tmp_path / "new", seed=SEED.replace("Page page", "Sheet page"))
    assert "Sheet" in breaks(new, old)[0]
