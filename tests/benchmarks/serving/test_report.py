"""Reports: pure functions of results."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest

from benchmarks.contenders import OURS_SECURED
from benchmarks.json_file import write_json
from benchmarks.paths import ROOT
from benchmarks.serving import report
from benchmarks.serving.bars import Bar, judge
from benchmarks.serving.results import Record, read
from tests.benchmarks import HOST
from tests.benchmarks.serving import RAW, TWO, results, sample


def test_report_lists_contenders_fastest_first_with_their_medians():
    text = report.markdown(results(sample("floor-rsgi", 2000.0), sample("ours", 12345.0)))
    table = text[text.index("### raw pixels") :]
    assert table.index("this server") < table.index("floor")
    assert "12,345/s ±0%<br>1.5 / 9.5 ms<br>0.250 CPU s" in table


def test_missing_measurements_are_reported_with_their_reasons():
    run = results()
    run.record("floor-rsgi").add_problem("install", "pip failed: no `wheel`")
    text = report.markdown(run)
    assert "- floor: install: `pip failed: no 'wheel'`" in text


def test_noisy_or_unfinished_run_is_reported_as_such():
    run = results()
    assert "**" not in report.markdown(run).split("###")[0]
    run.machine = dataclasses.replace(HOST, load_average_before=[3.0])
    run.finished = False
    text = report.markdown(run)
    assert "not quiet (load average 3 " in text
    assert "interrupted" in text


def test_build_writes_markdown_and_a_plot_beside_the_file(tmp_path: Path):
    write_json(tmp_path / "r.json", results(sample("ours", 10.0)))
    text = report.build(tmp_path / "r.json")
    assert (tmp_path / "r.md").read_text() == text
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_documentation_keeps_all_but_its_block_of_results():
    document = "a\n<!-- results: old -->\nold\n<!-- end of results -->\nz\n"
    text = report.embed(document, "new.json", "new table\n")
    assert text.startswith("a\n<!-- results: new.json -->\n\nnew table\n")
    assert text.endswith("<!-- end of results -->\nz\n")
    assert "old" not in text
    with pytest.raises(ValueError, match="no block"):
        report.embed("nothing", "n", "t")


def test_disturbed_samples_are_left_out_and_named() -> None:
    run = results(
        sample("ours", 150.0, scenario="raw-128-2w"), sample("ours", 77.0), scenarios=(RAW, TWO)
    )
    assert "150/s" in report.markdown(run)
    run.disturbed = {"raw-128-2w": "another program ran"}
    text = report.markdown(run)
    assert "**Left out because they were disturbed:** raw-128-2w (another program ran)." in text
    assert "150/s" not in text
    assert "| raw-128-2w |" not in text
    assert "77" in text
    assert math.isnan(judge(run, [Bar("b", "raw-128-2w", 1, reference="ours")])[0].measured)


def test_what_tls_and_a_key_cost_is_shown_where_it_was_measured() -> None:
    loads = (RAW, TWO, dataclasses.replace(RAW, name="open-raw", kind="open"))
    plain = [sample("ours", rate, i) for i, rate in enumerate((90.0, 100.0, 120.0))]
    run = results(*plain, scenarios=loads)
    for text in (report.markdown(run), report.summary(run, Path("r.json"))):
        assert "API key" not in text

    run.contenders.insert(1, Record("ours-secured", OURS_SECURED.title, "ours"))
    secured = [sample("ours-secured", rate, i) for i, rate in enumerate((79.0, 80.0, 95.0))]
    for each in secured:
        each.server_cpu_s_per_1000 = 0.3
    # An open loop has the rate that it was given, so its ratio says nothing.
    of_open = [sample(name, 5.0, scenario="open-raw") for name in ("ours", "ours-secured")]
    run.samples += secured + of_open
    text = report.markdown(run)
    assert "| this server, with TLS and an API key | 80/s" in text
    table = text.partition("### This server with TLS and an API key, to without\n\n")[2]
    assert table.split("\n\n")[0].splitlines()[2:] == ["| raw-16 | 0.80 | 1.20 |"]
    text = report.summary(run, Path("r.json"))
    assert "reaches 0.80 to 0.80 times its rate without (median 0.80 of 1 scenarios)" in text
    assert "1.20 to 1.20 times the CPU time per request" in text


def test_docs_have_the_summary_of_the_results_that_they_name() -> None:
    docs = report.DOCS.read_text()
    [name] = re.findall(r"<!-- results: (\S+) -->", docs)
    assert report.summary(read(ROOT / name), Path(name)) in docs
    assert report.PLOT.exists()


def test_results_that_the_docs_link_to_exist() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for link in re.findall(r"\]\(([^)#]*benchmarks/results/[^)#]*)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page} links to {link}"
