"""The control plane of one worker and of two, without a server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.core.batching import Batcher, BatchLimits
from service.core.errors import (
    AlreadyExists,
    Forbidden,
    InvalidArgument,
    ModelLoadError,
    ModelNotFound,
    NotFound,
    Unimplemented,
)
from service.observe import metrics
from service.observe.metrics import Metrics
from service.operations.administration import Administration
from service.repository.models import Repository
from service.runtime import shared_memory
from service.runtime.session import SessionOptions
from service.runtime.shared_memory import SharedRegion, SharedRegions
from service.settings import Settings
from tests.e2e.onnx_models import publish_identity

MODEL = "identity_fp32"
REGION = SharedRegion(name="r", key="/k", offset=0, byte_size=4)


class Worker:
    """What `service.worker` builds of a control plane."""

    def __init__(
        self, root: Path, executor: ThreadPoolExecutor, folder: Path | None, **settings: Any
    ) -> None:
        self.repository = Repository(
            root,
            SessionOptions("cpu"),
            make_batcher=lambda name, version, session: Batcher(session, BatchLimits(), executor),
            executor=executor,
        )
        self.regions = SharedRegions(limit=2, max_read_bytes=100)
        self.administration = Administration(
            repository=self.repository,
            regions=self.regions,
            settings=Settings(**settings),
            limits=BatchLimits(),
            state_folder=folder,
        )

    async def start(self) -> Administration:
        await self.administration.start()
        await self.repository.refresh()
        return self.administration

    async def infer(self, rows: int) -> None:
        """Run one request of this many rows."""
        batcher = self.repository.get(MODEL).batcher
        await batcher.submit([np.zeros((rows, 2), np.float32)], rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    publish_identity(tmp_path / "models", "FP32")
    return tmp_path / "models"


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm, with an object `k` of 8 bytes."""
    folder = tmp_path / "shm"
    folder.mkdir()
    (folder / "k").write_bytes(bytes(8))
    monkeypatch.setattr(shared_memory, "_FOLDER", folder)
    return folder


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """Restore the level of the root logger, which the control plane changes."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


Scenario = Callable[[Worker], Awaitable[None]]


def run(root: Path, scenario: Scenario, **settings: Any) -> None:
    """Run a scenario on one worker that has started."""

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            worker = Worker(root, executor, None, **settings)
            await worker.start()
            await asyncio.wait_for(scenario(worker), 120)

    asyncio.run(main())


def run_two(
    root: Path,
    scenario: Callable[[Worker, Worker], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run a scenario on two workers of one server, each under a process id that exists."""

    async def main() -> None:
        folder = root.parent / "state"
        folder.mkdir()
        with ThreadPoolExecutor(2) as executor:
            workers = []
            for pid in (1, os.getpid()):
                with monkeypatch.context() as patch:
                    patch.setattr(os, "getpid", lambda pid=pid: pid)
                    workers.append(Worker(root, executor, folder))
                await workers[-1].start()
            await asyncio.wait_for(scenario(*workers), 120)
            for worker in workers:
                worker.administration.shared_state.stop()

    asyncio.run(main())


async def states(administration: Administration) -> list[tuple[str, bool, str]]:
    return [(e.version, e.ready, e.reason) for e in await administration.index()]


