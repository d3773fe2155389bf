"""What each phase adds to the static tables, as text."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.errors import LocalStateError
from qubes_vpn.policy import dns, firewall, routes, uplink
from qubes_vpn.policy.phase import (
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Plane,
    Transport,
)

V4 = ip_address("192.0.2.10")
V6 = ip_address("2001:db8::10")
OWN = (ip_address("10.137.0.20"), ip_address("fd09::20"))
UDP4 = Endpoint(V4, Transport.UDP, 1194)
TCP6 = Endpoint(V6, Transport.TCP, 443)
ONE, TWO, SIX = map(ip_address, ("10.8.0.1", "10.8.0.2", "fd00::1"))

endpoints = st.builds(
    Endpoint,
    st.ip_addresses(),
    st.sampled_from(Transport),
    st.integers(1, 65535),
)
planes = st.sampled_from(Plane)
relays = st.sampled_from((0, 4444))
phases = st.one_of(
    st.builds(Blocked, st.booleans()),
    st.builds(Connecting, endpoints, planes, relays),
    st.builds(
        Connected,
        endpoint=endpoints,
        device=st.just("tun-vpn"),
        dns=st.lists(st.ip_addresses(), max_size=3).map(tuple),
        ipv4=st.booleans(),
        ipv6=st.booleans(),
        plane=planes,
        block_dot=st.booleans(),
        dns_passthrough=st.booleans(),
        relay=relays,
    ),
)


def added(text):
    """The commands of a change that are no flush."""
    return [x for x in text.splitlines() if not x.startswith("flush ")]


@given(phases)
def test_only_connected_names_a_device_or_opens_a_tunnel(phase):
    opens = [x for x in added(firewall.change(phase)) if "tunnel" in x]
    carried = isinstance(phase, Connected) and (phase.ipv4 or phase.ipv6)
    assert bool(opens) == carried


@given(phases)
def test_every_change_empties_what_any_change_fills(phase):
    flushed = {
        tuple(line.split()[1:5])
        for line in firewall.change(phase).splitlines()
        if line.startswith("flush ")
    }
    for line in added(firewall.change(phase)):
        _, kind, family, table, name, *_ = line.split()
        where = "set" if kind == "element" else "chain"
        assert (where, family, table, name) in flushed


@given(phases)
def test_at_most_one_endpoint_is_ever_reached(phase):
    """And with a relay, one more port of the same address."""
    for change in (firewall.change, uplink.change):
        text = change(phase, OWN)
        sets = [x for x in added(text) if " . " in x and "add element" in x]
        if isinstance(phase, Blocked):
            assert not sets
            continue
        assert len(sets) == 1 + (phase.relay != 0)
        for line in sets:
            assert f"{{ {phase.endpoint.address} . " in line
        if phase.relay:
            assert " . udp . 4444 }" in sets[1]


@given(phases)
def test_no_phase_accepts_by_a_rule(phase):
    """What is accepted is accepted by the static chains, through sets."""
    rules = [x for x in added(firewall.change(phase)) if "add rule" in x]
    assert not [x for x in rules if x.endswith("accept")]


@given(phases)
def test_closed_to_qubes_unless_connected(phase):
    rules = [x for x in added(firewall.change(phase)) if " closed " in x]
    assert len(rules) == (not isinstance(phase, Connected))


def test_a_plane_decides_whether_the_group_counts():
    user = firewall.change(Connecting(UDP4))
    kernel = firewall.change(Connecting(UDP4, Plane.KERNEL))
    assert "link4 { 192.0.2.10 . udp . 1194 }" in user
    assert "offload4 { 192.0.2.10 . udp . 1194 }" in kernel
    leaving = [x for x in firewall.STATIC.splitlines() if " dport @" in x]
    assert len(leaving) == 4
    for line in leaving:
        assert f"meta mark {firewall.MARK:#x} " in line
        assert ("meta skgid $gid " in line) == ("@link" in line)


def test_own_addresses_count_only_in_the_family_of_the_endpoint():
    text = uplink.change(Connecting(UDP4), OWN)
    assert "address4 { 10.137.0.20 }" in text
    assert "add element netdev qubes_vpn address6" not in text
    assert "add element" not in uplink.change(Blocked(), OWN)


def test_neighbours_are_heard_only_for_an_ipv6_endpoint():
    assert "neighbours { $uplink }" in firewall.change(Connecting(TCP6))
    assert "add rule netdev qubes_vpn neighbours" in uplink.change(
        Connecting(TCP6)
    )
    four = firewall.change(Connecting(UDP4)) + uplink.change(Connecting(UDP4))
    assert "add element inet qubes_vpn neighbours" not in four
    assert "add rule netdev qubes_vpn neighbours" not in four


def test_a_final_block_refuses_and_another_is_silent():
    assert "closed counter reject" in firewall.change(Blocked(final=True))
    assert "closed counter drop" in firewall.change(Blocked())


@pytest.mark.parametrize("name", ["", "a b", 'x"', "a" * 16, "..", "a/b", "ä"])
def test_a_device_is_a_plain_name(name):
    with pytest.raises(LocalStateError):
        firewall.change(Connected(UDP4, name))
    with pytest.raises(LocalStateError):
        firewall.defines(name, 1)


# --- resolvers


def test_the_second_address_of_qubes_asks_the_second_resolver():
    rules = list(dns.redirect_rules(Connected(UDP4, "t", (ONE, TWO, SIX))))
    assert rules == [
        "ip daddr 10.139.1.2 counter dnat ip to 10.8.0.2",
        "meta nfproto ipv4 counter dnat ip to 10.8.0.1",
        "meta nfproto ipv6 counter dnat ip6 to fd00::1",
    ]


def test_with_no_resolver_a_query_is_dropped():
    phase = Connected(UDP4, "t")
    assert list(dns.redirect_rules(phase)) == []
    assert all(
        rule.endswith("53 counter drop") for rule in dns.filter_rules(phase)
    )


def test_passing_through_is_a_choice():
    phase = Connected(UDP4, "t", (ONE,), dns_passthrough=True)
    (redirect,) = dns.redirect_rules(phase)
    (drop,) = dns.filter_rules(phase)
    # Qubes' own addresses are nobody's choice
    for rule in (redirect, drop):
        assert "ip daddr { 10.139.1.1, 10.139.1.2 } " in rule


def test_dns_over_tls_is_refused_when_asked():
    on = Connected(UDP4, "t", (ONE,), block_dot=True)
    off = Connected(UDP4, "t", (ONE,))
    assert any("dport 853 " in rule for rule in dns.filter_rules(on))
    assert not any("dport 853 " in rule for rule in dns.filter_rules(off))


# --- routes


@given(phases)
def test_the_table_always_ends_in_unreachable(phase):
    found = routes.routes(phase)
    denying = [route for route in found if not route.device]
    assert {route.destination.version for route in denying} == {4, 6}
    assert all(route.metric == routes.METRIC_DENY for route in denying)
    into = {r.destination.version for r in found if r.device}
    if isinstance(phase, Connected):
        carried = {4: phase.ipv4, 6: phase.ipv6}
        assert into == {v for v, is_carried in carried.items() if is_carried}
    else:
        assert into == set()


def test_a_device_of_another_name_has_its_way_back():
    back = [rule.iif for rule in routes.rules("tun7") if rule.priority == 60]
    assert back == [*routes.DEVICES, "tun7"]
    assert len([r for r in routes.rules("tun-vpn") if r.priority == 60]) == 2
