"""Failures that were found once, each by the behaviour that was wrong."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flask
import numpy as np
import pytest
from PIL import Image

from service.core.batching import Batcher, BatchLimits
from service.core.errors import InvalidArgument
from service.core.images import open_image, to_pixels
from service.core.tensors import Array
from service.http.answering import Answerer
from service.http.compression import Compression
from service.http.flask_app import create_app
from service.observe.metrics import Metrics
from service.observe.recorder import RequestRecorder
from service.repository.models import Repository
from service.runtime.session import SessionOptions
from service.settings import SettingsError, load
from tests.conftest import SHIPPED_MODELS
from tests.service.composition import operations_of

EXECUTOR = ThreadPoolExecutor(2)


class Slow:
    """A session of which every joined run fails and every single run takes its time."""

    batchable = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def expected_seconds(self, rows: int) -> float:
        return self.seconds

    def run(self, inputs: list[Array]) -> list[Array]:
        if len(inputs[0]) > 1:
            raise RuntimeError("joined")
        time.sleep(self.seconds)
        return list(inputs)


def repository(root: Path, told: list[int] | None = None) -> Repository:
    made = Repository(
        root,
        SessionOptions("cpu"),
        lambda name, version, session: Batcher(session, BatchLimits(), EXECUTOR),
        EXECUTOR,
        2,
        lambda: told.append(len(made.failures)) if told is not None else None,
    )
    return made


@pytest.fixture
def app(tmp_path: Path) -> Iterator[flask.Flask]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    operations = operations_of(repository(tmp_path), "mnist")
    recorder = RequestRecorder(Metrics(), "none")
    answerer = Answerer(operations, recorder, Compression(1 << 20, 1024))
    yield create_app(answerer, loop, 1 << 20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_two_specks_on_a_large_page_are_refused_as_blank() -> None:
    page = np.full((1000, 1000), 255, np.uint8)
    page[5, 5] = page[-6, -6] = 0
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG")
    with pytest.raises(InvalidArgument, match="blank"):
        to_pixels(open_image(file.getvalue(), 16_000_000))


@pytest.mark.parametrize(
    "card",
    [
        '{"output_kinds": {"logits": ["logits"]}}',
        "[" * 200_000,
        '{"sha256": ' + "1" * 5000 + "}",
    ],
    ids=["unhashable kind", "deep nesting", "endless number"],
)
def test_a_damaged_card_is_a_failure_on_record(tmp_path: Path, card: str) -> None:
    version = tmp_path / "mnist" / "1"
    version.mkdir(parents=True)
    shutil.copy(SHIPPED_MODELS / "mnist" / "1" / "model.onnx", version)
    (version / "model.json").write_text(card)
    served = repository(tmp_path)
    asyncio.run(served.refresh())
    assert "model.json" in served.failures["mnist/1"]


def test_who_reports_failures_is_told_when_a_broken_version_is_deleted(tmp_path: Path) -> None:
    told: list[int] = []
    served = repository(tmp_path, told)
    (tmp_path / "mnist" / "2").mkdir(parents=True)
    (tmp_path / "mnist" / "2" / "model.onnx").write_bytes(b"no model")
    asyncio.run(served.refresh())
    assert told[-1] == 1
    shutil.rmtree(tmp_path / "mnist" / "2")
    asyncio.run(served.refresh())
    assert told[-1] == 0


def test_members_of_a_failed_slow_batch_are_retried_off_the_loop() -> None:
    async def longest_stall() -> float:
        batcher = Batcher(Slow(0.05), BatchLimits(), EXECUTOR)
        row = np.zeros((1, 1))
        waiting = [batcher.submit([row], 1) for _ in range(6)]
        longest, last = 0.0, time.perf_counter()
        while not all(future.done() for future in waiting):
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        assert all(len(future.result()[0]) == 1 for future in waiting)
        return longest

    assert asyncio.run(longest_stall()) < 0.15  # 0.3 where the loop runs them


def test_cancelled_requests_make_room_in_a_full_queue() -> None:
    async def accepted() -> None:
        batcher = Batcher(Slow(0.05), BatchLimits(max_queue=2), EXECUTOR)
        row = np.zeros((1, 1))
        running = batcher.submit([row], 1)
        await asyncio.sleep(0)  # it is in the thread now
        batcher.submit([row], 1).cancel()
        batcher.submit([row], 1).cancel()
        await asyncio.gather(running, batcher.submit([row], 1))

    asyncio.run(accepted())


@pytest.mark.parametrize("flag", ["poll-interval", "body-timeout", "max-queue-delay"])
def test_nan_is_within_no_bounds(flag: str) -> None:
    with pytest.raises(SettingsError, match=flag.replace("-", "_")):
        load([f"--{flag}", "nan"], {})


@pytest.mark.parametrize("value", ["[1]", "5", "{a = 1}"])
def test_a_text_setting_takes_nothing_but_text(tmp_path: Path, value: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"host = {value}\n")
    with pytest.raises(SettingsError, match="host"):
        load(["--config", str(file)], {})


def test_an_unexpected_error_in_flask_is_the_servers_fault(app: flask.Flask) -> None:
    app.add_url_rule("/boom", "boom", lambda: 1 // 0)
    answer = app.test_client().get("/boom")
    assert answer.status_code == 500
    assert answer.headers["x-request-id"]
