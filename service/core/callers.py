"""Who a caller is: the address that a request comes from, as text.

Fairness and limits treat the requests of one caller as one. A caller is

- an IPv4 address, also where a socket shows it in its IPv6 form (::ffff:192.0.2.1);
- the /64 network of a public IPv6 address, because a host usually gets a whole /64 and can change
  its address at will; any other IPv6 address (loopback, link-local, unique local) is a caller by
  itself, because such a network may be a whole cluster;
- the empty string if there is no address, as on a Unix socket.

The port is no part of it: one program opens many connections. Behind a trusted proxy the address is
the one that the proxy adds to X-Forwarded-For. RFC 7239's Forwarded is not read: a proxy that adds
one of the two passes the other on as the client wrote it.

Where it is said so, a trusted proxy also names the client certificate that it has verified, in
Envoy's x-forwarded-client-cert.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNKNOWN = ""
# Each cache is emptied when it has this many entries: about 1 MB.
_MAX_CACHED = 4096
# What is read of X-Forwarded-For from its end; a chain of proxies is shorter.
_LONGEST_CHAIN = 1024
# The longest form is an IPv6 address in brackets with a port.
_LONGEST_ADDRESS = 64
_PUBLIC_PREFIX = 64
# What is read of x-forwarded-client-cert: names are short, but it may hold a whole certificate.
_LONGEST_CERTIFICATE = 16 * 1024
# One KEY=VALUE of it, and what stands behind: `;`, or `,` before another certificate. A value with
# one of these is in quotes.
_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",;]*)(?:;|$)')
# One part of a subject (RFC 4514); commas in values are escaped.
_SUBJECT_PART = re.compile(r"(?:[^,\\]|\\.)+")


def networks(text: str) -> tuple[Network, ...]:
    """The addresses and networks of a comma-separated list. Raises ValueError."""
    parts = [part for each in text.split(",") if (part := each.strip())]
    return tuple(ipaddress.ip_network(part) for part in parts)


class Callers:
    """Names the callers of one worker. Lives on one event loop.

    `trusted_proxies` are the addresses and networks of the proxies whose X-Forwarded-For counts,
    comma-separated. Raises ValueError if one is malformed.

    `forwards_certificates` says that all of these proxies set x-forwarded-client-cert themselves.

    `known` maps peers that are no trusted proxies to their names; look there before calling `of`.
    """

    def __init__(self, trusted_proxies: str = "", *, forwards_certificates: bool = False) -> None:
        self.forwards_certificates = forwards_certificates
        self._trusted = networks(trusted_proxies)
        self.known: dict[str, str] = {}
        self._hops: dict[str, tuple[str, bool] | None] = {}

    def of(self, peer: str, forwarded: Sequence[str]) -> str:
        """The caller behind a peer, by the address that its socket shows, without the port.

        `forwarded` are the lines of X-Forwarded-For, each a list of addresses: every proxy adds the
        one that it was called from to the end. The caller is the last that is no trusted proxy. If
        a trusted proxy passes on something that is no address, it is the caller itself.
        """
        hop = self._hop(peer)
        name, is_trusted = hop or (_UNKNOWN, False)
        if not is_trusted:
            if len(self.known) >= _MAX_CACHED:
                self.known.clear()
            self.known[peer] = name
            return name
        chain = ",".join(forwarded)
        addresses = chain[-_LONGEST_CHAIN:].split(",")
        if len(chain) > _LONGEST_CHAIN:
            del addresses[0]  # it may be cut in two
        for address in reversed(addresses):
            hop = self._hop(address.strip())
            if hop is None:
                break
            name, is_trusted = hop
            if not is_trusted:
                break
        return name

    def is_trusted(self, peer: str) -> bool:
        """Whether a peer is a trusted proxy."""
        hop = self._hop(peer)
        return hop is not None and hop[1]

    def certificate_of(self, peer: str, own: str, forwarded: Sequence[str]) -> str:
        """The name of the verified client certificate behind a peer, or an empty string.

        `own` is that of the peer itself, and `forwarded` are the lines of x-forwarded-client-cert,
        which count if the peer is a proxy that sets it.
        """
        if self.forwards_certificates and forwarded and self.is_trusted(peer):
            return forwarded_name(forwarded)
        return own

    def _hop(self, address: str) -> tuple[str, bool] | None:
        """The name of an address and whether it is a trusted proxy; None if it is no address."""
        if len(address) > _LONGEST_ADDRESS:
            return None
        try:
            return self._hops[address]
        except KeyError:
            pass
        if len(self._hops) >= _MAX_CACHED:
            self._hops.clear()
        parsed = _parse(address)
        hop = None
        if parsed is not None:
            is_trusted = any(parsed in network for network in self._trusted)
            hop = (_name(parsed), is_trusted)
        self._hops[address] = hop
        return hop


def forwarded_name(lines: Sequence[str]) -> str:
    """The name in x-forwarded-client-cert: the first URI or DNS name, else the common name.

    Empty if the header is not of exactly one certificate: a proxy that sets it sends no other.
    """
    if len(lines) != 1 or len(lines[0]) > _LONGEST_CERTIFICATE:
        return ""
    text, position = lines[0], 0
    pairs: dict[str, str] = {}
    while position < len(text):
        pair = _PAIR.match(text, position)
        if pair is None:
            return ""
        value = pair[2]
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        pairs.setdefault(pair[1].lower(), value)
        position = pair.end()
    parts = _SUBJECT_PART.findall(pairs.get("subject", ""))
    common = [re.sub(r"\\(.)", r"\1", part[3:]) for part in parts if part.startswith("CN=")]
    return pairs.get("uri") or pairs.get("dns") or (common[-1] if common else "")


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address with or without a port, IPv6 with or without brackets; None if it is none."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        is_port = bool(bracket) and (not rest or rest.startswith(":"))
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        is_port = True
    else:
        host, rest, is_port = text, "", True
    if not is_port or not (rest.removeprefix(":") or "0").isdecimal():
        return None
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # without the zone of link-local
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _name(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.is_global:
        return str(ipaddress.ip_network((address, _PUBLIC_PREFIX), strict=False))
    return str(address)
