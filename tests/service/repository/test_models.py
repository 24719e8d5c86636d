"""The repository with sessions that cost nothing: what is loaded when, and what stays served."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.core.batching import Batcher, Batching, BatchLimits
from service.core.errors import (
    InvalidArgument,
    ModelLoadError,
    ModelNotFound,
    ProviderUnavailable,
    Unavailable,
)
from service.core.placement import Timing
from service.repository import models
from service.repository.models import Repository
from service.repository.triton_config import TritonConfig, TritonConfigs, VersionPolicy
from service.repository.versions import VersionOnDisk
from service.repository.versions import _external_of as external_of
from service.runtime.session import Samples, SessionOptions
from tests.descriptors import free_descriptors
from tests.e2e.onnx_models import external_model
from tests.service.composition import Operations
from tests.service.linear_model import publish_linear, run_with_operations


class FakeSession:
    """Stands for a loaded model; the content of its file decides whether it loads."""

    provider = "CPUExecutionProvider"
    fallback = ""
    batchable = True
    batching = Batching(True, "a reason")
    inputs = outputs = unserved = ()
    defaults = ()
    warm_up_error = ""
    timing = Timing()

    def __init__(self, content: bytes) -> None:
        self.content = content


class Fixture:
    """A repository on an empty folder, and a record of the files that it loaded."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.root = root
        self.executor = executor
        self.loads: list[str] = []
        self.batching: list[Batching | None] = []  # what each load was given
        self.changes = 0

    def load(
        self, path: Path, options: SessionOptions, batching: Batching | None, samples: Samples
    ) -> Any:
        self.loads.append(f"{path.parts[-3]}/{path.parts[-2]}")
        self.batching.append(batching)
        content = path.read_bytes()
        if content.startswith(b"broken"):
            raise ModelLoadError("it is broken")
        if content.startswith(b"strange"):
            raise MemoryError("5 TiB")
        if content.startswith(b"cuda"):
            raise ProviderUnavailable("no device")
        return FakeSession(content)

    def repository(self, keep: int = 2, only: frozenset[str] | None = None) -> Repository:
        def count_change() -> None:
            self.changes += 1

        return Repository(
            self.root,
            SessionOptions("cpu"),
            make_batcher=lambda name, version, session: Batcher(
                session, BatchLimits(), self.executor
            ),
            executor=self.executor,
            keep=keep,
            only=only,
            on_change=count_change,
        )

    def publish(self, version: str, content: bytes = b"model", card: Any = None) -> None:
        """Write NAME/VERSION by rename, as mnist-train does."""
        folder = self.root / version
        temporary = self.root / ".tmp"
        temporary.mkdir(parents=True)
        (temporary / "model.onnx").write_bytes(content)
        if card is not None:
            (temporary / "model.json").write_text(json.dumps(card))
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        temporary.rename(folder)

    def configure(self, monkeypatch: pytest.MonkeyPatch, name: str, config: TritonConfig) -> None:
        """Let a model have this configuration. One process cannot hold its parser beside the stubs
        of tritonclient.
        """

        def of(configs: TritonConfigs, folder: Path) -> tuple[TritonConfig, tuple[int, ...]]:
            return (config, (id(config),)) if folder.name == name else (TritonConfig(), ())

        monkeypatch.setattr(TritonConfigs, "of", of)

    def remove(self, version: str) -> None:
        shutil.rmtree(self.root / version)

    def run(self, scenario: Callable[[Repository], Awaitable[None]], keep: int = 2) -> None:
        async def main() -> None:
            await asyncio.wait_for(scenario(self.repository(keep)), 120)

        asyncio.run(main())


@pytest.fixture
def fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fixture]:
    with ThreadPoolExecutor(2) as executor:
        fixture = Fixture(tmp_path / "models", executor)
        fixture.root.mkdir()
        monkeypatch.setattr(models, "load_session", fixture.load)
        yield fixture


def test_the_newest_versions_are_loaded_newest_first(fixture: Fixture) -> None:
    for version in ("mnist/1", "mnist/9", "mnist/10", "other/1"):
        fixture.publish(version)

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert repository.versions("mnist") == ["10", "9"]
        assert repository.get("mnist").version == "10"
        assert repository.get("mnist", "9").version == "9"
        assert [model.name for model in repository.loaded] == ["mnist", "mnist", "other"]
        (entry,) = [e for e in await repository.index() if not e.ready]
        assert (entry.version, entry.reason) == ("1", "not among the newest 2")

    fixture.run(scenario)


