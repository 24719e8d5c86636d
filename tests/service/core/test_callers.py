from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.core.callers import Callers, networks

PROXIES = "10.0.0.0/8, 192.0.2.7, fd00::/8"
addresses = st.ip_addresses().map(str)
trusted = st.ip_addresses(network="10.0.0.0/8").map(str)
# What a client can write into a header, near to addresses and far from them.
texts = st.text(st.characters(min_codepoint=32, max_codepoint=255)) | st.from_regex(
    r"[0-9a-f.:\[\]%/ ,]{0,90}", fullmatch=True
)


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:c000:201]", "192.0.2.1"),
        ("::1", "::1"),
        ("[0:0::1]", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("fd00:0::5", "fd00::5"),
        ("2A00:1:2:3:4:5:6:7", "2a00:1:2:3::/64"),
        ("2a00:1:2:3::1", "2a00:1:2:3::/64"),
        ("", ""),
        ("unix:/tmp/socket", ""),
    ],
)
def test_a_peer_is_named_by_its_address(peer: str, caller: str) -> None:
    assert Callers().of(peer, []) == caller


def test_a_header_of_a_peer_that_is_not_trusted_counts_for_nothing() -> None:
    for callers in (Callers(), Callers(PROXIES)):
        assert callers.of("192.0.2.1", ["198.51.100.1"]) == "192.0.2.1"
        assert callers.known == {"192.0.2.1": "192.0.2.1"}


@pytest.mark.parametrize(
    ("lines", "caller"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2a00:1::5]:4711"], "2a00:1::/64"),
        (["2a00:1::5"], "2a00:1::/64"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        # What the client itself sent stands before what the proxy added.
        (["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        (["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        # Two proxies.
        (["198.51.100.1,10.0.0.2"], "198.51.100.1"),
        (["203.0.113.9, 198.51.100.1, 10.0.0.2 , 192.0.2.7"], "198.51.100.1"),
        # A client inside the trusted network.
        (["10.0.0.2"], "10.0.0.2"),
        # Nothing, or nothing that is an address.
        ([], "10.0.0.1"),
        ([""], "10.0.0.1"),
        (["unknown"], "10.0.0.1"),
        (["198.51.100.1, "], "10.0.0.1"),
        (["198.51.100.1, x, 10.0.0.2"], "10.0.0.2"),
        (["198.51.100.1:port"], "10.0.0.1"),
        (["[2a00:1::5"], "10.0.0.1"),
        (["[2a00:1::5]x"], "10.0.0.1"),
        (["198.51.100.256"], "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_names_the_caller(lines: list[str], caller: str) -> None:
    callers = Callers(PROXIES)
    assert callers.of("10.0.0.1", lines) == caller
    assert callers.of("10.0.0.1", lines) == caller  # from the cache
    assert callers.known == {}


@given(st.lists(texts, max_size=3), addresses, st.lists(trusted, max_size=3))
def test_a_client_cannot_choose_its_name(spoofed: list[str], client: str, via: list[str]) -> None:
    """Whatever the client sends, the caller is the one that the first trusted proxy saw."""
    assume(ipaddress.ip_address(client) not in ipaddress.ip_network("10.0.0.0/8"))
    lines = [*spoofed, ", ".join([client, *via])]
    assert Callers("10.0.0.0/8").of("10.0.0.1", lines) == Callers().of(client, [])


@given(texts, st.lists(texts, max_size=5))
def test_any_text_gives_a_short_name(peer: str, lines: list[str]) -> None:
    for text in (peer, "10.0.0.1"):
        name = Callers(PROXIES).of(text, lines)
        assert len(name) <= len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
        if name:
            ipaddress.ip_network(name)


def test_a_long_header_is_read_from_its_end_only() -> None:
    callers = Callers(PROXIES)
    # The cut falls into an address whose rest would be one too.
    chain = "198.51.100.1" + ",10.0.0.1" * 113
    assert callers.of("10.0.0.1", [chain]) == "10.0.0.1"
    assert callers.of("10.0.0.1", ["1" * 1_000_000]) == "10.0.0.1"
    assert callers.of("10.0.0.1", ["x," * 100_000 + "198.51.100.1"]) == "198.51.100.1"


def test_caches_stay_small() -> None:
    callers = Callers("10.0.0.1")
    for number in range(10_000):
        address = str(ipaddress.ip_address(number + 2**31))
        assert callers.of(address, []) == callers.of("10.0.0.1", [address]) == address
    assert 0 < len(callers.known) <= 4096
    assert 0 < len(callers._hops) <= 4096


@pytest.mark.parametrize("text", ["10.0.0.1/8", "envoy", "10.0.0.0/33", "10.0.0.1;10.0.0.2"])
def test_a_proxy_that_is_neither_address_nor_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("/")[0]):
        networks(text)


def test_lists_may_have_spaces_and_a_comma_at_the_end() -> None:
    assert len(networks(" 10.0.0.0/8 ,::1, ")) == 2
    assert networks("") == ()


FORWARDED = 'Hash=0a;Subject="CN=somebody,O=Acme";URI=spiffe://a/b;DNS=a.example;DNS=b.example'


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (FORWARDED, "spiffe://a/b"),
        ("Hash=0a;DNS=a.example;DNS=b.example", "a.example"),
        ('Hash=0a;Subject="CN=somebody,O=Acme";URI=', "somebody"),
        ('Subject="O=Acme\\\\, CN=root,CN=some \\"body\\""', 'some "body"'),
        ('Subject="O=x\\\\,CN=root"', ""),
        ('Subject="O=Acme"', ""),
        ("By=spiffe://server;Hash=0a", ""),
        (f"{FORWARDED},{FORWARDED}", ""),
        ("URI=a,URI=b", ""),
        ('URI="a', ""),
        ('URI="a"b', ""),
        ("URI=a;;", ""),
        ("=;=", ""),
        ("nonsense", ""),
        ("", ""),
        ("URI=" + "a" * 20_000, ""),
        ("URI=a;" * 2_000, "a"),
    ],
)
def test_a_forwarded_certificate_is_named_if_there_is_exactly_one(line: str, name: str) -> None:
    callers = Callers("10.0.0.1", forwards_certificates=True)
    assert callers.certificate_of("10.0.0.1", "own", [line]) == name
    assert callers.certificate_of("10.0.0.1", "own", [line, line]) == ""


def test_a_forwarded_certificate_counts_only_from_proxies_that_set_it() -> None:
    callers = Callers("10.0.0.1", forwards_certificates=True)
    assert callers.certificate_of("10.0.0.2", "own", [FORWARDED]) == "own"
    assert callers.certificate_of("10.0.0.1", "own", []) == "own"
    assert Callers("10.0.0.1").certificate_of("10.0.0.1", "own", [FORWARDED]) == "own"


@given(st.lists(st.text(max_size=50), max_size=2))
def test_any_text_is_a_forwarded_certificate_or_none(lines: list[str]) -> None:
    callers = Callers("10.0.0.1", forwards_certificates=True)
    assert isinstance(callers.certificate_of("10.0.0.1", "own", lines), str)
