"""Workers that tell each other: several ends of one folder, on one loop."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from service.control import Command, Control
from service.core.errors import LoadFailed, ServiceError


class Peer:
    """A worker that remembers what it was told; each in a process of its own, as sockets go."""

    def __init__(self, folder: Path, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Command] = []
        self.fails: ServiceError | Exception | None = None
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid)
            self.control = Control(folder, self.apply)

    async def apply(self, command: Command) -> Any:
        self.told.append(command)
        if self.fails:
            raise self.fails
        return len(self.told)


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_all_workers_are_told_and_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        peers = [Peer(tmp_path, pid, monkeypatch) for pid in (1, 2, 3)]
        for peer in peers:
            await peer.control.start()
        assert await peers[1].control.ask({"do": "x"}) == [1, 1, 1]
        await peers[2].control.tell({"do": "y"})
        assert [peer.told for peer in peers] == [[{"do": "x"}, {"do": "y"}]] * 3

    run(scenario)


def test_commands_of_several_workers_come_in_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        peers = [Peer(tmp_path, pid, monkeypatch) for pid in (1, 2)]
        for peer in peers:
            await peer.control.start()
        await asyncio.gather(*(peers[i % 2].control.tell({"i": i}) for i in range(20)))
        assert peers[0].told == peers[1].told
        assert len(peers[0].told) == 20

    run(scenario)


def test_who_comes_later_catches_up_with_what_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        first = Peer(tmp_path, 1, monkeypatch)
        await first.control.start()
        for name in "abc":
            await first.control.tell({"out": name}, remember=f"model {name}")
        await first.control.tell({"in": "b"}, forget="model b".__eq__)
        second = Peer(tmp_path, 2, monkeypatch)
        second.fails = LoadFailed("no more")  # what no longer holds is passed over
        await second.control.start()
        assert second.told == [{"out": "a"}, {"out": "c"}]

    run(scenario)


def test_what_fails_anywhere_fails_for_the_caller_and_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        peers = [Peer(tmp_path, pid, monkeypatch) for pid in (1, 2)]
        for peer in peers:
            await peer.control.start()
        peers[1].fails = LoadFailed("it is broken")
        with pytest.raises(LoadFailed, match="it is broken"):
            await peers[0].control.tell({"do": "x"}, remember="x")
        peers[1].fails = ValueError("a defect")
        with pytest.raises(ServiceError, match="log"):
            await peers[0].control.tell({"do": "x"}, remember="x")
        late = Peer(tmp_path, 3, monkeypatch)
        await late.control.start()
        assert late.told == []

    run(scenario)


def test_the_socket_of_a_killed_worker_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        peer = Peer(tmp_path, 1, monkeypatch)
        await peer.control.start()
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(tmp_path / "2.sock"))
        assert await peer.control.ask({"do": "x"}) == [1]
        assert [path.name for path in tmp_path.glob("*.sock")] == ["1.sock"]
        peer.control.stop()
        assert not list(tmp_path.glob("*.sock"))

    run(scenario)


def test_one_worker_without_a_folder_tells_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        told: list[Command] = []

        async def apply(command: Command) -> Any:
            told.append(command)

        control = Control(None, apply)
        await control.start()
        await control.tell({"do": "x"}, remember="x")
        assert told == [{"do": "x"}]
        control.stop()

    run(scenario)
