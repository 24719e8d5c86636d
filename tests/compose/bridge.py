"""The address of the engine's bridge on this machine: what builds reach, and nothing else does."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address

from tests.compose.engine import EngineUnavailable

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface
_BRIDGE_NAME = "com.docker.network.bridge.name"


def interface_address(name: str) -> IPv4Address:
    """The IPv4 address of a network interface. Raises OSError if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # struct ifreq: the name in 16 bytes, then a struct sockaddr_in with the address at byte 4
        request = struct.pack("16s24x", name.encode())
        answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, request)
    return IPv4Address(answer[20:24])


def bridge_address(
    inspect: str, address_of: Callable[[str], IPv4Address] = interface_address
) -> IPv4Address:
    """The bridge's address, from `docker network inspect bridge`. Raises EngineUnavailable.

    On the first start of an engine, the answer has no Gateway. The interface always
    has its address; it is checked against the subnet of the answer.
    """
    (network,) = json.loads(inspect)
    name = network["Options"].get(_BRIDGE_NAME, "docker0")
    try:
        address = address_of(name)
    except OSError as error:
        raise EngineUnavailable(
            f"The engine's bridge {name} has no IPv4 address on this machine ({error}), so builds "
            "cannot fetch wheels from here. Use --online."
        ) from error
    subnets = [ipaddress.ip_network(config["Subnet"]) for config in network["IPAM"]["Config"]]
    if not any(address in subnet for subnet in subnets):
        raise EngineUnavailable(
            f"The interface {name} has the address {address}, which is not in the subnet of the "
            f"engine's bridge ({', '.join(map(str, subnets)) or 'none'})."
        )
    return address