def test_a_model_is_unloaded_until_it_is_loaded_again(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        administration = worker.administration
        assert await states(administration) == [("1", True, "")]
        await administration.unload_model(MODEL)
        assert await states(administration) == [("1", False, "unloaded")]
        assert await administration.index(ready=True) == []
        await administration.unload_model(MODEL)  # which changes nothing
        await administration.load_model(MODEL, {})
        assert await states(administration) == [("1", True, "")]

    run(root, scenario)


def test_a_model_is_loaded_and_unloaded_in_both_workers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(one: Worker, other: Worker) -> None:
        await one.administration.unload_model(MODEL)
        assert other.repository.loaded == []
        await other.administration.load_model(MODEL, {})
        assert len(one.repository.loaded) == len(other.repository.loaded) == 1

    run_two(root, scenario, monkeypatch)


def test_a_broken_version_is_an_error_and_leaves_the_old_one_serving(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        (root / MODEL / "2").mkdir()
        (root / MODEL / "2" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(ModelLoadError, match=f"^failed to load '{MODEL}', .*: 2 "):
            await worker.administration.load_model(MODEL, {})
        assert worker.repository.versions(MODEL) == ["1"]
        assert worker.administration.shared_state.state.loads == {}

    run(root, scenario)


@pytest.mark.parametrize(
    "name", ["", "none", "..", "../models/identity_fp32", "a/b", "\x00", "\ud800", "M" * 5000]
)
def test_an_unknown_model_is_neither_loaded_nor_unloaded(root: Path, name: str) -> None:
    async def scenario(worker: Worker) -> None:
        state = worker.administration.shared_state.state
        for call in (
            worker.administration.load_model(name, {}),
            worker.administration.unload_model(name),
        ):
            with pytest.raises(ModelNotFound):
                await call
        assert worker.administration.shared_state.state == state
        assert worker.repository.versions(MODEL) == ["1"]

    run(root, scenario)


def test_parameters_of_a_load_are_refused_by_name(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        with pytest.raises(Unimplemented, match="parameter config is not supported"):
            await worker.administration.load_model(MODEL, {"config": "{}"})

    run(root, scenario)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_control_mode": "none"}, "model_control_mode is none"),
        ({"model_control_mode": "poll"}, "model_control_mode is poll"),
        ({"host": "0.0.0.0"}, "--model-control-mode explicit"),
        ({"host": "example.org"}, "--model-control-mode explicit"),
    ],
)
def test_changes_are_forbidden_where_control_is_not_allowed(
    root: Path, settings: dict[str, Any], words: str
) -> None:
    async def scenario(worker: Worker) -> None:
        administration = worker.administration
        before = administration.log_settings()
        for call in (
            administration.load_model(MODEL, {}),
            administration.unload_model(MODEL),
            administration.change_log_settings({"log_info": False}),
        ):
            with pytest.raises(Forbidden, match=words):
                await call
        assert await administration.change_log_settings({}) == before  # asks, changes nothing
        assert worker.repository.versions(MODEL) == ["1"]

    run(root, scenario, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_control_mode": "explicit", "load_model": ("*",), "host": "0.0.0.0"},
        {"host": "::1"},
        {"host": "localhost"},
    ],
)
def test_changes_are_allowed_where_control_is(root: Path, settings: dict[str, Any]) -> None:
    async def scenario(worker: Worker) -> None:
        await worker.administration.unload_model(MODEL)
        assert worker.repository.loaded == []

    run(root, scenario, **settings)


def test_statistics_are_the_sum_over_both_workers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(one: Worker, other: Worker) -> None:
        await one.infer(3)
        await other.infer(3)
        await other.infer(2)
        for administration in (one.administration, other.administration):
            (statistics,) = await administration.statistics(MODEL)
            assert (statistics["name"], statistics["version"]) == (MODEL, "1")
            assert statistics["inference_count"] == 8
            assert statistics["execution_count"] == 3
            assert statistics["inference_stats"]["success"]["count"] == 3
            sizes = [
                (b["batch_size"], b["compute_infer"]["count"]) for b in statistics["batch_stats"]
            ]
            assert sizes == [(2, 1), (3, 2)]

    run_two(root, scenario, monkeypatch)


def test_the_fields_of_statistics_keep_their_order(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        await worker.infer(1)
        (statistics,) = await worker.administration.statistics()
        parts = ["compute_input", "compute_infer", "compute_output"]
        assert list(statistics) == [
            "name",
            "version",
            "last_inference",
            "inference_count",
            "execution_count",
            "inference_stats",
            "batch_stats",
        ]
        assert list(statistics["inference_stats"]) == [
            *("success", "fail", "queue"),
            *parts,
            *("cache_hit", "cache_miss"),
        ]
        assert list(statistics["batch_stats"][0]) == ["batch_size", *parts]
        assert list(statistics["batch_stats"][0]["compute_infer"]) == ["count", "ns"]
        assert json.loads(json.dumps(statistics)) == statistics

    run(root, scenario)


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("none", "", ModelNotFound),
        ("none", "1", ModelNotFound),
        (MODEL, "2", ModelNotFound),
        (MODEL, "x", InvalidArgument),
        ("", "1", ModelNotFound),
        ("\ud800", "", ModelNotFound),
    ],
)
def test_statistics_of_an_unknown_version_are_an_error(
    root: Path, name: str, version: str, kind: type[Exception]
) -> None:
    async def scenario(worker: Worker) -> None:
        with pytest.raises(kind):
            await worker.administration.statistics(name, version)

    run(root, scenario)