def test_only_new_and_changed_versions_are_loaded(fixture: Fixture) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        before = repository.get("mnist")
        await repository.refresh()
        assert repository.get("mnist") is before
        fixture.publish("mnist/2")
        await repository.refresh()
        assert fixture.loads == ["mnist/1", "mnist/2"]
        fixture.publish("mnist/1", b"a longer model")
        await repository.refresh()
        assert fixture.loads == ["mnist/1", "mnist/2", "mnist/1"]
        assert repository.get("mnist", "1") is not before
        assert fixture.changes == 3

    fixture.run(scenario)


def test_a_broken_version_is_tried_once_until_its_file_changes(fixture: Fixture) -> None:
    fixture.publish("mnist/1")
    fixture.publish("mnist/2", b"broken")

    async def scenario(repository: Repository) -> None:
        for _ in range(3):
            await repository.refresh()
        assert fixture.loads == ["mnist/2", "mnist/1"]
        assert repository.failures == {"mnist/2": "it is broken"}
        assert repository.versions("mnist") == ["1"]
        fixture.publish("mnist/2", b"a model")
        await repository.refresh()
        assert repository.failures == {}
        assert repository.versions("mnist") == ["2", "1"]

    fixture.run(scenario)


def test_an_unexpected_error_of_one_version_is_a_failure_of_that_version(fixture: Fixture) -> None:
    fixture.publish("a/1", b"strange")
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert repository.failures == {"a/1": "loading it failed: MemoryError('5 TiB')"}
        assert repository.versions("mnist") == ["1"]
        with pytest.raises(ModelLoadError, match="5 TiB"):
            await repository.follow(set(), {"a": 1})

    fixture.run(scenario)


def test_a_reason_that_quotes_a_name_that_is_not_utf_8_can_be_answered(fixture: Fixture) -> None:
    bad = os.fsdecode(b"bad\xff")
    fixture.publish(
        "mnist/1", card={"sha256": {"model.onnx": hashlib.sha256(b"model").hexdigest()}}
    )
    (fixture.root / "mnist" / "1" / bad).touch()
    (fixture.root / "other" / "1").mkdir(parents=True)
    (fixture.root / "other" / "1" / f"{bad}.onnx").touch()

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        reasons = [repository.failures["mnist/1"], *(e.reason for e in await repository.index())]
        for reason in reasons:
            assert r"bad\udcff" in reason
            assert reason.encode()

    fixture.run(scenario)


def test_a_file_that_is_replaced_by_a_broken_one_continues_to_be_served(fixture: Fixture) -> None:
    fixture.publish("mnist/1", b"first")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        fixture.publish("mnist/1", b"broken")
        await repository.refresh()
        assert repository.get("mnist").session.content == b"first"
        assert repository.failures == {"mnist/1": "it is broken"}

    fixture.run(scenario)


def test_a_deleted_version_is_unloaded(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    fixture.publish("mnist/1")
    fixture.publish("mnist/2")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        in_flight = repository.get("mnist")
        fixture.remove("mnist/2")
        with caplog.at_level(logging.INFO):
            await repository.refresh()
        assert "Unloaded mnist version 2" in caplog.text
        assert repository.get("mnist").version == "1"
        assert in_flight.version == "2"  # a request that holds it is not affected
        fixture.remove("mnist/1")
        await repository.refresh()
        with pytest.raises(ModelNotFound, match="loaded are: none"):
            repository.get("mnist")

    fixture.run(scenario)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda root: (root / "mnist" / "1" / "model.json").write_text("{"), "not valid JSON"),
        (
            lambda root: (root / "mnist" / "1" / "model.json").write_text('{"sha256": "ab"}'),
            "but its card says ab",
        ),
        (
            lambda root: (
                (root / "mnist" / "1" / "model.onnx").unlink(),
                (root / "mnist" / "1" / "model.onnx").mkdir(),
            ),
            "cannot read model.onnx",
        ),
    ],
    ids=["damaged card", "other file", "folder"],
)
def test_a_version_that_is_not_what_it_should_be_is_recorded_and_not_loaded(
    fixture: Fixture, prepare: Callable[[Path], object], reason: str
) -> None:
    fixture.publish("mnist/1")
    prepare(fixture.root)

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert reason in repository.failures["mnist/1"]
        assert repository.loaded == []
        assert fixture.loads == []

    fixture.run(scenario)


