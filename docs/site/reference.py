"""python -m docs.site.reference: write the pages of docs/reference/ from the code.

Each page begins with what a person wrote and ends with tables made here. tests/docs compares the
files with the code; `make docs` writes them before it builds the site.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import signal
import tomllib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from docs.site.hooks import DOCS, ROOT
from service.http.routes import ROUTES
from service.observe import metrics

_PROJECTS = ("pyproject.toml", "clients/python/pyproject.toml")
_GENERATED = "\n<!-- The rest is written by `python -m docs.site.reference`. -->\n\n"
_METHOD = re.compile(
    r"((?:^ *//[^\n]*\n)*)^ *rpc (\w+)\(\s*(stream )?(\w+)\)\s*returns\s*\((stream )?(\w+)\)", re.M
)


def main() -> None:
    """Write every page."""
    for name in PAGES:
        path = DOCS / name
        path.write_text(current(name, path.read_text()))


def current(name: str, text: str) -> str:
    """The text of a page, with the part that is generated as the code is now."""
    return text.partition(_GENERATED)[0] + _GENERATED + PAGES[name]()


def endpoints() -> str:
    """HTTP routes by group, one row for a route with and without a version; then gRPC methods."""
    groups: dict[str, dict[str, str]] = {}
    for route in ROUTES:
        rows = groups.setdefault(route.contract.tag, {})
        endpoint = f"`{route.method} {route.path.replace('<', '{').replace('>', '}')}`"
        short = endpoint.replace("/versions/{version}", "")
        if short != endpoint:
            del rows[short]
            endpoint = endpoint.replace("/versions/{version}", "[/versions/{version}]")
        rows[endpoint] = route.contract.summary
    parts = []
    for tag in sorted(groups):
        parts.append(f"\n## HTTP: {tag}\n\n")
        parts.append(_table(["endpoint", "what it does"], groups[tag].items()))
    parts[0] = parts[0].lstrip()
    for file in sorted((ROOT / "proto").rglob("*.proto")):
        text = file.read_text()
        methods = [
            [
                f"`{name}`",
                f"{'stream of ' if many_in else ''}`{request}`",
                f"{'stream of ' if many_out else ''}`{answer}`",
                _sentence(re.sub(r"(?m)^ *// ?", "", comment)),
            ]
            for comment, name, many_in, request, many_out, answer in _METHOD.findall(text)
        ]
        if methods:
            package = re.search(r"(?m)^package ([\w.]+);", text)
            service = re.search(r"(?m)^service (\w+)", text)
            assert package is not None
            assert service is not None
            source = f"../../{file.relative_to(ROOT).as_posix()}"
            parts += [f"\n## gRPC: {package[1]}.{service[1]}\n\n", f"[{file.name}]({source})\n\n"]
            parts.append(_table(["method", "request", "answer", "what it does"], methods))
    return "".join(parts)


def _sentence(text: str) -> str:
    """The first sentence, with a capital letter."""
    first = re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
    return first[:1].upper() + first[1:]


def all_metrics() -> str:
    """Every metric of service/observe/metrics.py."""
    # After service.observe.metrics, which decides the mode of prometheus_client before its import.
    from prometheus_client.metrics import MetricWrapperBase

    values = [*vars(metrics).values(), *metrics._triton.values()]
    families = [value for value in values if isinstance(value, MetricWrapperBase)]
    rows: list[list[str]] = []
    for family in sorted(families, key=lambda each: each._name):
        kind = family._type
        if family._name.startswith("nv_") and "pending" not in family._name:
            kind = "counter"
        name = (
            f"`{family._name}{'_total' if kind == 'counter' and 'nv_' not in family._name else ''}`"
        )
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        rows.append([name, str(kind), labels, family._documentation])
    return _table(["metric", "type", "labels", "meaning"], rows)


def model_card() -> str:
    """The fields of service/repository/model_card.schema.json."""
    schema = json.loads((ROOT / "service" / "repository" / "model_card.schema.json").read_text())
    rows = list(_fields(schema["properties"], ""))
    return _table(["field", "must be", "meaning"], rows)


def _fields(properties: dict[str, Any], prefix: str) -> Iterable[list[str]]:
    for name, field in properties.items():
        must = field.get("$comment", "").removeprefix("must be ").removeprefix("must ")
        yield [f"`{prefix}{name}`", must or "anything", field["description"]]
        yield from _fields(field.get("properties", {}), f"{name}.")


class _Caught(Exception):
    """Carries the parser out of a command that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command that the packages of this repository install."""
    found = {}
    for project in _PROJECTS:
        scripts = tomllib.loads((ROOT / project).read_text())["project"]["scripts"]
        for name, place in scripts.items():
            module, function = place.split(":")
            found[name] = _parser_of(getattr(importlib.import_module(module), function))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "mnist-serve", item[0])))


def commands() -> str:
    """Every command with its options."""
    sections: dict[str, str] = {}  # options -> the first command that has them
    parts = []
    for name, parser in parsers().items():
        options = _options(parser, name)
        if (same := sections.setdefault(options, name)) != name:
            options = f"\nIt takes the options of `{same}`.\n"
        parts.append(_heading(parser, name) + options)
    return "\n".join(parts)


def _parser_of(command: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser that a command makes: its main function is stopped when it wants to use it."""

    def catch(parser: argparse.ArgumentParser, *_: Any) -> Any:
        raise _Caught(parser)

    parse, handlers = argparse.ArgumentParser.parse_known_args, {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.getsignal(number)
    argparse.ArgumentParser.parse_known_args = catch  # type: ignore[method-assign,assignment]
    try:
        command()
    except _Caught as caught:
        return caught.parser
    finally:
        argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign]
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError(f"{command} does not parse its arguments with argparse.")


def _heading(parser: argparse.ArgumentParser, name: str) -> str:
    """The title of a command's section, what it does, and its usage in one line."""
    positional = [action for action in parser._actions if not action.option_strings]
    usage = parser.usage or " ".join([name, "[OPTION ...]", *map(_placeholder, positional)])
    does = parser.description or ""
    return f"## {name}\n\n{does}\n\n```text\n{usage % {'prog': name}}\n```\n"


def _options(parser: argparse.ArgumentParser, name: str) -> str:
    """A table per group of options, and what the help ends with."""
    parts: list[str] = []
    for group in parser._action_groups:
        rows = [_option(action, name) for action in group._group_actions if _shown(action)]
        if rows:
            title = (group.title or "").capitalize()
            parts.append(f"\n**{title}**\n\n" if parts or title != "Options" else "\n")
            parts.append(_table(["option", "what it does"], rows))
    if parser.epilog:
        parts.append(f"\n```text\n{parser.epilog.rstrip() % {'prog': name}}\n```\n")
    return "".join(parts)


def _shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _placeholder(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    ends = {"*": f"[{name} ...]", "+": f"{name} ...", "?": f"[{name}]"}
    return ends.get(str(action.nargs), name)


def _option(action: argparse.Action, command: str) -> list[str]:
    if not action.option_strings:
        name = f"`{_placeholder(action)}`"
    else:
        flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
        value = "|".join(map(str, action.choices)) if action.choices else action.metavar
        takes = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
        name = f"{flags} `{value or action.dest.upper()}`" if takes else flags
    return [name, (action.help or "") % {**vars(action), "prog": command}]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in lines)
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


PAGES = {
    "reference/commands.md": commands,
    "reference/endpoints.md": endpoints,
    "reference/metrics.md": all_metrics,
    "reference/model-card.md": model_card,
}

if __name__ == "__main__":
    main()
