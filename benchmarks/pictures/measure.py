"""All figures: the kinds, what is refused, the digits of MNIST, cost, and numbers."""

from __future__ import annotations

import datetime
import gzip
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks import host, served_models
from benchmarks.json_file import write_json
from benchmarks.paths import ROOT
from benchmarks.pictures import strings
from benchmarks.pictures.kinds import KINDS
from benchmarks.pictures.model import Answers, Model, judgement_us
from benchmarks.pictures.outliers import MAKERS
from benchmarks.pictures.results import Bar, Kind, Pictures, Plan, percent
from benchmarks.pictures.seen import FASHION_PICTURES, FASHION_PIXELS, Pool, Seen, drawn, pool
from service.core.digits import REASONS, Pixels
from service.core.pictures.digit import find_digit
from service.core.pictures.files import open_picture
from training.data.mnist import load_fashion
from training.errors import DataError
from training.evaluation.metrics import calibration_error

Labels = npt.NDArray[np.uint8]

# Points that a kind may lose to the clean kind, and its least accuracy.
_LOSS = {"thin_pen": 4.0, "tilted_ruling": 4.0}
_LEAST = {"tilted_box": 90.0}
# The least share of each outlier that is not accepted, in percent.
_REFUSED = {
    "blank": 100.0,
    "noise": 99.0,
    "letter_picture": 93.0,
    "letter_pixels": 93.0,
    "sign_picture": 75.0,
    FASHION_PIXELS: 97.0,
    FASHION_PICTURES: 95.0,
    "separate_digits": 95.0,
    "touching_digits": 93.0,
}
# Pixels a side, and the most milliseconds.
_SIDES = ((256, 2.0), (1000, 5.0))
_REPEATS = 5
# Numbers are read in this many parts, with seeds of their own, to keep all cores busy.
_PARTS = 4


def measure(models: Sequence[Path], plan: Plan, folder: Path, fashion: Path | None = None) -> Path:
    """Measure all figures of model versions (folders with a model.onnx); returns the results file.

    `fashion` is a folder with Fashion-MNIST, None: that of Debian's package.
    """
    began = time.monotonic()
    now, machine = datetime.datetime.now(datetime.UTC), host.describe()
    results = Pictures(
        now.isoformat(timespec="seconds"), machine, plan, [_name_of(path) for path in models]
    )
    path = host.results_file(folder, now, machine, "pictures")
    loaded = [Model(folder) for folder in models]
    images, labels = served_models.test_images(10_000), _test_labels()
    _digits(results, loaded, images, labels)
    _cost(results, models, images)
    with pool(plan.seed) as drawing:
        _kinds(results, loaded, images, labels, drawing)
        write_json(path, results)
        _outliers(results, loaded, drawing, fashion)
        write_json(path, results)
        _numbers(results, models, drawing)
    results.seconds = time.monotonic() - began
    write_json(path, results)
    return path


def digits_of(plan: Plan) -> npt.NDArray[np.int64]:
    """Indexes of the test images that are drawn in every kind."""
    return np.sort(np.random.default_rng(plan.seed).permutation(10_000)[: plan.digits])


def _kinds(
    results: Pictures, models: Sequence[Model], images: Pixels, labels: Labels, drawing: Pool
) -> None:
    chosen = digits_of(results.plan)
    clean = 0.0
    for name in KINDS:
        seen = drawing.see(name, len(chosen), images[chosen])
        kind = Kind(name, [], [], [])
        for model in models:
            answers = model.answers(seen.pixels)
            right = answers.digits == labels[chosen]
            accepted = _reasons(answers, seen) == 0
            kind.accuracy.append(percent(right.sum(), len(right)))
            kind.not_accepted.append(percent((~accepted).sum(), len(right)))
            kind.accepted_and_right.append(percent((right & accepted).sum(), accepted.sum()))
        results.kinds.append(kind)
        clean = fmean(kind.accuracy) if name == "clean" else clean
        bound = _LEAST.get(name, max(95.0, clean - _LOSS.get(name, 2.0)))
        if name == "clean":
            bound = 95.0
        results.bars.append(
            Bar("kinds, accuracy", name, "%", round(bound, 2), False, kind.accuracy)
        )
        print(f"{name}: {fmean(kind.accuracy):.2f} %", flush=True)


def _digits(results: Pictures, models: Sequence[Model], images: Pixels, labels: Labels) -> None:
    figures: dict[str, list[float]] = {
        name: [] for name in ("accuracy", "refused", "right", "calibration", "coverage")
    }
    for model in models:
        answers = model.answers(images)
        right, accepted = answers.digits == labels, answers.reasons == 0
        covered = answers.sets[np.arange(len(labels)), labels]
        figures["accuracy"].append(percent(right.sum(), len(right)))
        figures["refused"].append(percent((~accepted).sum(), len(right)))
        figures["right"].append(percent((right & accepted).sum(), accepted.sum()))
        error = math.nan
        if accepted.any():
            error = calibration_error(
                torch.from_numpy(answers.probabilities[accepted]),
                torch.from_numpy(labels[accepted].astype(np.int64)),
            )
        figures["calibration"].append(100 * error)
        figures["coverage"].append(percent(covered.sum(), len(covered)))
        results.coverage_by_digit.append(
            [
                percent(covered[labels == digit].sum(), (labels == digit).sum())
                for digit in range(10)
            ]
        )
        results.set_size.append(float(answers.sets.sum(axis=1).mean()))
    for name, key, bound, at_most in (
        ("MNIST's test images, accuracy", "accuracy", 99.6, False),
        ("MNIST's test images, not accepted", "refused", 2.0, True),
        ("accepted ones, right", "right", 99.9, False),
        ("accepted ones, calibration error", "calibration", 0.3, True),
        ("prediction set holds the truth", "coverage", 99.9, False),
    ):
        results.bars.append(Bar("MNIST", name, "%", bound, at_most, figures[key]))


