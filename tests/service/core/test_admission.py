"""How long a request would wait, and how long it may."""

from __future__ import annotations

import pytest

from service.core.admission import Admission


def busy(seconds: float, *, rows: int = 64, runs: int = 9) -> Admission:
    """A model with a measured time per run of a number of rows."""
    admission = Admission(1.0, 64)
    admission.latest[rows.bit_length()].extend([seconds] * runs)
    return admission


def stand(admission: Admission, since: float, requests: int) -> None:
    admission.standing_since, admission.standing_requests = since, requests


def test_nothing_is_known_before_the_first_run_so_nobody_waits() -> None:
    assert Admission(1.0, 64).wait(10.0, ahead=100_000) == 0.0


def test_a_request_waits_for_the_full_batches_ahead_of_it() -> None:
    admission = busy(0.05)
    assert [admission.wait(0.0, ahead) for ahead in (0, 63, 64, 640)] == [0, 0, 0.05, 0.5]


def test_the_rest_of_the_run_in_progress_is_waited_for_too() -> None:
    admission = busy(0.05)
    admission.is_running, admission.began = True, 100.0
    assert admission.wait(100.02, 64) == pytest.approx(0.08)
    assert admission.wait(109.0, 64) == pytest.approx(0.05)  # longer than usual


def test_a_slow_run_among_others_changes_no_estimate() -> None:
    admission = busy(0.05)
    admission.latest[(64).bit_length()].extend([30.0, 0.05, 0.05, 30.0])
    assert admission.run_seconds() == 0.05


def test_a_model_that_has_become_slower_is_noticed_after_five_runs() -> None:
    admission = busy(0.05)
    admission.latest[(64).bit_length()].extend([0.5] * 5)
    assert admission.run_seconds() == 0.5


def test_a_full_batch_is_estimated_by_the_largest_runs_seen() -> None:
    admission = busy(0.01, rows=1)
    assert admission.run_seconds() == 0.01
    admission.latest[(16).bit_length()].append(0.03)
    admission.began = 1.0
    assert admission.run_seconds() == 0.03
    assert admission.run_seconds(rows=1) == 0.01


def test_a_burst_may_use_the_whole_bound() -> None:
    admission = busy(0.001)
    assert admission.bound(0.0, requests=4000) == 1.0
    stand(admission, since=0.0, requests=4000)
    assert admission.bound(0.05, requests=4000) == 1.0  # not yet standing
    assert admission.bound(0.5, requests=3000) == 1.0  # it shrinks


def test_a_standing_queue_of_few_requests_may_use_the_whole_bound() -> None:
    """64 clients that wait for their answers never have more than 64 requests in the queue."""
    admission = busy(0.001)
    stand(admission, since=0.0, requests=1)
    assert admission.bound(100.0, requests=64) == 1.0


@pytest.mark.parametrize(("run_s", "bound"), [(0.0001, 0.005), (0.05, 0.05), (1.9, 1.0)])
def test_a_standing_queue_that_grows_is_kept_to_one_run(run_s: float, bound: float) -> None:
    admission = busy(run_s)
    stand(admission, since=0.0, requests=10)
    assert admission.bound(5.0, requests=257) == bound


def test_a_queue_is_kept_short_until_nothing_was_refused_for_a_second() -> None:
    admission = busy(0.001)
    stand(admission, since=0.0, requests=10)
    assert admission.refused(1.0)
    assert not admission.refused(1.5)  # it is kept short already
    assert admission.bound(2.49, requests=1) == 0.005
    assert admission.bound(2.51, requests=1) == 1.0


def refuse_from(admission: Admission, start: float, seconds: float) -> float:
    """Refuse every tenth of a second; returns when the whole bound was tried again."""
    for tenth in range(int(seconds * 10)):
        now = start + tenth / 10
        if admission.standing_since is None:
            return now
        admission.refused(now)
    raise AssertionError


def test_the_whole_bound_is_tried_again_after_10_seconds_then_after_20() -> None:
    admission = busy(0.001)
    stand(admission, since=0.0, requests=10)
    tried_at = refuse_from(admission, 1.0, seconds=60)
    assert 10 < tried_at - 1.0 < 11
    assert admission.bound(tried_at, requests=300) == 1.0
    stand(admission, since=tried_at, requests=10)
    again = refuse_from(admission, tried_at + 1.0, seconds=60)
    assert 20 < again - tried_at - 1.0 < 21
    stand(admission, since=again + 1000.0, requests=10)
    assert admission.refused(again + 1001.0)
    assert 10 < refuse_from(admission, again + 1001.0, seconds=60) - again - 1001.0 < 11


def test_a_refusal_in_a_burst_does_not_shorten_the_queue() -> None:
    admission = busy(0.05)
    assert not admission.refused(1.0)
    assert admission.bound(1.0, requests=20) == 1.0