def test_metrics_are_exposed_although_a_worker_does_not_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(one: Worker, other: Worker) -> None:
        Metrics().request("http", "observed-but-not-flushed", "200").observe(0.1)
        living = [sys.executable, "-c", "input()"]
        with (
            subprocess.Popen(living, stdin=subprocess.PIPE) as process,
            socket.socket(socket.AF_UNIX) as closed,
        ):
            closed.bind(str(root.parent / "state" / f"{process.pid}.sock"))
            exposition = (await one.administration.exposition()).decode()
            process.kill()
        (count,) = [
            line
            for line in exposition.splitlines()
            if line.startswith("mnist_request_seconds_count") and "observed-but-not-flushed" in line
        ]
        assert count.endswith(" 1.0")

    run_two(root, scenario, monkeypatch)


def test_an_exposition_is_made_off_the_event_loop(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    make = metrics.exposition

    def recording() -> bytes:
        threads.append(threading.get_ident())
        return make()

    monkeypatch.setattr(metrics, "exposition", recording)

    async def scenario(worker: Worker) -> None:
        assert b"# HELP" in await worker.administration.exposition()

    run(root, scenario)
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


def test_scrapes_at_the_same_time_share_one_exposition(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        scrape = worker.administration.exposition
        together = await asyncio.gather(*(scrape() for _ in range(10)))
        assert len({id(exposition) for exposition in together}) == 1
        assert await scrape() is not together[0]

    run(root, scenario)


def test_a_scrape_has_what_happened_before_it_even_while_another_is_made(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        first = asyncio.ensure_future(worker.administration.exposition())
        for number in range(20):
            await asyncio.sleep(0)
            operation = f"scraped_{number}"
            Metrics.request("http", operation, "200").observe(0.1)
            exposition = (await worker.administration.exposition()).decode()
            assert f'operation="{operation}"' in exposition
        await first

    run(root, scenario)


def test_a_scrape_that_is_cancelled_does_not_fail_the_others(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        scrapes = [asyncio.ensure_future(worker.administration.exposition()) for _ in range(2)]
        await asyncio.sleep(0)
        scrapes[0].cancel()
        assert b"# HELP" in await scrapes[1]

    run(root, scenario)


@pytest.mark.usefixtures("root_level")
def test_the_log_level_changes_and_resets_to_that_of_the_settings(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        change = worker.administration.change_log_settings
        assert (await change({"log_verbose_level": 1, "log_info": True}))["log_verbose_level"] == 1
        assert logging.getLogger().level == logging.DEBUG
        with pytest.raises(InvalidArgument, match="log_level"):
            await change({"log_level": "debug"})
        assert logging.getLogger().level == logging.DEBUG
        settings = await change({"log_verbose_level": None, "log_info": None})
        assert settings == worker.administration.log_settings()
        assert logging.getLogger().level == logging.WARNING

    run(root, scenario, log_level="warning")


@pytest.mark.parametrize(("share", "rate"), [(0.01, "100"), (0.3, "3"), (1.0, "1"), (0.0, "0")])
def test_trace_settings_say_what_is_traced_and_stay(root: Path, share: float, rate: str) -> None:
    async def scenario(worker: Worker) -> None:
        ask = worker.administration.trace_settings
        assert ask({}) == {
            "trace_level": ["TIMESTAMPS"],
            "trace_rate": rate,
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_file": "",
            "trace_mode": "opentelemetry",
        }
        assert ask({"trace_rate": rate, "trace_level": ["TIMESTAMPS"]}, MODEL) == ask({})
        with pytest.raises(Unimplemented, match="tracing is on in this server and stays on"):
            ask({"trace_level": ["OFF"]})

    run(root, scenario, traces=True, traces_sample=share)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trace_level": ["OFF"]},
        {"trace_level": "OFF"},
        {"trace_level": None, "trace_file": None},
        {"trace_level": []},
        {"trace_rate": 0, "trace_count": "0"},
    ],
)
def test_trace_settings_that_mean_off_are_accepted(root: Path, changes: dict[str, object]) -> None:
    async def scenario(worker: Worker) -> None:
        settings = worker.administration.trace_settings(changes, MODEL)
        assert settings["trace_level"] == ["OFF"]
        assert list(settings)[-1] == "trace_mode"

    run(root, scenario)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"trace_level": ["TIMESTAMPS"]}, Unimplemented),
        ({"trace_level": ["OFF"] * 1000}, Unimplemented),
        ({"trace_level": ["OFF", "OFF"]}, Unimplemented),
        ({"trace_level": [["OFF"]]}, Unimplemented),
        ({"trace_rate": {"a": 1}}, Unimplemented),
        ({"trace_rate": False}, Unimplemented),
        ({"trace_file": "/tmp/trace"}, Unimplemented),
        ({"trace": "OFF"}, InvalidArgument),
        ({"": None}, InvalidArgument),
    ],
)
def test_tracing_cannot_be_switched_on(
    root: Path, changes: dict[str, object], kind: type[Exception]
) -> None:
    async def scenario(worker: Worker) -> None:
        with pytest.raises(kind):
            worker.administration.trace_settings(changes)
        with pytest.raises(ModelNotFound):
            worker.administration.trace_settings({}, "none")

    run(root, scenario)


