"""The tables of the engine benchmark."""

from __future__ import annotations

from benchmarks.engine.report import markdown
from benchmarks.engine.results import EngineResults, Measured, Plan, read
from benchmarks.paths import RESULTS, ROOT
from tests.benchmarks import HOST


def test_speed_is_compared_round_by_round():
    def measured(configuration: str, *seconds: float) -> Measured:
        return Measured(
            configuration=configuration,
            model="mlp",
            load_ms=[1.0],
            seconds={512: list(seconds)},
            loaded_mb=1.0,
            used_mb=2.0,
            peak_mb=3.0,
        )

    results = EngineResults(
        date="d",
        machine=HOST,
        plan=Plan(rows=[512], rounds=3, runs_before_memory=1),
        onnxruntime="1",
        # The machine was ten times slower in the second round, for both.
        measured=[measured("first", 1.0, 10.0, 1.0), measured("second", 0.5, 5.0, 0.5)],
    )
    text = markdown(results)
    assert "| first | 1.0 | 512 images/s | 1 | 2 (3) |" in text
    assert "| second | 1.0 | 2.00 x | 1 | 2 (3) |" in text


def test_docs_have_the_tables_of_the_committed_results():
    docs = (ROOT / "docs" / "decisions" / "engine.md").read_text()
    files = sorted(RESULTS.glob("*-engine*.json"))
    assert files
    for path in files:
        assert markdown(read(path)) in docs
