"""Whole runs with the real load generators, about a second per sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.load.result import missing_tools
from benchmarks.serving import report
from benchmarks.serving.bars import Bar, judge
from benchmarks.serving.plan import Plan
from benchmarks.serving.results import Results, read
from benchmarks.serving.run import run


def measure(tmp_path: Path, *scenarios: str, contenders: list[Contender]) -> Results:
    assert not missing_tools(), "; ".join(missing_tools())
    plan = Plan(
        scenarios=scenarios, rounds=1, seconds=1, idle_seconds=0.2, install=False, results=tmp_path
    )
    return read(run(plan, contenders))


def of(*names: str) -> list[Contender]:
    return [contender for contender in CONTENDERS if contender.name in names]


def test_this_server_and_its_floors_are_measured_over_http_and_grpc(tmp_path: Path):
    contenders = of("ours", "ours-secured", "floor-rsgi", "floor-grpc")
    results = measure(tmp_path, "raw-16", "grpc-32", contenders=contenders)
    assert results.finished
    assert {(s.contender, s.scenario) for s in results.samples} == {
        ("ours", "raw-16"),
        ("ours-secured", "raw-16"),
        ("floor-rsgi", "raw-16"),
        ("ours", "grpc-32"),
        ("ours-secured", "grpc-32"),
        ("floor-grpc", "grpc-32"),
    }
    for sample in results.samples:
        assert sample.failed == 0
        assert sample.requests_per_s > 50
        assert 0 < sample.p50_ms <= sample.p99_ms
        assert 0 < sample.server_cores < 2
    for record in results.contenders:
        assert record.problems == {}
        assert len(record.ready_seconds) == 1
        assert record.peak_worker_rss_mb > 20
    [verdict] = judge(results, [Bar("any", "raw-16", 0.01, reference="floor-rsgi")])
    assert verdict.holds
    assert "### This server with TLS and an API key, to without" in report.markdown(results)


def test_open_loop_sends_the_key_over_tls(tmp_path: Path):
    results = measure(tmp_path, "open-raw", contenders=of("ours-secured"))
    [sample] = results.samples
    assert sample.failed == 0
    assert sample.requests == int(sample.rate)


WRONG = """
import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([[0.1] * 10]).encode())


HTTPServer(("127.0.0.1", int(os.environ["HTTP_PORT"])), Handler).serve_forever()
"""


REFUSING = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

from benchmarks.floors.session import Model

model, answered = Model(), 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        global answered
        answered += 1
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if answered < 12 else 503)
        self.end_headers()
        self.wfile.write(model.answer(body, ""))


HTTPServer(("127.0.0.1", int(os.environ["HTTP_PORT"])), Handler).serve_forever()
"""


def test_sample_with_failed_requests_does_not_count_and_is_reported(tmp_path: Path):
    # It is ready and right at first, then refuses every request.
    results = measure(tmp_path, "raw-1", contenders=[contender("refusing", REFUSING)])
    assert results.samples == []
    assert "requests failed" in results.record("refusing").problems["raw-1, round 1"]


def contender(name: str, code: str) -> Contender:
    return Contender(
        name=name,
        title=name,
        kind="floor",
        command=("{python}", "-c", code),
        endpoints={"raw": "/"},
    )


def test_contender_that_answers_wrongly_is_disqualified_and_not_timed(tmp_path, capsys):
    results = measure(tmp_path, "raw-1", contenders=[contender("wrong", WRONG)])
    assert results.samples == []
    assert "disqualified: a probability is off by" in results.record("wrong").problems["raw-fast"]
    assert "!! wrong: raw-fast: disqualified" in capsys.readouterr().out


def test_contender_that_does_not_start_is_reported_with_the_end_of_its_log(tmp_path: Path):
    broken = contender("broken", "raise SystemExit('no GPU here')")
    results = measure(tmp_path, "raw-1", contenders=[broken])
    assert "no GPU here" in results.record("broken").problems["start, fast, 1 worker"]
    assert "no GPU here" in report.markdown(results)


@pytest.mark.parametrize("option", ["--contenders", "--scenarios"])
def test_name_that_does_not_exist_is_refused(option, capsys):
    from benchmarks.serving.command import main

    assert main([option, "nonsense"]) == 2
    assert "'nonsense'" in capsys.readouterr().err
