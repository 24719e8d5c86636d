"""The overload benchmark in a very short form on a real server: its structure, not its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import served_models
from benchmarks.load.attacks import ATTACKS
from benchmarks.overload import __main__ as command
from benchmarks.overload.measure import with_timeout
from benchmarks.overload.models import write_slow, write_transformer
from benchmarks.overload.results import Plan, judge, read
from benchmarks.wire_formats import WIRES

SHORT = Plan(
    peak_s=0.3, normal_s=0.5, overload_s=0.5, recovery_s=0.5, abuse_s=0.5, rest_s=0.1
)  # fmt: skip


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--models", "fast,large"]) == 2
    assert "'large'" in capsys.readouterr().err
    assert command.main(["--attacks", "none"]) == 2
    assert "json-lists" in capsys.readouterr().err


def test_a_short_run_reports_every_arrival_and_every_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Plan", lambda: SHORT)
    arguments = ["--models", "fast", "--unpinned", "--attacks", "cancelled-calls"]
    status = command.main([*arguments, "--results", str(tmp_path)])
    (file,) = tmp_path.glob("*-overload.json")
    results = read(file)
    assert results.problems == []
    assert results.finished
    names = [scenario.name for scenario in results.scenarios]
    assert names == [
        "fast, http",
        "fast, http, deadline 1 s",
        "fast, grpc",
        "fast, grpc, deadline 1 s",
    ]
    for scenario in results.scenarios:
        assert any(phase.results.get("ok") for phase in scenario.peaks)
        for phase in (*scenario.peaks, scenario.light, scenario.overload, scenario.recovery):
            assert sum(phase.results.values()) == round(phase.sent * phase.seconds)
            assert phase.sent <= phase.offered
            assert phase.generator_cores > 0
        assert scenario.peak > 0
        assert [each.path for each in scenario.probed if each.count] != []
    assert [abuse.name for abuse in results.abuses] == ["cancelled-calls"]
    for abuse in results.abuses:
        assert abuse.did
        # A worker may give memory back meanwhile, so that the peak is below what it was before.
        assert min(abuse.before_mb, abuse.peak_mb) > 20
    verdicts = judge(results)
    assert len(verdicts) == 4 * 7 + 4
    assert status == (0 if all(verdict.holds for verdict in verdicts) else 1)
    output = capsys.readouterr().out
    assert output.startswith(file.with_suffix(".md").read_text())
    for verdict in verdicts:
        assert verdict.measured in output


def test_every_attack_says_what_it_does() -> None:
    assert all(attack.__doc__ for attack in ATTACKS.values())


def test_a_timeout_is_a_parameter_of_the_request() -> None:
    body = WIRES["binary"].encode(served_models.test_images(2))
    changed = with_timeout(body, 1.5)
    length = int(dict(changed.headers)["inference-header-content-length"])
    assert json.loads(changed.content[:length])["parameters"]["timeout"] == 1_500_000
    assert changed.content[length:] == served_models.test_images(2).tobytes()


def test_the_slow_model_answers_as_the_net_that_it_slows(tmp_path: Path) -> None:
    served_models.repository("mlp")
    write_slow(tmp_path / "model.onnx", 0.002)
    images = served_models.test_images(3)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    (answer,) = session.run(["probabilities"], {"image": images})
    np.testing.assert_allclose(answer, served_models.expected("mlp", images), atol=1e-5)


def test_the_transformer_has_an_open_length(tmp_path: Path) -> None:
    write_transformer(tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx")
    for length in (1, 7):
        (answer,) = session.run(None, {"x": np.ones((1, length, 64), np.float32)})
        assert answer.shape == (1, length, 64)
