"""Who a caller is: X-Forwarded-For of a trusted proxy. The peer, then lines, between zero bytes.

The first byte chooses the trusted proxies.
"""

from __future__ import annotations

import contextlib
import ipaddress

from service.core.callers import Callers, networks

_TRUSTED = ("", "10.0.0.0/8", "10.0.0.0/8, 2001:db8::/32, ::1", "0.0.0.0/0, ::/0")
_CALLERS = [Callers(trusted) for trusted in _TRUSTED]
SEEDS = [
    b"\1" + b"10.0.0.1\x00203.0.113.9",
    b"\1" + b"10.0.0.1\x00203.0.113.9, 10.0.0.2\x00198.51.100.1:80",
    b"\2" + b"::1\x00[2a00:1450::1]:443, fe80::1%eth0",
    b"\2" + b"::ffff:10.1.1.1\x00unknown, ::ffff:192.0.2.1",
    b"\3" + b"1.2.3.4\x00" + b"10.0.0.1," * 300,
    b"\0" + b"unix:",
    b"\1" + b"10.0.0.1\x00_hidden, for=1.2.3.4, [::1, 1.2.3.4:x, 1.2.3, 0x7f.1,,",
]
TOKENS = [
    *(b"10.0.0.1", b"203.0.113.9", b"2a00:1450::1", b"::ffff:", b"[", b"]:80", b"%eth0", b", "),
    *(b"::1", b"fe80::", b"0177.0.0.1", b"1e3", b"/8", "\u0661".encode()),
]


def check(data: bytes) -> None:
    choice = data[0] % len(_CALLERS) if data else 0
    peer, *lines = (part.decode("latin-1") for part in data[1:].split(b"\0"))
    caller = _CALLERS[choice].of(peer, lines)
    # The same without anything that is remembered of other inputs.
    assert caller == Callers(_TRUSTED[choice]).of(peer, lines)
    addresses = {
        "",
        _name(peer),
        *(_name(part.strip()) for line in lines for part in line.split(",")),
    }
    assert caller in addresses, "a caller that is in none of the addresses"
    assert len(caller) <= 43
    trusted = networks(_TRUSTED[choice])
    if not _is_in(_name(peer), trusted):
        assert caller == _name(peer), "a peer that is not trusted has chosen the caller"
    with contextlib.suppress(ValueError):
        networks(peer)


def _name(text: str) -> str:
    """The caller that one address stands for; empty for what is none or too long for one."""
    if len(text) > 64:
        return ""
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and (port[0] != ":" or not (port[1:] or "0").isdecimal())):
            return ""
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if port and not port.isdecimal():
            return ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        if address.is_global:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _is_in(name: str, trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]) -> bool:
    """Whether a caller may name another; a /64 counts by its first address."""
    if not name:
        return False
    address = ipaddress.ip_address(name.partition("/")[0])
    return any(address in network for network in trusted)
