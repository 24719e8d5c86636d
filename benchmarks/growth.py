"""python -m benchmarks.growth: how cost grows with each thing that can.

Five curves: throughput and latency over connections (1 to 512), over images in a request (1 to
4,096), over the size of a picture's body, over models loaded (1 to 64; with memory and time to
ready), and memory over requests served (2 million). The first three beside the bare RSGI floor.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import machine, models
from benchmarks.check import WrongAnswer, ask
from benchmarks.contenders import CONTENDERS
from benchmarks.growth_report import write_report
from benchmarks.load import wrk
from benchmarks.load.result import missing_tools
from benchmarks.processes import Server
from benchmarks.settings import RESULTS
from benchmarks.wire import WIRES, Body

_SERVER_CORE, _LOAD_CORE = 0, 1
_READY_WITHIN_S = 120.0
_PATH = "/predict"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    seconds: int = 3
    connections: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    batches: Sequence[int] = (1, 4, 16, 64, 256, 1024, 4096)
    sides: Sequence[int] = (28, 64, 128, 256, 512, 1024)
    loaded: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    requests: int = 2_000_000
    rss_points: int = 40


@dataclass(slots=True)
class Point:
    """One measurement; what a curve does not measure stays 0."""

    x: float
    requests_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    failed: int = 0
    rss_mb: float = 0.0
    ready_s: float = 0.0


@dataclass(slots=True)
class Curve:
    """Points of one contender along one axis."""

    name: str
    contender: str
    model: str
    points: list[Point] = field(default_factory=list)


def over_connections(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """One raw image a request, more and more connections."""
    body = WIRES["raw"].encode(models.test_images(1))
    for contender in ("ours", "floor-rsgi"):
        with _serving(contender, models.repository("mlp"), scratch) as server:
            curve = Curve("connections", contender, "mlp")
            for connections in plan.connections:
                curve.points.append(_point(server, connections, body, connections, plan, scratch))
            yield curve


def over_batch(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """More and more raw images in each request of one connection."""
    for contender in ("ours", "floor-rsgi"):
        with _serving(contender, models.repository("mlp"), scratch) as server:
            curve = Curve("batch", contender, "mlp")
            for images in plan.batches:
                body = WIRES["raw"].encode(models.test_images(images))
                curve.points.append(_point(server, images, body, 1, plan, scratch))
            yield curve


def over_body(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """A PNG of one digit, larger and larger, at 16 connections; x is bytes."""
    with _serving("ours", models.repository("fast"), scratch) as server:
        curve = Curve("body", "ours", "fast")
        for side in plan.sides:
            body = Body(picture(side), (("content-type", "image/png"),))
            curve.points.append(_point(server, len(body.content), body, 16, plan, scratch))
        yield curve


def over_models(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """More and more copies of `fast` in the repository, one of which is asked."""
    curve = Curve("models", "ours", "fast")
    body = WIRES["raw"].encode(models.test_images(1))
    for count in plan.loaded:
        repository = scratch / f"repository-{count}"
        for index in range(count):
            name = "mnist" if index == 0 else f"copy-{index}"
            shutil.copytree(models.repository("fast") / "mnist", repository / name)
        with _serving("ours", repository, scratch) as server:
            point = _point(server, count, body, 16, plan, scratch)
            point.ready_s = server.ready_s
            curve.points.append(point)
    yield curve


def over_requests(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """Memory while requests are served, at 64 connections; x is requests so far."""
    body = WIRES["raw"].encode(models.test_images(1))
    with _serving("ours", models.repository("mlp"), scratch) as server:
        curve = Curve("requests", "ours", "mlp")
        served = 0
        while served < plan.requests:
            # As many seconds as a part of the whole takes at the rate so far.
            rate = curve.points[-1].requests_per_s if curve.points else 0.0
            seconds = max(1, round(plan.requests / plan.rss_points / rate)) if rate else 1
            load = wrk.load(
                _url(server), body, connections=64, seconds=seconds, core=_load_core(),
                scratch=scratch,
            )  # fmt: skip
            served += load.requests
            point = Point(served, load.requests / load.seconds, load.p50_ms, load.p99_ms)
            point.failed, point.rss_mb = load.failed, server.rss_mb()
            curve.points.append(point)
        yield curve


CURVES: dict[str, Callable[[Plan, Path], Iterator[Curve]]] = {
    "connections": over_connections,
    "batch": over_batch,
    "body": over_body,
    "models": over_models,
    "requests": over_requests,
}


def picture(side: int) -> bytes:
    """A PNG of the first test digit with faint noise, which keeps its size near its pixels'."""
    digit = Image.fromarray(models.test_images(1)[0]).resize((side, side))
    noise = np.random.default_rng(0).integers(0, 32, (side, side), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.maximum(np.asarray(digit), noise)).save(file, "PNG")
    return file.getvalue()


class _Ready(Server):
    """A server with the time that it took to be ready."""

    ready_s = 0.0


@contextmanager
def _serving(name: str, repository: Path, scratch: Path) -> Iterator[_Ready]:
    contender = next(each for each in CONTENDERS if each.name == name)
    server = _Ready(
        contender, models=repository, venv=None, scratch=scratch,
        core=_SERVER_CORE if _can_pin() else None,
    )  # fmt: skip
    try:
        server.ready_s = server.wait_until(lambda: _answers(server), _READY_WITHIN_S)
        yield server
    finally:
        server.stop()


def _answers(server: Server) -> bool:
    try:
        ask(server.http_port, _PATH, "raw", WIRES["raw"].encode(models.test_images(1)))
    except (OSError, WrongAnswer):
        return False
    return True


def _point(
    server: Server, x: float, body: Body, connections: int, plan: Plan, scratch: Path
) -> Point:
    for seconds in (1, plan.seconds):
        load = wrk.load(
            _url(server), body, connections=connections, seconds=seconds, core=_load_core(),
            scratch=scratch,
        )  # fmt: skip
    rate = load.requests / load.seconds
    print(f"{server.contender.name}: {x:,.0f}: {rate:,.0f}/s, p99 {load.p99_ms:.3g} ms", flush=True)
    return Point(x, rate, load.p50_ms, load.p99_ms, load.failed, server.rss_mb())


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{server.http_port}{_PATH}"


def _can_pin() -> bool:
    return len(os.sched_getaffinity(0)) > 1


def _load_core() -> int | None:
    return _LOAD_CORE if _can_pin() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the curves, write DATE-MACHINE-growth.json with its report and plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--curves", default=",".join(CURVES), help="(default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=Plan().seconds)
    parser.add_argument("--requests", type=int, default=Plan().requests)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    names = given.curves.split(",")
    if unknown := set(names) - set(CURVES):
        print(f"growth: There is no curve '{min(unknown)}'.", file=sys.stderr)
        return 2
    if missing := missing_tools():
        print("growth: " + "; ".join(missing) + ".", file=sys.stderr)
        return 2
    path = measure(names, Plan(seconds=given.seconds, requests=given.requests), given.results)
    print(write_report(path))
    return 0


def measure(names: Sequence[str], plan: Plan, folder: Path) -> Path:
    """Measure the curves of these names; the file written."""
    described, now = machine.describe(), datetime.datetime.now(datetime.UTC)
    told: dict[str, Any] = {
        "date": now.isoformat(timespec="seconds"), "machine": described, "plan": asdict(plan),
        "curves": [],
    }  # fmt: skip
    path = machine.results_file(folder, now, described, "growth")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mnist-growth-") as scratch:
        for name in names:
            for curve in CURVES[name](plan, Path(scratch)):
                told["curves"].append(asdict(curve))
                path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
