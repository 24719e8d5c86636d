"""The judges of the soak: each of them can fail. The soak itself is `make test-faults`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Server
from tests.faults import clients
from tests.faults.clients import Again, GrpcClient, HttpClient, Images, Record
from tests.faults.injected import OTHER_FAULTS, PROCESS_FAULTS, Harm, expect
from tests.faults.soak import Usage, known_images, leaks, log_problems, soak, usage


def ask_once(client: HttpClient | GrpcClient, images: Images) -> Record:
    record, rounds = Record(), iter([False])
    clients.run(client, images, record, lambda: next(rounds, True), seed=1)
    return record


@pytest.mark.parametrize("kind", [HttpClient, GrpcClient])
def test_a_good_client_knows_right_answers_from_wrong_ones(
    server: Server, kind: type[HttpClient] | type[GrpcClient]
) -> None:
    port = server.http_port if kind is HttpClient else server.grpc_port
    record = ask_once(kind(port), known_images())
    assert record.problems == []
    assert record.answers == {kind.name: 1}
    others = Images(np.full((64, 10), 0.1, np.float32))
    (problem,) = ask_once(kind(port), others).problems
    assert "WRONG ANSWER" in problem


def test_a_good_client_repeats_what_has_no_answer_and_gives_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "PATIENCE_S", 0.0)

    class Unanswered(HttpClient):
        def ask(self, images: np.ndarray, chance: random.Random) -> np.ndarray:
            raise Again("503")

    record = ask_once(Unanswered(1), known_images())
    assert record.repeated == {"http: 503": 1}
    assert record.problems == ["http: no answer within 0 s"]


def test_what_grew_is_a_leak(server: Server) -> None:
    now = usage(server)
    assert leaks(server, now, seconds=0) == []
    before = Usage(0, now.supervisor_threads, now.descriptors, now.threads, now.processes)
    (leak,) = leaks(server, before, seconds=0)
    assert leak.startswith("supervisor_descriptors: 0 before")


def test_a_log_has_only_json_without_unforeseen_errors() -> None:
    good = json.dumps({"level": "error", "message": "The queue is full."})
    assert log_problems(f"{good}\n{good}\n") == []
    bad = [json.dumps({"message": "Call failed unexpectedly."}), "Fatal Python error", "text"]
    first, second = log_problems("\n".join([good, *bad]))
    assert "'failed unexpectedly'" in first
    assert "not JSON: Fatal" in second


@pytest.mark.parametrize(
    ("status", "answer", "problems"),
    [(400, b'{"error": "why"}', 0), (400, b"why", 1), (500, b'{"error": "why"}', 1), (200, b"", 0)],
)
def test_an_error_is_allowed_and_is_json(status: int, answer: bytes, problems: int) -> None:
    harm = Harm.__new__(Harm)
    harm.problems = []
    expect(harm, "a request", status, answer, {200, 400})
    assert len(harm.problems) == problems


def test_a_short_soak_with_one_fault_of_each_kind_finds_nothing(tmp_path: Path) -> None:
    report = soak(3, 1, tmp_path, only=("worker_is_killed", "inputs_are_bad"))
    assert report.problems == []
    assert report.did["worker_is_killed"] >= 1
    assert report.did["inputs_are_bad"] >= 1
    assert set(report.answers) == {"http", "grpc"}
    assert "0 problems with --seed 1" in str(report)


def test_the_faults_have_names_of_their_own() -> None:
    assert PROCESS_FAULTS.keys().isdisjoint(OTHER_FAULTS)
