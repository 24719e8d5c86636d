"""Workers that share one state: several of them on one folder and one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.core import errors
from service.core.errors import (
    InternalError,
    InvalidArgument,
    ModelLoadError,
    ServiceError,
    Unavailable,
)
from service.core.statistics import ModelStatistics
from service.operations.replication import (
    AskStatistics,
    DesiredState,
    Flush,
    Question,
    SharedState,
    VersionStatistics,
)
from service.runtime.shared_memory import SharedRegion
from tests.descriptors import free_descriptors


class Peer:
    """A worker that remembers what it followed; its socket is named after a process of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, pid: int = 0) -> None:
        self.followed: list[DesiredState] = []
        self.fails: Exception | None = None
        with monkeypatch.context() as patch:
            if pid:
                patch.setattr(os, "getpid", lambda: pid)
            self.shared = SharedState(folder, self.follow, self.answer)

    async def follow(self, state: DesiredState) -> None:
        await asyncio.sleep(0)  # a chance for the others to interleave
        if self.fails:
            raise self.fails
        self.followed.append(state)

    async def answer(self, question: Question) -> list[VersionStatistics]:
        if self.fails:
            raise self.fails
        return statistics_of(question.model * 2) if isinstance(question, AskStatistics) else []


# Processes that exist, as those of live workers do, and one that does not.
ALIVE = (1, os.getpid())
DEAD = 2**22 - 1


def statistics_of(name: str) -> list[VersionStatistics]:
    return [{"name": name, "version": "1", **ModelStatistics().as_dict()}]


def adding(name: str) -> Callable[[DesiredState], DesiredState]:
    """A change that counts one more load of this model."""
    return lambda state: replace(state, loads={**state.loads, name: state.loads.get(name, 0) + 1})


def loaded(*names: str) -> DesiredState:
    return DesiredState(loads={name: names.count(name) for name in names})


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 120))


async def started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pids: tuple[int, ...] = ALIVE
) -> list[Peer]:
    peers = [Peer(folder, monkeypatch, pid) for pid in pids]
    for peer in peers:
        await peer.shared.start()
    return peers


def test_all_workers_follow_and_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        peers = await started(tmp_path, monkeypatch)
        assert await peers[1].shared.ask(AskStatistics("x")) == [statistics_of("xx")] * 2
        assert await peers[0].shared.ask(Flush()) == [[], []]
        await peers[0].shared.change(adding("a"))
        await peers[1].shared.change(adding("b"))
        for peer in peers:
            assert peer.followed[-1] == loaded("a", "b")

    run(scenario)


def test_concurrent_changes_in_several_workers_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        peers = await started(tmp_path, monkeypatch)
        changes = [adding(f"{i}") for i in range(20)]
        await asyncio.gather(*(peers[i % 2].shared.change(c) for i, c in enumerate(changes)))
        assert peers[0].followed[-1] == loaded(*(f"{i}" for i in range(20)))
        assert peers[0].followed == peers[1].followed

    run(scenario)


def test_a_late_worker_starts_from_the_saved_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        (first,) = await started(tmp_path, monkeypatch, ALIVE[:1])
        await first.shared.change(adding("a"))
        (late,) = await started(tmp_path, monkeypatch, ALIVE[1:])
        assert late.followed == [loaded("a")]
        await late.shared.catch_up()
        assert len(late.followed) == 1

    run(scenario)


def test_a_change_that_fails_in_the_first_worker_changes_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        one.fails = ModelLoadError("it is broken")
        with pytest.raises(ModelLoadError, match="it is broken"):
            await one.shared.change(adding("a"))
        assert other.followed == []
        assert one.shared.state == other.shared.state == DesiredState()

    run(scenario)


def test_a_change_whose_state_cannot_be_written_changes_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        first, second = await started(tmp_path, monkeypatch)
        (tmp_path / "state.tmp").mkdir()  # as good as a full disk, for root too
        with pytest.raises(Unavailable, match=str(tmp_path)):
            await first.shared.change(adding("lost"))
        assert first.followed == second.followed == []
        assert first.shared.state == loaded()
        (tmp_path / "state.tmp").rmdir()
        await first.shared.change(adding("kept"))
        assert first.followed == second.followed == [loaded("kept")]

    run(scenario)


def test_without_free_descriptors_a_change_is_unavailable_and_works_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        first, second = await started(tmp_path, monkeypatch)
        await first.shared.change(adding("before"))
        for free in range(8):
            made, refused = len(first.followed), None
            with free_descriptors(free):
                try:
                    await first.shared.change(adding("a"))
                except Unavailable as error:
                    refused = error.message
            if refused is None:
                assert len(first.followed) > made
            else:
                assert "try again" in refused or "follow later" in refused
        await first.shared.change(adding("after"))
        assert first.shared.state == second.followed[-1] == first.followed[-1]
        assert first.shared.state.loads["after"] == 1

    run(scenario)


def test_a_worker_that_cannot_follow_at_once_catches_up_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        for failure, text in (
            (ModelLoadError("no room"), "no room"),
            (ValueError("a defect"), "log"),
        ):
            other.fails = failure
            with pytest.raises(ServiceError, match=text):
                await one.shared.change(adding("a"))
        other.fails = ModelLoadError("still no room")
        await other.shared.catch_up()
        assert other.followed == []
        other.fails = None
        await other.shared.catch_up()
        assert other.followed == [one.shared.state] == [loaded("a", "a")]

    run(scenario)