def test_a_provider_that_does_not_work_ends_the_refresh(fixture: Fixture) -> None:
    fixture.publish("mnist/1", b"cuda")

    async def scenario(repository: Repository) -> None:
        with pytest.raises(ProviderUnavailable, match="no device"):
            await repository.refresh()
        fixture.publish("mnist/1", b"a model")
        await repository.refresh()  # the lock is free again
        assert repository.versions("mnist") == ["1"]

    fixture.run(scenario)


@pytest.mark.parametrize("version", ["0", "-1", "01", "1.0", "latest", "1/../2", "\x00", "9" * 400])
def test_a_version_that_is_not_a_number_is_refused(fixture: Fixture, version: str) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        with pytest.raises(InvalidArgument, match="not a whole number"):
            repository.get("mnist", version)

    fixture.run(scenario)


@pytest.mark.parametrize("name", ["", "other", "../mnist", "mnist/1", "mnist\x00", "M" * 100_000])
def test_an_unknown_model_is_not_found_by_any_name(fixture: Fixture, name: str) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        with pytest.raises(ModelNotFound, match="loaded are: mnist"):
            repository.get(name)
        with pytest.raises(ModelNotFound):
            await repository.check_known(name)
        with pytest.raises(ModelNotFound, match="version 2"):
            repository.get("mnist", "2")

    fixture.run(scenario)


def test_unloaded_models_stay_out_until_they_are_loaded_again(fixture: Fixture) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        await repository.follow({"mnist"}, {})
        assert repository.loaded == []
        await repository.refresh()
        assert repository.loaded == []
        assert [entry.reason for entry in await repository.index()] == ["unloaded"]
        await repository.check_known("mnist")  # it is on disk
        await repository.follow(set(), {"mnist": 1})
        assert repository.versions("mnist") == ["1"]

    fixture.run(scenario)


def test_only_the_models_asked_for_are_loaded(fixture: Fixture) -> None:
    for name in ("asked", "later", "mnist"):
        fixture.publish(f"{name}/1")

    async def main() -> None:
        repository = fixture.repository(only=frozenset({"asked", "absent"}))
        assert repository.wanted == {"asked", "absent"}
        await repository.refresh()
        assert [model.name for model in repository.loaded] == ["asked"]
        reasons = {entry.name: entry.reason for entry in await repository.index()}
        assert reasons["asked"] == ""
        assert "load_model" in reasons["mnist"]
        with pytest.raises(ModelNotFound, match="'mnist' has no available versions"):
            repository.get("mnist")
        await repository.follow({"asked"}, {"later": 1})
        assert repository.wanted == {"absent", "later"}
        await repository.refresh()
        assert [model.name for model in repository.loaded] == ["later"]
        respawned = fixture.repository(only=frozenset({"asked"}))
        await respawned.follow({"asked"}, {"later": 1})
        await respawned.refresh()
        assert [model.name for model in respawned.loaded] == ["later"]

    asyncio.run(main())


def test_a_requested_load_reloads_every_served_version_once(fixture: Fixture) -> None:
    fixture.publish("mnist/1")
    fixture.publish("mnist/2")

    async def scenario(repository: Repository) -> None:
        await repository.follow(set(), {"mnist": 7})
        assert fixture.loads == []  # the first refresh loads everything
        await repository.refresh()
        before = repository.get("mnist")
        fixture.loads.clear()
        await repository.follow(set(), {"mnist": 7})
        assert fixture.loads == []
        await repository.follow(set(), {"mnist": 8})
        assert fixture.loads == ["mnist/2", "mnist/1"]
        assert repository.get("mnist") is not before
        assert repository.get("mnist").sha256 == before.sha256

    fixture.run(scenario)


def test_a_failed_reload_changes_nothing_and_may_be_tried_again(fixture: Fixture) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        served = repository.get("mnist")
        fixture.publish("mnist/2", b"broken")
        for _ in range(3):
            with pytest.raises(ModelLoadError, match=r": 2 \(it is broken\)\.$"):
                await repository.follow(set(), {"mnist": 1})
        assert fixture.loads.count("mnist/2") == 3
        assert repository.loaded == [served]
        fixture.publish("mnist/2", b"a model")
        await repository.follow(set(), {"mnist": 1})
        assert repository.versions("mnist") == ["2", "1"]

    fixture.run(scenario)


