"""What is said of the training benchmark's runs."""

from __future__ import annotations

import pytest

from benchmarks.training import main, markdown
from training.measure import seconds_to

HOST = {"revision": "r", "cores": 2, "cpu": "c", "load_average_before": [0.0]}


def epochs(seconds: float, *accuracies: float) -> list[dict[str, float]]:
    return [{"seconds": seconds, "validation_accuracy": accuracy} for accuracy in accuracies]


def test_seconds_to_a_target_are_those_up_to_the_end_of_its_epoch():
    assert seconds_to(0.99, epochs(2.0, 0.98, 0.985, 0.991, 0.989)) == pytest.approx(6.0)
    assert seconds_to(0.99, epochs(2.0, 0.98)) is None


def told(plain_seconds: float) -> dict[str, object]:
    runs = {
        "ours": [epochs(5.0, 0.98, 0.991), epochs(5.0, 0.992, 0.992)],
        "plain": [epochs(plain_seconds, 0.97)],
        "plain-worker": [epochs(100.0, 0.97)],
    }
    return {"date": "d", "machine": HOST, "images": 55_000, "threads": 2, "runs": runs}


def test_ours_is_compared_with_the_faster_plain_way():
    text = markdown(told(plain_seconds=20.0))
    assert "| mnist-train | 11,000 | 7.5 |" in text
    assert "not reached" in text
    assert "4.00 times" in text
    assert "2 times holds" in text
    assert "**does not hold**" in markdown(told(plain_seconds=9.0))


def test_contender_that_does_not_exist_is_refused(capsys):
    assert main(["--contenders", "nonsense"]) == 2
    assert "'nonsense'" in capsys.readouterr().err