def test_a_change_is_completed_although_its_caller_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        for turns in range(12):
            calling = asyncio.ensure_future(one.shared.change(adding(f"{turns}")))
            for _ in range(turns):
                await asyncio.sleep(0)
            calling.cancel()
        await one.shared.change(adding("last"))  # comes after every change that has begun
        assert one.followed[-1] == other.followed[-1] == one.shared.state
        assert list(one.shared.state.loads)[-1] == "last"

    run(scenario)


def test_the_socket_of_a_killed_worker_is_removed_and_that_of_a_live_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        (peer,) = await started(tmp_path, monkeypatch, ALIVE[:1])
        for pid in (DEAD, os.getpid()):
            with socket.socket(socket.AF_UNIX) as closed:
                closed.bind(str(tmp_path / f"{pid}.sock"))
        with pytest.raises(Unavailable, match="does not answer"):
            await peer.shared.ask(AskStatistics("x"))
        names = {path.stem for path in tmp_path.glob("*.sock")}
        assert names == {str(ALIVE[0]), str(os.getpid())}
        peer.shared.stop()
        assert str(ALIVE[0]) not in {path.stem for path in tmp_path.glob("*.sock")}

    run(scenario)


def test_many_questions_are_answered_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        peers = await started(tmp_path, monkeypatch)
        answers = await asyncio.gather(
            *(peers[0].shared.ask(AskStatistics(f"{i},")) for i in range(900))
        )
        assert answers == [[statistics_of(f"{i},{i},")] * 2 for i in range(900)]

    run(scenario)


def test_a_single_worker_without_a_folder_follows_itself() -> None:
    async def scenario() -> None:
        followed: list[DesiredState] = []

        async def follow(state: DesiredState) -> None:
            followed.append(state)

        async def answer(question: Question) -> list[VersionStatistics]:
            return statistics_of("x")

        shared = SharedState(None, follow, answer)
        await shared.start()
        await shared.change(adding("a"))
        await shared.change(adding("b"))
        assert followed == [loaded("a"), loaded("a", "b")]
        assert await shared.ask(Flush()) == [statistics_of("x")]
        shared.stop()

    run(scenario)


@pytest.mark.parametrize(
    "state",
    [
        DesiredState(),
        DesiredState(
            log_level=logging.DEBUG,
            regions={"r": SharedRegion(name="r", key="/k", offset=1, byte_size=2)},
            unloaded=frozenset({"b", "\N{SNOWMAN}", 'a"\n'}),
            loads={"b": 3, "": 1},
        ),
    ],
)
def test_a_saved_state_is_read_back_unchanged(state: DesiredState) -> None:
    assert DesiredState.from_json(state.to_json()) == state


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (errors.AlreadyExists("taken"), errors.AlreadyExists, "taken"),
        (errors.Forbidden("no"), errors.Forbidden, "no"),
        (errors.InvalidArgument("bad"), errors.InvalidArgument, "bad"),
        (errors.ModelLoadError("broken"), errors.ModelLoadError, "broken"),
        (errors.ModelNotFound("none"), errors.ModelNotFound, "none"),
        (errors.NotFound("none"), errors.NotFound, "none"),
        (errors.Unavailable("later"), errors.Unavailable, "later"),
        (errors.Overloaded("not in the table"), InternalError, "not in the table"),
        (ValueError("a defect"), InternalError, "A worker failed; see its log."),
    ],
)
def test_an_error_of_another_worker_keeps_its_kind_and_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    kind: type[ServiceError],
    message: str,
) -> None:
    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        other.fails = failure
        with pytest.raises(ServiceError) as raised:
            await one.shared.ask(AskStatistics("x"))
        assert (type(raised.value), raised.value.message) == (kind, message)

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", "InternalError"),
        (b"\xff", "InternalError"),
        (b"[" * 100_000, "InternalError"),
        (b"null", "InvalidArgument"),
        (b'{"command": "exit"}', "InvalidArgument"),
        (b'{"command": "statistics", "model": 1, "version": ""}', "InvalidArgument"),
    ],
    ids=["nothing", "not UTF-8", "deep nesting", "null", "unknown", "wrong type"],
)
def test_a_worker_answers_a_malformed_command_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes, error: str
) -> None:
    async def scenario() -> None:
        (peer,) = await started(tmp_path, monkeypatch, ALIVE[:1])
        reader, writer = await asyncio.open_unix_connection(tmp_path / f"{ALIVE[0]}.sock")
        writer.write(sent)
        writer.write_eof()
        assert json.loads(await reader.read())["error"] == error
        writer.close()
        assert await peer.shared.ask(AskStatistics("x")) == [statistics_of("xx")]

    run(scenario)


def test_the_state_stays_when_a_change_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(state: DesiredState) -> DesiredState:
        raise InvalidArgument("refused")

    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        await one.shared.change(adding("a"))
        with pytest.raises(InvalidArgument, match="refused"):
            await other.shared.change(refuse)
        assert one.shared.state == other.shared.state == loaded("a")
        await other.shared.change(adding("b"))  # the lock is free again
        assert one.followed[-1] == loaded("a", "b")

    run(scenario)