def test_a_model_that_loads_stays_loaded_although_another_does_not(fixture: Fixture) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        await repository.follow({"mnist"}, {})
        with pytest.raises(ModelNotFound, match="'none'"):
            await repository.follow(set(), {"mnist": 1, "none": 1})
        await repository.refresh()
        assert repository.versions("mnist") == ["1"]

    fixture.run(scenario)


def test_a_load_of_a_model_that_is_not_on_disk_is_refused(fixture: Fixture) -> None:
    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        with pytest.raises(ModelNotFound, match="failed to load 'none', failed to poll"):
            await repository.follow(set(), {"none": 1})
        fixture.root.rmdir()
        with pytest.raises(ModelLoadError, match="failed to load 'none', failed to poll"):
            await repository.follow(set(), {"none": 1})
        with pytest.raises(Unavailable, match="cannot be read"):
            await repository.index()

    fixture.run(scenario)


def test_an_unreadable_repository_is_logged_once_and_recovers(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        fixture.root.rename(fixture.root.with_name("away"))
        for _ in range(3):
            await repository.refresh()
        assert caplog.text.count("cannot be read") == 1
        assert repository.versions("mnist") == ["1"]
        fixture.root.with_name("away").rename(fixture.root)
        await repository.refresh()
        assert repository.failures == {}

    fixture.run(scenario)


def test_what_is_loaded_stays_whatever_descriptor_is_missing(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    """The real limit: each number of free descriptors fails in another place of the refresh."""
    fixture.publish("mnist/1")
    fixture.publish("other/1", card={"batching": True})
    external_model(fixture.root / "mnist" / "1" / "model.onnx", "weights.bin")
    (fixture.root / "mnist" / "1" / "weights.bin").write_bytes(bytes(4))

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        before = repository.loaded
        assert [(model.name, model.version) for model in before] == [("mnist", "1"), ("other", "1")]
        for free in range(6):
            fixture.publish("other/1", b"%d" % free, card={"batching": True})
            external_of.cache_clear()
            with free_descriptors(free):
                for _ in range(3):
                    await repository.refresh()
                    assert repository.versions("mnist") == repository.versions("other") == ["1"]
            await repository.refresh()
            assert repository.failures == {}
            assert repository.get("mnist") is before[0]
            assert repository.get("other").sha256 == hashlib.sha256(b"%d" % free).hexdigest()
            before = repository.loaded

    fixture.run(scenario)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len({record.getMessage() for record in errors}) == len(errors)
    assert "Unloaded" not in caplog.text


def test_what_is_loaded_stays_wherever_in_a_refresh_the_descriptors_end(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other threads use them up meanwhile: here, at each of the calls that need one, in turn."""
    for name in ("mnist", "other"):
        fixture.publish(f"{name}/1")
        external_model(fixture.root / name / "1" / "model.onnx", "data/weights.bin")
        (fixture.root / name / "1" / "data").mkdir()
        (fixture.root / name / "1" / "data" / "weights.bin").write_bytes(bytes(4))

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        before = repository.loaded
        last = calls = 0
        while calls >= last:  # until a refresh makes fewer
            last, calls = last + 1, 0
            external_of.cache_clear()
            with contextlib.ExitStack() as used_up, monkeypatch.context() as patch:

                def counting(call: Any, number: int = last, stack: Any = used_up) -> Any:
                    def counted(*arguments: Any, **named: Any) -> Any:
                        nonlocal calls
                        calls += 1
                        if calls == number:
                            stack.enter_context(free_descriptors(0))
                        return call(*arguments, **named)

                    return counted

                for module, name in ((os, "listdir"), (os, "scandir"), (builtins, "open")):
                    patch.setattr(module, name, counting(getattr(module, name)))
                await repository.refresh()
            assert repository.loaded == before, last
            await repository.refresh()
            assert repository.loaded == before
            assert repository.failures == {}
        assert last > 6

    fixture.run(scenario)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_folder_that_cannot_be_listed_keeps_what_is_loaded_from_it(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.publish("mnist/1")
    fixture.publish("other/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        listed = Path.iterdir

        def fails(path: Path) -> Iterator[Path]:
            if path.name == "mnist":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return listed(path)

        monkeypatch.setattr(Path, "iterdir", fails)
        await repository.refresh()
        assert repository.versions("mnist") == ["1"]
        (entry,) = [each for each in await repository.index() if each.name == "mnist"]
        assert "cannot be read" in entry.reason
        fixture.remove("other/1")
        await repository.refresh()
        assert repository.versions("other") == []
        monkeypatch.setattr(Path, "iterdir", listed)
        fixture.remove("mnist/1")
        await repository.refresh()
        assert repository.versions("mnist") == []

    fixture.run(scenario)


def test_a_file_is_verified_once_until_it_changes(fixture: Fixture) -> None:
    verified = FakeSession.batching
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        await repository.follow(set(), {"mnist": 1})
        fixture.publish("mnist/2")  # the same contents
        await repository.refresh()
        assert fixture.batching == [None, verified, verified]
        fixture.publish("mnist/3", b"another model")
        await repository.refresh()
        assert fixture.batching[3:] == [None]
        (fixture.root / "mnist" / "3" / "weights").write_bytes(b"weights beside the model")
        await repository.follow(set(), {"mnist": 2})
        assert fixture.batching[4:] == [None, verified]

    fixture.run(scenario)


def test_a_card_declares_batching_and_the_log_says_so(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.publish("yes/1", card={"batching": True})
    fixture.publish("no/1", card={"batching": False})

    async def scenario(repository: Repository) -> None:
        with caplog.at_level(logging.INFO):
            await repository.refresh()
        no, yes = fixture.batching
        assert no == Batching(False, "off: declared in model.json")
        assert yes == Batching(True, "declared in model.json")
        assert caplog.text.count("Batching of yes version 1: a reason.") == 1

    fixture.run(scenario)


def test_a_damaged_config_keeps_every_version_out_with_the_reason(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.publish("mnist/1")
    fixture.publish("other/1")
    fixture.configure(monkeypatch, "mnist", TritonConfig(problem="it is damaged"))

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert "it is damaged" in repository.failures["mnist/1"]
        assert [model.name for model in repository.loaded] == ["other"]

    fixture.run(scenario)


@pytest.mark.parametrize(
    ("policy", "served", "reason"),
    [
        (None, ["4", "3"], "not among the newest 2"),
        (VersionPolicy(latest=1), ["4"], "not among the newest 1"),
        (VersionPolicy(latest=3), ["4", "3", "2"], "not among the newest 3"),
        (VersionPolicy(), ["4", "3", "2", "1"], ""),
        (VersionPolicy(specific=(3, 1)), ["3", "1"], "not among the versions of version_policy"),
        (VersionPolicy(specific=(1, 9)), ["1"], "not among the versions of version_policy"),
        (VersionPolicy(specific=(9,)), [], "not among the versions of version_policy"),
    ],
)
def test_the_version_policy_decides_which_versions_are_served(
    fixture: Fixture,
    monkeypatch: pytest.MonkeyPatch,
    policy: VersionPolicy | None,
    served: list[str],
    reason: str,
) -> None:
    for version in "1234":
        fixture.publish(f"mnist/{version}")
    fixture.configure(monkeypatch, "mnist", TritonConfig(version_policy=policy))

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert repository.versions("mnist") == served
        others = [entry.reason for entry in await repository.index() if not entry.ready]
        assert len(others) == 4 - len(served)
        assert all(reason in other for other in others)
        if not served:
            with pytest.raises(ModelLoadError, match="version_policy"):
                await repository.follow(set(), {"mnist": 1})

    fixture.run(scenario)


def test_a_broken_version_that_the_policy_no_longer_selects_is_no_failure(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.publish("mnist/1")
    fixture.publish("mnist/2", b"broken")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert list(repository.failures) == ["mnist/2"]
        fixture.configure(
            monkeypatch, "mnist", TritonConfig(version_policy=VersionPolicy(specific=(1,)))
        )
        await repository.refresh()
        assert repository.failures == {}

    fixture.run(scenario)


def test_a_changed_config_reloads_the_model_from_the_file_that_it_names(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.publish("mnist/1")
    (fixture.root / "mnist" / "1" / "other.onnx").write_bytes(b"another model")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        fixture.configure(
            monkeypatch,
            "mnist",
            TritonConfig(
                model_file="other.onnx",
                ignored=["runtime", "optimization"],
                version_policy=VersionPolicy(specific=(1, 7)),
            ),
        )
        await repository.refresh()
        await repository.refresh()
        assert fixture.loads == ["mnist/1", "mnist/1"]
        session: Any = repository.get("mnist").session
        assert session.content == b"another model"

    fixture.run(scenario)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == (
        "config.pbtxt of model mnist sets what has no effect here: runtime, optimization, "
        "version 7 (not on disk)."
    )


def test_refreshes_and_loads_at_the_same_time_do_not_interleave(fixture: Fixture) -> None:
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        await asyncio.gather(
            *(repository.refresh() for _ in range(5)),
            *(repository.follow(set(), {"mnist": count}) for count in (1, 2, 3)),
            repository.follow({"mnist"}, {"mnist": 3}),
        )
        assert repository.loaded == []
        assert fixture.loads == ["mnist/1"] * 4

    fixture.run(scenario)


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ({"sha256": "0"}, "SHA-256"),
        ({"sha256": 1}, "string"),
        ({"output_kinds": {"scores": "guess"}}, "output_kinds"),
        pytest.param('{"output_kinds": {"scores": ["logits"]}}', "model.json", id="list as kind"),
        pytest.param("[" * 200_000, "model.json", id="deep nesting"),
        pytest.param('{"sha256": ' + "1" * 5000 + "}", "model.json", id="endless number"),
    ],
)
def test_version_with_a_wrong_card_is_not_loaded(tmp_path: Path, card: Any, reason: str) -> None:
    publish_linear(tmp_path, card=card)

    async def scenario(operations: Operations) -> None:
        assert reason in operations.inference.repository.failures["linear/1"]
        assert not operations.inference.readiness().ready
        with pytest.raises(ModelNotFound, match="linear"):
            operations.inference.repository.get("linear")

    run_with_operations(tmp_path, scenario)


def test_loaded_models_outlive_a_repository_that_vanishes(tmp_path: Path) -> None:
    models, moved = tmp_path / "models", tmp_path / "moved"
    publish_linear(models)

    async def scenario(operations: Operations) -> None:
        models.rename(moved)
        await operations.inference.repository.refresh()
        assert operations.inference.readiness().ready
        assert str(models) in operations.inference.readiness().failures
        moved.rename(models)
        (models / "linear").rename(tmp_path / "linear")
        await operations.inference.repository.refresh()
        assert not operations.inference.readiness().ready
        assert operations.inference.readiness().failures == {}

    run_with_operations(models, scenario)


def test_deleting_a_broken_version_clears_its_failure_and_reports_the_change(
    tmp_path: Path,
) -> None:
    failures_at_each_change: list[int] = []
    broken = tmp_path / "mnist" / "2"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no model")

    async def scenario(executor: ThreadPoolExecutor) -> None:
        repository = Repository(
            tmp_path,
            SessionOptions("cpu"),
            make_batcher=lambda name, version, session: Batcher(session, BatchLimits(), executor),
            executor=executor,
            keep=2,
            on_change=lambda: failures_at_each_change.append(len(repository.failures)),
        )
        await repository.refresh()
        assert failures_at_each_change[-1] == 1
        shutil.rmtree(broken)
        await repository.refresh()
        assert failures_at_each_change[-1] == 0

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))


def test_digits_and_other_classifiers_are_told_apart_by_their_cards(tmp_path: Path) -> None:
    kinds = {"output_kinds": {"scores": "logits"}}
    digits, clothes = [str(digit) for digit in range(10)], list("abcdefghij")
    picture = {"size": [28, 28], "colour": "grey"}

    async def scenario(operations: Operations) -> None:
        repository = operations.inference.repository
        cards: list[tuple[dict[str, object], bool, bool]] = [
            (kinds, True, False),
            (kinds | {"labels": digits}, True, False),
            (kinds | {"labels": clothes}, False, True),
            (kinds | {"picture": picture}, False, True),
            ({"labels": clothes}, False, False),
        ]
        for version, (card, is_digits, is_other) in enumerate(cards, 1):
            publish_linear(tmp_path, card=card, version=version)
            await repository.refresh()
            served = repository.get("linear")
            assert served.version == str(version)
            found = served.layout is not None, served.classifier is not None
            assert found == (is_digits, is_other)
        publish_linear(tmp_path, card=kinds | {"picture": {"size": [9, 9]}}, version=6)
        await repository.refresh()
        assert repository.get("linear").version == "5"
        assert "picture.colour is missing" in repository.failures["linear/6"]

    run_with_operations(tmp_path, scenario)


def test_fixing_only_the_card_loads_the_version(fixture: Fixture) -> None:
    fixture.publish("mnist/1", card={"labels": "0123"})
    card = fixture.root / "mnist" / "1" / "model.json"

    async def scenario(repository: Repository) -> None:
        for _ in range(2):
            await repository.refresh()
        (reason,) = repository.failures.values()
        assert reason == f"{card}: labels must be a list of strings"
        card.write_text(json.dumps({"labels": ["0", "1"]}))
        await repository.refresh()
        assert repository.failures == {}
        before = repository.get("mnist")
        assert before.card.labels == ("0", "1")
        card.write_text("{")
        await repository.refresh()
        assert repository.get("mnist") is before
        assert list(repository.failures) == ["mnist/1"]

    fixture.run(scenario)


def test_digests_are_computed_off_the_event_loop(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    digests = models.digests

    def recording(version: VersionOnDisk) -> dict[str, str]:
        threads.append(threading.get_ident())
        return digests(version)

    monkeypatch.setattr(models, "digests", recording)
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert repository.get("mnist").sha256 == hashlib.sha256(b"model").hexdigest()

    fixture.run(scenario)
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


def test_weights_in_a_file_of_their_own_are_checked_and_followed(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.publish("mnist/1")
    folder = fixture.root / "mnist" / "1"
    external_model(folder / "model.onnx", "model.onnx.data")
    weights, card = folder / "model.onnx.data", folder / "model.json"
    sha256 = {"model.onnx": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()}

    async def scenario(repository: Repository) -> None:
        digests = []
        for content in (b"1234", b"5678"):
            weights.write_bytes(content)
            await repository.refresh()
            digests.append(repository.get("mnist").sha256)
        assert len({*digests}) == len(fixture.loads) == 2
        card.write_text(json.dumps({"sha256": sha256["model.onnx"]}))
        await repository.refresh()
        assert "has the SHA-256 of model.onnx alone" in caplog.text
        card.write_text(json.dumps({"sha256": {**sha256, "model.onnx.data": "0"}}))
        await repository.refresh()
        assert "model.onnx.data has SHA-256" in repository.failures["mnist/1"]
        fits = {**sha256, "model.onnx.data": hashlib.sha256(b"5678").hexdigest()}
        card.write_text(json.dumps({"sha256": fits}))
        await repository.refresh()
        assert repository.failures == {}
        external_model(folder / "model.onnx", "../model.onnx.data")
        await repository.refresh()
        assert "outside its folder" in repository.failures["mnist/1"]

    fixture.run(scenario)


def test_what_cannot_be_served_is_in_the_index_and_logged_once(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.publish("mnist/1")
    fixture.publish("mnist/2")
    (fixture.root / "mnist" / "2" / "model.onnx").rename(fixture.root / "mnist" / "2" / "net.onnx")
    (fixture.root / "empty").mkdir()

    async def scenario(repository: Repository) -> None:
        for _ in range(2):
            await repository.refresh()
        assert repository.versions("mnist") == ["1"]
        reasons = {(e.name, e.version): e.reason for e in await repository.index() if not e.ready}
        assert reasons == {
            ("empty", ""): "it has no version, a folder such as empty/1",
            (
                "mnist",
                "2",
            ): "it has no model.onnx, but net.onnx; name that file in default_model_filename",
        }
        assert caplog.text.count("mnist/2 in the model repository is not served: it has no") == 1
        assert caplog.text.count("empty in the model repository is not served") == 1
        assert repository.failures == {}
        with pytest.raises(ModelLoadError, match="it has no version, a folder such as empty/1"):
            await repository.follow(frozenset(), {"empty": 1})

    fixture.run(scenario)


def test_a_warm_up_that_fails_is_one_line_of_the_log(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeSession, "warm_up_error", "Conv: too small.")
    fixture.publish("mnist/1")

    async def scenario(repository: Repository) -> None:
        await repository.refresh()
        assert repository.versions("mnist") == ["1"]
        (line,) = [each for each in caplog.messages if "warm-up" in each]
        assert line.startswith(
            "The warm-up of mnist version 1 failed, but the model is served: Conv: too small. "
        )

    fixture.run(scenario)