def test_a_region_is_registered_and_unregistered_in_both_workers(
    root: Path, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(one: Worker, other: Worker) -> None:
        await one.administration.register_region(REGION)
        assert other.administration.regions() == [REGION]
        with pytest.raises(AlreadyExists, match="'r' already in manager"):
            await other.administration.register_region(REGION._replace(offset=4))
        await other.administration.register_region(REGION._replace(name="s", offset=4))
        with pytest.raises(Forbidden, match="shared_memory_regions"):
            await one.administration.register_region(REGION._replace(name="t"))
        await other.administration.unregister_region("r")
        assert [region.name for region in one.administration.regions()] == ["s"]
        await one.administration.unregister_region()
        assert one.administration.regions() == other.administration.regions() == []
        with pytest.raises(NotFound):
            one.administration.regions("r")

    run_two(root, scenario, monkeypatch)


def test_a_region_that_is_refused_is_not_saved(root: Path, shm: Path) -> None:
    async def scenario(worker: Worker) -> None:
        for region in (REGION._replace(key="../k"), REGION._replace(byte_size=1 << 70)):
            with pytest.raises(InvalidArgument):
                await worker.administration.register_region(region)
        assert worker.administration.shared_state.state.regions == {}
        await worker.administration.register_region(REGION)

    run(root, scenario)


def test_a_worker_that_starts_unregisters_regions_whose_memory_is_gone(
    root: Path, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        folder = root.parent / "state"
        folder.mkdir()
        with ThreadPoolExecutor(2) as executor:
            first = Worker(root, executor, folder)
            await first.start()
            await first.administration.register_region(REGION)
            first.administration.shared_state.stop()
            (shm / "k").unlink()
            second = Worker(root, executor, folder)
            await second.start()
            assert second.administration.regions() == []
            assert second.administration.shared_state.state.regions == {}
            second.administration.shared_state.stop()

    asyncio.run(main())
    assert "region r no longer exists" in caplog.text


def test_cuda_memory_has_no_regions(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        assert worker.administration.cuda_regions() == []
        with pytest.raises(NotFound, match="'r' is not registered"):
            worker.administration.cuda_regions("r")
        with pytest.raises(Unimplemented, match="CUDA shared memory"):
            worker.administration.register_cuda_region()

    run(root, scenario)


def test_a_repository_that_cannot_be_read_changes_nothing(root: Path) -> None:
    async def scenario(worker: Worker) -> None:
        shutil.rmtree(root)
        with pytest.raises(ModelLoadError, match="failed to poll from model repository"):
            await worker.administration.load_model(MODEL, {})
        await worker.administration.unload_model(MODEL)  # it is loaded, wherever it came from
        assert worker.repository.loaded == []

    run(root, scenario)


@pytest.mark.parametrize(
    ("mode", "host"),
    [
        ("auto", None),
        ("auto", "localhost:8000"),
        ("auto", "127.0.0.1:8000"),
        ("auto", "[::1]:8000"),
        ("explicit", "example.org"),
    ],
)
def test_changes_on_this_machine_are_accepted(root: Path, mode: str, host: str | None) -> None:
    async def scenario(worker: Worker) -> None:
        worker.administration.check_host(host)

    run(root, scenario, model_control_mode=mode)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "192.0.2.1:8000",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "[",
    ],
)
def test_changes_by_another_name_are_forbidden(root: Path, host: str) -> None:
    async def scenario(worker: Worker) -> None:
        with pytest.raises(Forbidden):
            worker.administration.check_host(host)

    run(root, scenario)