def _outliers(
    results: Pictures, models: Sequence[Model], drawing: Pool, fashion: Path | None
) -> None:
    count = results.plan.outliers
    clothes: Pixels | None = None
    try:
        clothes = load_fashion(fashion).test_images.numpy()
    except DataError as error:
        results.not_measured.append(f"Fashion-MNIST: {error}")
    for name in (*MAKERS, FASHION_PIXELS, FASHION_PICTURES):
        if name in MAKERS:
            seen = drawing.see(name, count)
        elif clothes is None:
            continue
        else:
            random = np.random.default_rng(results.plan.seed)
            chosen = random.permutation(len(clothes))[:count]
            seen = drawing.see(name, len(chosen), clothes[chosen])
        refused: list[float] = []
        counts: Counter[str] = Counter()
        for model in models:
            reasons = _reasons(model.answers(seen.pixels), seen)
            refused.append(percent((reasons > 0).sum(), len(reasons)))
            counts.update(REASONS[reason] for reason in reasons)
        results.reasons[name] = {
            reason: percent(counts[reason], counts.total()) for reason in REASONS
        }
        results.bars.append(Bar("not accepted", name, "%", _REFUSED[name], False, refused))
        print(f"{name}: {fmean(refused):.2f} % not accepted", flush=True)


def _reasons(answers: Answers, seen: Seen) -> npt.NDArray[np.uint8]:
    """The reasons that the service answers: the pipeline's before the graph's."""
    return np.where(seen.reasons > 0, seen.reasons, answers.reasons)


def _cost(results: Pictures, models: Sequence[Path], images: Pixels) -> None:
    plan = results.plan
    chosen = digits_of(plan)
    for side, bound in _SIDES:
        least = []
        for index in range(plan.timed):
            name = list(KINDS)[index % len(KINDS)]
            picture = drawn(name, plan.seed, index, images[chosen[index % len(chosen)]])
            if isinstance(picture, bytes):
                picture = open_picture(picture, 10**8, 10**8)
            assert isinstance(picture, Image.Image)
            picture.load()
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
            least.append(min(_milliseconds(picture) for _ in range(_REPEATS)))
        name = f"picture of {side}x{side} pixels"
        results.bars.append(Bar("CPU time", name, "ms", bound, True, [fmean(least)]))
        print(f"{name}: {fmean(least):.2f} ms, slowest {max(least):.2f} ms", flush=True)
    added = [judgement_us(folder) for folder in models]
    results.bars.append(Bar("CPU time", "judgement, per image of 64", "us", 5.0, True, added))


def _milliseconds(picture: Image.Image) -> float:
    copy = picture.copy()
    began = time.process_time()
    find_digit(copy)
    return 1e3 * (time.process_time() - began)


def _numbers(results: Pictures, models: Sequence[Path], drawing: Pool) -> None:
    for touching, bound in ((False, 1.0), (True, 8.0)):
        name = "touching pairs" if touching else "separate digits"
        part = -(-results.plan.numbers // _PARTS)
        jobs = [(models, touching, part, results.plan.seed + number) for number in range(_PARTS)]
        parts = list(drawing.executor.map(_read_numbers, jobs))
        below, cost = np.mean(parts, axis=0).T.tolist()
        results.bars.append(
            Bar("numbers", f"{name}, points below the product", "points", bound, True, below)
        )
        results.bars.append(Bar("numbers", f"{name}, per megapixel", "ms", 10.0, True, cost))
        print(f"numbers, {name}: {fmean(below):.2f} points below the product", flush=True)


def _read_numbers(job: tuple[Sequence[Path], bool, int, int]) -> list[tuple[float, float]]:
    """For each model, the points by which exact readings fall below the product, and ms per MP."""
    folders, touching, count, seed = job
    results = strings.measure(
        [Model(folder).predictions for folder in folders],
        served_models.test_images(10_000),
        _test_labels(),
        half="test",
        touching=touching,
        count=count,
        seed=seed,
    )
    return [(100 * (read.product - read.exact), read.ms_per_megapixel) for read in results]


def _test_labels() -> Labels:
    content = (ROOT / "training/data/bundled/t10k-labels-idx1-ubyte.gz").read_bytes()
    return np.frombuffer(gzip.decompress(content), np.uint8, offset=8)


def _name_of(folder: Path) -> str:
    """The version with its model's name, `mnist/2`."""
    return "/".join(folder.resolve().parts[-2:])
