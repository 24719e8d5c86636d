"""The tables of the benchmark of pictures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.json_file import write_json
from benchmarks.paths import RESULTS, ROOT
from benchmarks.pictures.report import MARKER, markdown, write_docs, write_report
from benchmarks.pictures.results import Bar, Kind, Pictures, Plan, read
from tests.benchmarks import HOST


def test_each_bar_is_printed_with_its_bound_and_verdict(tmp_path: Path) -> None:
    results = Pictures(
        "today",
        HOST,
        Plan(),
        ["mnist/1", "mnist/2"],
        kinds=[Kind("clean", [99.0, 99.5], [1.0, 2.0], [99.9, 100.0])],
        bars=[
            Bar("kinds", "clean", "%", 95, False, [99.0, 99.5]),
            Bar("CPU time", "picture", "ms", 2, True, [2.5]),
        ],
        coverage_by_digit=[[99.9] * 10, [100.0] * 10],
        set_size=[1.01, 1.03],
        reasons={"blank": {"": 0, "blank": 90, "several_digits": 0, "not_a_digit": 9, "unsure": 1}},
        not_measured=["Fashion-MNIST: no file."],
    )
    path = tmp_path / "results.json"
    write_json(path, results)
    assert read(path) == results
    text = write_report(path)
    assert path.with_suffix(".md").read_text() == text == markdown(results)
    assert "1 of 2 bars hold." in text
    assert "- Does not hold: CPU time: picture." in text
    assert "- Not measured: Fashion-MNIST: no file." in text
    assert "| kinds: clean | >= 95 % | 99.25 % | 99.00, 99.50 | yes |" in text
    assert "| CPU time: picture | <= 2 ms | 2.50 ms | 2.50 | NO |" in text
    assert "| clean | 99.25 | 1.50 | 99.95 |" in text
    assert "| blank | 0.0 | 90.0 | 0.0 | 9.0 | 1.0 |" in text
    assert "| mnist/2 | 100.00 |" in text

    page = tmp_path / "page.md"
    page.write_text(f"# Pictures\n\n{MARKER}\n\nold tables\n")
    write_docs(path, page)
    assert page.read_text() == f"# Pictures\n\n{MARKER}\n\n{text}"


def test_the_page_ends_with_the_tables_of_the_newest_results() -> None:
    page = (ROOT / "docs" / "pictures.md").read_text()
    files = sorted(RESULTS.glob("*-pictures*.json"), key=lambda path: read(path).date)
    tables = markdown(read(files[-1])) if files else ""
    assert page.partition(MARKER)[2].strip() == tables.strip()
