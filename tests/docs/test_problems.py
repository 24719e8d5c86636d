"""The measurements on docs/problems.md are those of the newest results files."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from docs.site.hooks import DOCS, ROOT

PAGE = (DOCS / "problems.md").read_text()
PROSE = " ".join(PAGE.split())
ROWS = {
    row.split("](#")[0].removeprefix("| ["): row for row in PAGE.splitlines() if row[:3] == "| ["
}
RESULTS = ROOT / "benchmarks" / "results"


def newest(pattern: str) -> Path:
    return max(RESULTS.glob(pattern))


def servers() -> dict[str, Any]:
    """The run that docs/performance.md shows."""
    (name,) = re.findall(r"<!-- results: (\S+) -->", (DOCS / "performance.md").read_text())
    assert f"](../{name})" in PAGE
    results: dict[str, Any] = json.loads((ROOT / name).read_text())
    return results


def measured(table: Path, row: str) -> str:
    """The result in the row that begins with these words."""
    assert f"](../{table.relative_to(ROOT)})" in PAGE
    (result,) = re.findall(rf"^\| {re.escape(row)}[^|]*\| (.*) \|$", table.read_text(), re.M)
    return str(result)


def test_batching_gains_what_the_benchmark_says() -> None:
    samples = servers()["samples"]
    batched, alone = (
        statistics.median(
            each["requests_per_s"]
            for each in samples
            if (each["scenario"], each["contender"]) == ("raw-64", contender)
        )
        for contender in ("ours", "ours-unbatched")
    )
    claim = f"{batched:,.0f} requests/s at 64 connections, and {alone:,.0f} with `max_batch_size` 1"
    assert claim in PROSE
    assert f"| {batched / alone:.1f} times the requests" in ROWS["batching settings"]
    # The link beside the claim leads to a table with these numbers.
    table = (DOCS / "performance.md").read_text()
    for title, rate in (("this server", batched), ("this server, max_batch_size 1", alone)):
        assert re.search(rf"^\| {title} \| [\d,]+ \| {rate:,.0f} \|", table, re.MULTILINE)


def test_starts_are_compared_with_every_other_server() -> None:
    contenders = servers()["contenders"]
    ours, *others = [
        (each["title"].split(" (")[0], *each["ready_seconds"])
        for each in contenders
        if each["name"] == "ours" or each["kind"] == "rival"
    ]
    assert len(others) == 8
    # The first start is with the shipped model, the second with mlp.
    _, shipped, mlp = ours
    (first, soonest, _), *rest = sorted(others, key=lambda each: each[1])
    assert shipped < soonest
    seven = f"{min(each[1] for each in rest):.1f} to {max(each[1] for each in rest):.1f} s"
    assert f"{shipped:.2f} s, {first} {soonest:.2f} s, seven other servers {seven}" in PROSE
    assert f"| {shipped:.2f} s; {first} {soonest:.2f} s, seven others {seven} |" in PAGE
    faster = [f"{name} {s:.2f} s" for s, name in sorted((s, n) for n, _, s in others) if s < mlp]
    assert len(faster) == 4
    assert (
        f"With `mlp`: {mlp:.2f} s, and four servers are faster: {', '.join(faster[:-1])} and "
        f"{faster[-1]}."
    ) in PROSE
    median = (shipped + mlp) / 2
    assert f"which this run {'kept' if median <= 1 else 'missed'}: {median:.2f} s." in PROSE


def test_updates_images_and_the_stack_are_those_of_the_last_deployment() -> None:
    table = newest("*-deployment.md")
    published = measured(table, "a new model version").removesuffix(" requests, 0 failed")
    rolled = measured(table, "3 replicas rolled").split(" requests, 0 failed")[0]
    killed = measured(table, "one of 3 replicas killed").split(" requests, 0 failed")[0]
    assert f"| 0 of {published} |" in ROWS["updates lose requests"]
    assert (
        f"0 of {published} requests failed; three replicas rolled to a new image, 0 of {rolled}; "
        f"a replica killed behind Envoy, 0 of {killed} "
    ) in PROSE
    image = measured(table, "image `serve`, above its base image")
    assert f"| {image} on top of Python's |" in ROWS["images of many gigabytes"]
    assert f"{image} on top of its base image" in PROSE
    _, with_a_model = measured(table, "`up` to the first prediction").split(", ")
    assert f"answers {with_a_model} after `up`" in PROSE


def test_memory_is_that_of_the_last_run_on_growth() -> None:
    table = newest("*-growth.md")
    (total, grown, size) = re.findall(
        r"^([\d,]+) requests; the resident set grew by (\S+ MB) after .* to (\d+ MB)\.$",
        table.read_text(),
        re.MULTILINE,
    )[0]
    assert total.startswith("2,")
    assert f"| {grown} after two million requests |" in ROWS["memory grows"]
    assert f"[{grown}](../{table.relative_to(ROOT)}), to {size} with the supervisor" in PROSE
