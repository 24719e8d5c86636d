"""The report of the training benchmark, and its options."""

from __future__ import annotations

import pytest

from benchmarks.training.__main__ import main
from benchmarks.training.epochs import Epoch
from benchmarks.training.throughput import Throughput, markdown
from tests.benchmarks import HOST


def epochs(seconds: float, *accuracies: float) -> list[Epoch]:
    return [Epoch(seconds, accuracy) for accuracy in accuracies]


def results(plain_seconds: float) -> Throughput:
    runs = {
        "ours": [epochs(5.0, 0.98, 0.991), epochs(5.0, 0.992, 0.992)],
        "plain": [epochs(plain_seconds, 0.97)],
        "plain-worker": [epochs(100.0, 0.97)],
    }
    return Throughput(date="d", machine=HOST, images=55_000, threads=2, runs=runs)


def test_ours_is_compared_with_the_faster_plain_way() -> None:
    text = markdown(results(plain_seconds=20.0))
    assert "| mnist-train | 11,000 | 7.5 |" in text
    assert "not reached" in text
    assert "4.00 times" in text
    assert "2 times holds" in text
    assert "**does not hold**" in markdown(results(plain_seconds=9.0))


def test_contender_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--contenders", "nonsense"]) == 2
    assert "'nonsense'" in capsys.readouterr().err
