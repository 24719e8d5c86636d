"""A version's answers, with and without a judgement in its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import served_models
from benchmarks.pictures.model import Model, judgement_us
from tests.benchmarks.pictures.judging_model import write_judging_model

IMAGES = served_models.test_images(100)


def test_the_judgement_of_the_graph_is_read(tmp_path: Path) -> None:
    model = Model(write_judging_model(tmp_path, least=0.9))
    answers = model.answers(IMAGES)
    largest = answers.probabilities.max(axis=1)
    assert 0 < (answers.reasons > 0).sum() < 100
    assert ((answers.reasons == 0) == (largest > 0.9)).all()
    assert (answers.sets == (answers.probabilities > 0.01)).all()
    predictions = model.predictions(IMAGES)
    assert [prediction.accepted for prediction in predictions] == (largest > 0.9).tolist()
    assert [prediction.digit for prediction in predictions] == answers.digits.tolist()


def test_a_model_without_a_judgement_accepts_everything(tmp_path: Path) -> None:
    served_models.write_mlp(tmp_path / "model.onnx")
    answers = Model(tmp_path).answers(IMAGES)
    assert not answers.reasons.any()
    assert (answers.sets.sum(axis=1) == 1).all()
    assert answers.sets[np.arange(100), answers.digits].all()
    assert judgement_us(tmp_path) == 0


def test_the_cost_of_a_judgement_is_that_of_a_few_nodes(tmp_path: Path) -> None:
    assert -5 < judgement_us(write_judging_model(tmp_path), rounds=3) < 50
