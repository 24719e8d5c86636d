"""Parsing h2load's report and its log of every request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.h2load import parse
from benchmarks.load.result import GeneratorError

REPORT = """Stopped all clients for thread #0

finished in 1.00s, {requests}.00 req/s, 313.23KB/s
requests: {requests} total, 1591 started, {requests} done, {requests} succeeded, {failed} failed, \
0 errored, 0 timeout
status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 313.23KB (320747) total, 4.72KB (4836) headers (space savings 96.24%), 221.62KB ({data}) \
data
                     min         max         mean         sd        +/- sd
time for request:     1.56ms     12.00ms      2.51ms      1.20ms    94.27%
"""
ANSWER = 143


def report(requests=100, failed=0, data=100 * ANSWER):
    return REPORT.format(requests=requests, failed=failed, data=data)


def log(times):
    return "".join(f"1795561663759868\t200\t{time}\n" for time in times)


@given(st.lists(st.integers(1, 10**7), min_size=1))
def test_percentiles_come_from_the_log(times):
    load = parse(report(), log(times), ANSWER)
    assert min(times) / 1000 <= load.p50_ms <= load.p99_ms <= max(times) / 1000
    assert (load.requests, load.seconds, load.failed) == (100, 1.0, 0)


def test_answers_without_the_data_of_a_right_one_count_as_failed():
    load = parse(report(data=90 * ANSWER), log([1000]), ANSWER)
    assert (load.requests, load.failed) == (90, 10)


def test_failed_requests_are_counted():
    assert parse(report(failed=3), log([1000]), ANSWER).failed == 3


def test_load_without_any_answer_is_an_error():
    with pytest.raises(GeneratorError, match="no answer"):
        parse(report(requests=0, data=0), "", ANSWER)


@given(st.text())
def test_text_that_is_not_a_report_is_an_error(text):
    with pytest.raises(GeneratorError):
        parse(text, log([1]), ANSWER)
