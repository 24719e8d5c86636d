"""The file server for builds: where it listens, on the first start of an engine and later."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.compose.bridge import bridge_address, interface_address
from tests.compose.engine import EngineUnavailable
from tests.compose.images import wheel_server


def inspected(subnet: str, **config: str) -> str:
    """What `docker network inspect bridge` prints, with the fields that are read."""
    options = {"com.docker.network.bridge.name": "docker0"}
    return json.dumps([{"Options": options, "IPAM": {"Config": [{"Subnet": subnet, **config}]}}])


def address_of(name: str) -> IPv4Address:
    return {"docker0": IPv4Address("172.17.0.1")}[name]


@pytest.mark.parametrize(
    "answer",
    [
        inspected("172.17.0.0/16"),  # the first start of an engine
        inspected("172.17.0.0/16", Gateway="172.17.0.1"),  # every later one
        inspected("172.17.0.0/16", Gateway=""),
    ],
)
def test_the_bridge_has_its_address_with_and_without_a_gateway(answer: str) -> None:
    assert bridge_address(answer, address_of) == IPv4Address("172.17.0.1")


def test_an_address_outside_the_bridge_is_refused() -> None:
    for address in ("0.0.0.0", "127.0.0.1", "192.168.1.2"):
        with pytest.raises(EngineUnavailable, match="not in the subnet"):
            bridge_address(inspected("172.17.0.0/16"), lambda _, a=address: IPv4Address(a))


def test_a_bridge_without_an_interface_is_refused() -> None:
    def fail(name: str) -> IPv4Address:
        raise OSError("No such device")

    with pytest.raises(EngineUnavailable, match=r"docker0 has no IPv4 address.*No such device"):
        bridge_address(inspected("172.17.0.0/16"), fail)


def test_the_address_of_an_interface_is_read_from_the_kernel() -> None:
    assert interface_address("lo") == IPv4Address("127.0.0.1")
    with pytest.raises(OSError, match="No such device"):
        interface_address("no-such-if")


def test_wheels_are_served_on_one_address_only(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"wheel")
    with wheel_server(IPv4Address("127.0.0.1"), tmp_path) as url:
        with urllib.request.urlopen(url + "a.whl") as response:
            assert response.read() == b"wheel"
        elsewhere = url.replace("127.0.0.1", "127.0.0.2")
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(elsewhere)


def test_a_server_on_every_interface_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="every interface"),
        wheel_server(IPv4Address("0.0.0.0"), tmp_path),
    ):
        pass
