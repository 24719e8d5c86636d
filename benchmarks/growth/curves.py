"""The curves: what each varies, and how it is measured."""

from __future__ import annotations

import datetime
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import host, served_models
from benchmarks.check import is_ready
from benchmarks.contenders import CONTENDERS
from benchmarks.growth.results import Curve, Growth, Plan, Point
from benchmarks.json_file import write_json
from benchmarks.load import wrk
from benchmarks.load.result import Load
from benchmarks.server_process import LOAD_CORE, SERVER_CORE, Server
from benchmarks.wire_formats import WIRES, Body

_READY_WITHIN_S = 120.0
_PATH = "/predict"


def over_connections(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """One raw image per request on 1 to 512 connections."""
    body = WIRES["raw"].encode(served_models.test_images(1))
    for contender in ("ours", "floor-rsgi"):
        with _serving(contender, served_models.repository("mlp"), scratch) as (server, _):
            curve = Curve("connections", contender, "mlp")
            for connections in plan.connections:
                curve.points.append(
                    _point(server, connections, body, connections, plan.seconds, scratch)
                )
            yield curve


def over_batch(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """1 to 4,096 raw images per request on one connection."""
    for contender in ("ours", "floor-rsgi"):
        with _serving(contender, served_models.repository("mlp"), scratch) as (server, _):
            curve = Curve("batch", contender, "mlp")
            for images in plan.batches:
                body = WIRES["raw"].encode(served_models.test_images(images))
                curve.points.append(_point(server, images, body, 1, plan.seconds, scratch))
            yield curve


def over_body(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """A PNG of one digit in growing sizes, on 16 connections; x is its bytes."""
    with _serving("ours", served_models.repository("fast"), scratch) as (server, _):
        curve = Curve("body", "ours", "fast")
        for side in plan.sides:
            body = Body(picture(side), (("content-type", "image/png"),))
            x = len(body.content)
            curve.points.append(_point(server, x, body, 16, plan.seconds, scratch))
        yield curve


def over_models(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """1 to 64 copies of `fast` in the repository; all requests go to one."""
    curve = Curve("models", "ours", "fast")
    body = WIRES["raw"].encode(served_models.test_images(1))
    for count in plan.loaded:
        repository = scratch / f"repository-{count}"
        for index in range(count):
            name = "mnist" if index == 0 else f"copy-{index}"
            shutil.copytree(served_models.repository("fast") / "mnist", repository / name)
        with _serving("ours", repository, scratch) as (server, ready_s):
            point = _point(server, count, body, 16, plan.seconds, scratch)
            point.ready_s = ready_s
            curve.points.append(point)
    yield curve


def over_requests(plan: Plan, scratch: Path) -> Iterator[Curve]:
    """Memory while requests are served on 64 connections; x is the number of requests so far."""
    body = WIRES["raw"].encode(served_models.test_images(1))
    with _serving("ours", served_models.repository("mlp"), scratch) as (server, _):
        curve = Curve("requests", "ours", "mlp")
        served = 0
        while served < plan.requests:
            # The time that one of `rss_points` equal parts takes at the current rate.
            rate = curve.points[-1].requests_per_s if curve.points else 0.0
            seconds = max(1, round(plan.requests / plan.rss_points / rate)) if rate else 1
            load = _load(server, body, 64, seconds, scratch)
            served += load.requests
            curve.points.append(_as_point(served, load, server))
        yield curve


CURVES: dict[str, Callable[[Plan, Path], Iterator[Curve]]] = {
    "connections": over_connections,
    "batch": over_batch,
    "body": over_body,
    "models": over_models,
    "requests": over_requests,
}


def measure(names: Sequence[str], plan: Plan, folder: Path) -> Path:
    """Measure the curves with these names; returns the results file."""
    now, machine = datetime.datetime.now(datetime.UTC), host.describe()
    growth = Growth(now.isoformat(timespec="seconds"), machine, plan)
    path = host.results_file(folder, now, machine, "growth")
    with tempfile.TemporaryDirectory(prefix="mnist-growth-") as scratch:
        for name in names:
            for curve in CURVES[name](plan, Path(scratch)):
                growth.curves.append(curve)
                write_json(path, growth)
    return path


def picture(side: int) -> bytes:
    """A PNG of the first test digit; faint noise keeps its bytes proportional to its pixels."""
    digit = Image.fromarray(served_models.test_images(1)[0]).resize((side, side))
    noise = np.random.default_rng(0).integers(0, 32, (side, side), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.maximum(np.asarray(digit), noise)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def _serving(name: str, repository: Path, scratch: Path) -> Iterator[tuple[Server, float]]:
    """A running server, and the seconds it took to become ready."""
    with Server(
        next(contender for contender in CONTENDERS if contender.name == name),
        models=repository,
        venv=None,
        scratch=scratch,
        core=SERVER_CORE if _can_pin() else None,
    ) as server:
        yield server, server.wait_until(lambda: is_ready(server, "raw"), _READY_WITHIN_S)


def _point(
    server: Server, x: float, body: Body, connections: int, seconds: int, scratch: Path
) -> Point:
    _load(server, body, connections, 1, scratch)  # warm up
    point = _as_point(x, _load(server, body, connections, seconds, scratch), server)
    print(
        f"{server.contender.name}: {x:,.0f}: {point.requests_per_s:,.0f}/s, "
        f"p99 {point.p99_ms:.3g} ms",
        flush=True,
    )
    return point


def _load(server: Server, body: Body, connections: int, seconds: int, scratch: Path) -> Load:
    return wrk.load(
        f"http://127.0.0.1:{server.http_port}{_PATH}",
        body,
        connections=connections,
        seconds=seconds,
        core=LOAD_CORE if _can_pin() else None,
        scratch=scratch,
    )


def _as_point(x: float, load: Load, server: Server) -> Point:
    return Point(
        x=x,
        requests_per_s=load.requests / load.seconds,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        failed=load.failed,
        rss_mb=server.rss_mb(),
    )


def _can_pin() -> bool:
    return len(os.sched_getaffinity(0)) > 1
