"""Parsing wrk's report."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.result import GeneratorError
from benchmarks.load.wrk import parse, write_script
from benchmarks.wire_formats import Body

REPORT = """Running 1s test @ http://127.0.0.1:18444/
  1 threads and 2 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    44.46ms    9.30ms  48.16ms   95.83%
    Req/Sec    43.64      8.09    60.00     81.82%
  Latency Distribution
     50%   {p50}
     75%   47.99ms
     90%   48.01ms
     99%   {p99}
  {requests} requests in {seconds}s, 5.95KB read
{failures}Requests/sec:     43.62
Transfer/sec:      5.41KB
"""


def report(p50="47.63ms", p99="48.16ms", requests=48, seconds="1.10", failures=""):
    return REPORT.format(p50=p50, p99=p99, requests=requests, seconds=seconds, failures=failures)


def test_requests_time_and_percentiles_are_parsed():
    load = parse(report())
    assert load[:5] == (48, 1.10, 47.63, 48.16, 0)


def test_error_statuses_count_as_failed_and_not_as_answered():
    load = parse(report(failures="  Non-2xx or 3xx responses: 8\n"))
    assert (load.requests, load.failed) == (40, 8)


def test_socket_errors_count_as_failed():
    load = parse(report(failures="  Socket errors: connect 1, read 2, write 3, timeout 4\n"))
    assert (load.requests, load.failed) == (48, 10)


@given(st.sampled_from([("us", 1e-3), ("ms", 1.0), ("s", 1e3)]), st.integers(1, 99999))
def test_latencies_are_milliseconds_whatever_their_unit(unit, hundredths):
    load = parse(report(p99=f"{hundredths / 100:.2f}{unit[0]}"))
    assert load.p99_ms == pytest.approx(hundredths / 100 * unit[1])


def test_load_without_any_answer_is_an_error():
    with pytest.raises(GeneratorError, match="no answer"):
        parse(report(requests=0, p50="0.00us", p99="0.00us"))


@given(st.text())
def test_text_that_is_not_a_report_is_an_error(text):
    with pytest.raises(GeneratorError):
        parse(text.replace("requests in", ""))


def test_report_without_latencies_is_an_error():
    with pytest.raises(GeneratorError, match="50 %"):
        parse(report().replace("50%", ""))


def test_headers_are_quoted_for_lua(tmp_path: Path):
    body = Body(b"\0\xff", (("x-quote", 'say "hi"\\'),))
    script = write_script(body, tmp_path).read_text()
    assert r'wrk.headers["x-quote"] = "say \"hi\"\\"' in script
    assert (tmp_path / "body.bin").read_bytes() == b"\0\xff"
