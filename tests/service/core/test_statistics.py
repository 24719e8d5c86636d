from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.core.statistics import BatchRun, ModelStatistics, merge

RUNS = st.lists(
    st.builds(
        BatchRun,
        requests=st.integers(1, 8),
        rows=st.integers(1, 4),
        answered=st.floats(0, 10),
        queued=st.floats(0, 10),
        joining=st.floats(0, 1),
        inference=st.floats(0, 1),
        splitting=st.floats(0, 1),
    ),
    max_size=20,
)


def counted(runs: list[BatchRun]) -> dict[str, object]:
    statistics = ModelStatistics()
    for run in runs:
        statistics.ran(run)
    return statistics.as_dict() | {"last_inference": 0}


def rounded(value: object) -> object:
    """Nanoseconds to the microsecond: sums of floats depend on their order."""
    if isinstance(value, dict):
        return {k: round(v / 1000) if k == "ns" else rounded(v) for k, v in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


@given(RUNS, RUNS)
def test_merged_statistics_of_two_workers_equal_those_of_one(
    one: list[BatchRun], other: list[BatchRun]
) -> None:
    together = rounded(merge([counted(one), counted(other)]))
    alone = rounded(counted(one + other))
    # Rounded down twice instead of once, a duration may differ by one.
    assert _near(together, alone)


def _near(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_near, one, other))
    return isinstance(one, int) and isinstance(other, int) and abs(one - other) <= 1


def test_run_counts_for_each_of_its_requests() -> None:
    statistics = ModelStatistics()
    statistics.ran(
        BatchRun(
            requests=3,
            rows=6,
            answered=0.9,
            queued=0.3,
            joining=0.01,
            inference=0.1,
            splitting=0.02,
        )
    )
    statistics.failed(0.5)
    totals = statistics.as_dict()
    assert totals["last_inference"] > 1_700_000_000_000
    assert (totals["inference_count"], totals["execution_count"]) == (6, 1)
    stats = totals["inference_stats"]
    assert stats["success"] == {"count": 3, "ns": 900_000_000}
    assert stats["fail"] == {"count": 1, "ns": 500_000_000}
    assert stats["queue"] == {"count": 3, "ns": 300_000_000}
    assert stats["compute_infer"]["ns"] == 300_000_000
    (size,) = totals["batch_stats"]
    assert size["batch_size"] == 6
    assert size["compute_infer"] == {"count": 1, "ns": 100_000_000}


def test_statistics_by_batch_size_are_bounded() -> None:
    statistics = ModelStatistics()
    run = BatchRun(requests=1, rows=0, answered=0, queued=0, joining=0, inference=0, splitting=0)
    for rows in range(1, 5000):
        statistics.ran(run._replace(rows=rows))
    totals = statistics.as_dict()
    assert len(totals["batch_stats"]) == 1024
    assert totals["execution_count"] == 4999
