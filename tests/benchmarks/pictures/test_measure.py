"""All figures, of a few pictures."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from benchmarks.pictures.kinds import KINDS
from benchmarks.pictures.measure import digits_of, measure
from benchmarks.pictures.outliers import MAKERS
from benchmarks.pictures.results import Plan, read
from tests.benchmarks.pictures.judging_model import write_judging_model
from training.data.mnist import FILES

FEW = Plan(digits=2, outliers=3, numbers=1, timed=1)


def write_clothes(folder: Path) -> Path:
    """Ten images and labels in the IDX format under each of the four names."""
    folder.mkdir()
    for name in FILES:
        shape = (10, 28, 28) if "images" in name else (10,)
        header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
        (folder / name).write_bytes(header + np.ones(shape, np.uint8).tobytes())
    return folder


def test_every_figure_is_measured_for_every_model(tmp_path: Path) -> None:
    models = [write_judging_model(tmp_path / "mnist" / str(n), least=0.2 * n) for n in (1, 2)]
    path = measure(models, FEW, tmp_path / "results", write_clothes(tmp_path / "clothes"))
    results = read(path)
    assert results.models == ["mnist/1", "mnist/2"]
    assert [kind.name for kind in results.kinds] == list(KINDS)
    assert not results.not_measured
    names = [bar.name for bar in results.bars]
    assert len(names) == len(set(names)) == len(KINDS) + 5 + len(MAKERS) + 2 + 4 + 3
    for bar in results.bars:
        assert len(bar.values) == (1 if bar.name.startswith("picture of") else 2)
        assert not any(math.isnan(value) for value in bar.values)
    for shares in results.reasons.values():
        assert math.isclose(sum(shares.values()), 100)
    # The second model is stricter.
    (refused,) = [bar.values for bar in results.bars if bar.name.endswith("not accepted")]
    assert refused[0] < refused[1]


def test_the_same_digits_are_drawn_in_every_run() -> None:
    assert (digits_of(Plan()) == digits_of(Plan())).all()
    assert len(set(digits_of(Plan()).tolist())) == 1000


def test_missing_clothes_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    model = write_judging_model(tmp_path / "mnist" / "1")
    results = read(measure([model], FEW, tmp_path / "results", tmp_path / "empty"))
    (line,) = results.not_measured
    assert line.startswith("Fashion-MNIST: ")
