"""Workers that tell each other: several ends of one folder, on one loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.core.errors import LoadFailed, ServiceError, Unavailable
from service.operations.replication import Command, Control, State


class Peer:
    """A worker that remembers what it followed; each a process of its own, as sockets go."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, pid: int = 0) -> None:
        self.followed: list[State] = []
        self.fails: Exception | None = None
        with monkeypatch.context() as patch:
            if pid:
                patch.setattr(os, "getpid", lambda: pid)
            self.control = Control(folder, self.follow, self.answer)

    async def follow(self, state: State) -> None:
        await asyncio.sleep(0)  # so that others could come between
        if self.fails:
            raise self.fails
        self.followed.append(state)

    async def answer(self, command: Command) -> Any:
        if self.fails:
            raise self.fails
        return command["x"] * 2


# Processes that exist, as those of live workers do, and one that does not.
ALIVE = (1, os.getppid())
DEAD = 2**22 - 1


def adding(name: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        state["names"] = [*state.get("names", ()), name]

    return change


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pids: tuple[int, ...] = ALIVE
) -> list[Peer]:
    peers = [Peer(folder, monkeypatch, pid) for pid in pids]
    for peer in peers:
        await peer.control.start()
    return peers


def test_all_workers_follow_and_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        peers = await started(tmp_path, monkeypatch)
        assert await peers[1].control.ask({"x": 2}) == [4, 4]
        await peers[0].control.change(adding("a"))
        await peers[1].control.change(adding("b"))
        for peer in peers:
            assert peer.followed[-1] == {"names": ["a", "b"]}

    run(scenario)


def test_changes_in_several_workers_at_a_time_are_none_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        peers = await started(tmp_path, monkeypatch)
        changes = [adding(f"{i}") for i in range(20)]
        await asyncio.gather(*(peers[i % 2].control.change(c) for i, c in enumerate(changes)))
        names = peers[0].followed[-1]["names"]
        assert sorted(names, key=int) == [f"{i}" for i in range(20)]
        assert peers[0].followed == peers[1].followed

    run(scenario)


def test_who_comes_later_begins_with_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        (first,) = await started(tmp_path, monkeypatch, ALIVE[:1])
        await first.control.change(adding("a"))
        (late,) = await started(tmp_path, monkeypatch, ALIVE[1:])
        assert late.followed == [{"names": ["a"]}]
        await late.control.catch_up()
        assert len(late.followed) == 1

    run(scenario)


def test_what_fails_here_changes_nothing_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        one.fails = LoadFailed("it is broken")
        with pytest.raises(LoadFailed, match="it is broken"):
            await one.control.change(adding("a"))
        assert other.followed == []
        assert one.control.state == other.control.state == {}

    run(scenario)


def test_who_cannot_follow_at_once_follows_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        for failure, said in ((LoadFailed("no room"), "no room"), (ValueError("a defect"), "log")):
            other.fails = failure
            with pytest.raises(ServiceError, match=said):
                await one.control.change(adding("a"))
        other.fails = LoadFailed("still no room")
        await other.control.catch_up()
        assert other.followed == []
        other.fails = None
        await other.control.catch_up()
        assert other.followed == [one.control.state] == [{"names": ["a", "a"]}]

    run(scenario)


def test_a_change_whose_caller_goes_away_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one, other = await started(tmp_path, monkeypatch)
        for turns in range(12):
            calling = asyncio.ensure_future(one.control.change(adding(f"{turns}")))
            for _ in range(turns):
                await asyncio.sleep(0)
            calling.cancel()
        await one.control.change(adding("last"))  # comes after all that were begun
        assert one.followed[-1] == other.followed[-1] == one.control.state
        assert one.control.state["names"][-1] == "last"

    run(scenario)


def test_the_socket_of_a_killed_worker_is_cleared_away_and_that_of_a_live_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        (peer,) = await started(tmp_path, monkeypatch, ALIVE[:1])
        for pid in (DEAD, os.getpid()):
            with socket.socket(socket.AF_UNIX) as gone:
                gone.bind(str(tmp_path / f"{pid}.sock"))
        with pytest.raises(Unavailable, match="does not answer"):
            await peer.control.ask({"x": 1})
        names = {path.stem for path in tmp_path.glob("*.sock")}
        assert names == {str(ALIVE[0]), str(os.getpid())}
        peer.control.stop()
        assert str(ALIVE[0]) not in {path.stem for path in tmp_path.glob("*.sock")}

    run(scenario)


def test_many_may_ask_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        peers = await started(tmp_path, monkeypatch)
        answers = await asyncio.gather(*(peers[0].control.ask({"x": i}) for i in range(900)))
        assert answers == [[2 * i, 2 * i] for i in range(900)]

    run(scenario)


def test_one_worker_without_a_folder_follows_itself() -> None:
    async def scenario() -> None:
        followed: list[State] = []

        async def follow(state: State) -> None:
            followed.append(state)

        async def answer(command: Command) -> Any:
            return 1

        control = Control(None, follow, answer)
        await control.start()
        await control.change(adding("a"))
        await control.change(adding("b"))
        assert followed == [{"names": ["a"]}, {"names": ["a", "b"]}]
        assert await control.ask({}) == [1]
        control.stop()

    run(scenario)
