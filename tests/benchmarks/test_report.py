"""Bars and report: pure functions of a results file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.bars import BARS, Bar, judge, per_core
from benchmarks.contenders import CONTENDERS
from benchmarks.results import Record, Results, Sample, read, write
from benchmarks.scenarios import SCENARIOS, Scenario

RAW = Scenario("raw-16", "raw", "fast", 16)
TWO = Scenario("raw-128-2w", "raw", "fast", 128, workers=2)
MACHINE = {
    "cpu": "a CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux", "python": "3.11",
    "wrk": "wrk 4", "h2load": "1.52", "revision": "abc", "load_average_before": [0.0],
}  # fmt: skip


def sample(contender: str, rate: float, round_: int = 0, scenario: str = "raw-16") -> Sample:
    return Sample(scenario, contender, round_, rate, 1.5, 9.5, 1000, 0, 0.25, 1.0, 0.5)


def results(*samples: Sample, scenarios: tuple[Scenario, ...] = (RAW,)) -> Results:
    records = [
        Record("ours", "this server", "ours", ready_seconds=[0.5, 0.7, 2.0]),
        Record("floor-rsgi", "floor", "floor"),
    ]
    return Results(
        "2026-11-24T00:00:00+00:00", MACHINE, {"rounds": 3, "seconds": 5}, list(scenarios),
        records, list(samples), finished=True,
    )  # fmt: skip


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


def test_two_workers_get_back_what_the_generator_took_of_their_cores():
    made = sample("ours", 150.0, scenario="raw-128-2w")  # the generator took half a core of two
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
    write(made, tmp_path / "r.json")
    assert read(tmp_path / "r.json") == made


def test_file_of_another_schema_is_refused(tmp_path: Path):
    made = results()
    made.schema = 99
    write(made, tmp_path / "r.json")
    with pytest.raises(ValueError, match="schema 99"):
        read(tmp_path / "r.json")


def test_report_lists_contenders_fastest_first_with_what_was_measured():
    text = report.markdown(results(sample("floor-rsgi", 2000.0), sample("ours", 12345.0)))
    table = text[text.index("### raw pixels") :]
    assert table.index("this server") < table.index("floor")
    assert "12,345/s ±0%<br>1.5 / 9.5 ms<br>0.250 CPU s" in table


def test_what_was_not_measured_is_said_with_its_reason():
    made = results()
    made.record("floor-rsgi").tell("install", "pip failed: no `wheel`")
    text = report.markdown(made)
    assert "- floor: install: `pip failed: no 'wheel'`" in text


def test_noisy_or_unfinished_run_is_said_to_be_one():
    made = results()
    assert "**" not in report.markdown(made).split("###")[0]
    made.machine = MACHINE | {"load_average_before": [3.0]}
    made.finished = False
    text = report.markdown(made)
    assert "not quiet (load average 3 " in text
    assert "cut short" in text


def test_build_writes_markdown_and_a_plot_beside_the_file(tmp_path: Path):
    write(results(sample("ours", 10.0)), tmp_path / "r.json")
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
