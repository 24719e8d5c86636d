"""Bars and report: pure functions of a results file."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.json_file import write_json
from benchmarks.paths import ROOT
from benchmarks.serving import report
from benchmarks.serving.bars import BARS, Bar, judge, per_core
from benchmarks.serving.results import Record, Results, Sample, read
from benchmarks.serving.scenarios import SCENARIOS, Scenario
from tests.benchmarks import HOST

RAW = Scenario("raw-16", "raw", "fast", 16)
TWO = Scenario("raw-128-2w", "raw", "fast", 128, workers=2)


def sample(contender: str, rate: float, round_: int = 0, scenario: str = "raw-16") -> Sample:
    return Sample(
        scenario=scenario,
        contender=contender,
        round=round_,
        requests_per_s=rate,
        p50_ms=1.5,
        p99_ms=9.5,
        requests=1000,
        failed=0,
        server_cpu_s_per_1000=0.25,
        server_cores=1.0,
        generator_cores=0.5,
    )


def results(*samples: Sample, scenarios: tuple[Scenario, ...] = (RAW,)) -> Results:
    records = [
        Record("ours", "this server", "ours", ready_seconds=[0.5, 0.7, 2.0]),
        Record("floor-rsgi", "floor", "floor"),
    ]
    return Results(
        date="2026-11-24T00:00:00+00:00",
        machine=HOST,
        settings={"rounds": 3, "seconds": 5},
        scenarios=list(scenarios),
        contenders=records,
        samples=list(samples),
        finished=True,
    )


def test_ratio_is_of_medians():
    made = results(
        *(sample("ours", rate, i) for i, rate in enumerate((80.0, 90.0, 500.0))),
        *(sample("floor-rsgi", rate, i) for i, rate in enumerate((1.0, 100.0, 120.0))),
    )
    bar = Bar("floor", "raw-16", 0.75, reference="floor-rsgi")
    [verdict] = judge(made, [bar])
    assert verdict.measured == pytest.approx(0.9)
    assert verdict.holds is True
    [verdict] = judge(made, [Bar("floor", "raw-16", 0.95, reference="floor-rsgi")])
    assert verdict.holds is False


def test_absolute_bar_is_an_upper_bound_on_the_median():
    made = results()
    assert judge(made, [Bar("ready", "", 1.0, "ready_seconds")])[0].holds is True
    assert judge(made, [Bar("ready", "", 0.6, "ready_seconds")])[0].holds is False


def test_bar_without_its_reference_is_not_measured():
    [verdict] = judge(results(sample("ours", 1.0)), [Bar("b", "raw-16", 1, reference="mosec")])
    assert verdict.holds is None
    assert math.isnan(verdict.measured)


def test_cores_of_the_generator_are_added_back_to_two_workers():
    made = sample("ours", 150.0, scenario="raw-128-2w")  # the generator used half a core of two
    assert per_core(made, workers=2, cores=2) == pytest.approx(200.0)
    assert per_core(made, workers=2, cores=8) == pytest.approx(150.0)
    assert per_core(made, workers=1, cores=2) == 150.0


def test_every_bar_names_contenders_and_scenarios_that_exist():
    contenders = {contender.name for contender in CONTENDERS}
    scenarios = {scenario.name for scenario in SCENARIOS} | {""}
    for bar in BARS:
        assert {bar.contender, bar.reference} - {""} <= contenders, bar
        assert {bar.scenario, bar.reference_scenario} <= scenarios, bar


def test_results_file_is_read_as_it_was_written(tmp_path: Path):
    made = results(sample("ours", 1.0), scenarios=(RAW, TWO))
    write_json(tmp_path / "r.json", made)
    assert read(tmp_path / "r.json") == made


def test_file_of_another_schema_is_refused(tmp_path: Path):
    made = results()
    made.schema = 99
    write_json(tmp_path / "r.json", made)
    with pytest.raises(ValueError, match="schema 99"):
        read(tmp_path / "r.json")


def test_report_lists_contenders_fastest_first_with_their_medians():
    text = report.markdown(results(sample("floor-rsgi", 2000.0), sample("ours", 12345.0)))
    table = text[text.index("### raw pixels") :]
    assert table.index("this server") < table.index("floor")
    assert "12,345/s ±0%<br>1.5 / 9.5 ms<br>0.250 CPU s" in table


def test_missing_measurements_are_reported_with_their_reasons():
    made = results()
    made.record("floor-rsgi").add_problem("install", "pip failed: no `wheel`")
    text = report.markdown(made)
    assert "- floor: install: `pip failed: no 'wheel'`" in text


def test_noisy_or_unfinished_run_is_reported_as_such():
    made = results()
    assert "**" not in report.markdown(made).split("###")[0]
    made.machine = dataclasses.replace(HOST, load_average_before=[3.0])
    made.finished = False
    text = report.markdown(made)
    assert "not quiet (load average 3 " in text
    assert "interrupted" in text


def test_build_writes_markdown_and_a_plot_beside_the_file(tmp_path: Path):
    write_json(tmp_path / "r.json", results(sample("ours", 10.0)))
    text = report.build(tmp_path / "r.json")
    assert (tmp_path / "r.md").read_text() == text
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_documentation_keeps_all_but_its_block_of_results():
    document = "a\n<!-- results: old -->\nold\n<!-- end of results -->\nz\n"
    made = report.embed(document, "new.json", "new table\n")
    assert made.startswith("a\n<!-- results: new.json -->\n\nnew table\n")
    assert made.endswith("<!-- end of results -->\nz\n")
    assert "old" not in made
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


def test_docs_have_the_summary_of_the_results_that_they_name() -> None:
    docs = report.DOCS.read_text()
    [name] = re.findall(r"<!-- results: (\S+) -->", docs)
    assert report.summary(read(ROOT / name), Path(name)) in docs
    assert report.PLOT.exists()


def test_results_that_the_docs_link_to_exist() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for link in re.findall(r"\]\(([^)#]*benchmarks/results/[^)#]*)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page} links to {link}"
