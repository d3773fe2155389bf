"""A phase is the same state by whichever way it is reached."""

import itertools
from ipaddress import ip_address

import pytest

from lab.namespace import Namespace
from qubes_vpn.policy import firewall, uplink
from qubes_vpn.policy.phase import (
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Plane,
    Transport,
)
from qubes_vpn.system.nft import Nft, canonical

FOUR = Endpoint(ip_address("192.0.2.10"), Transport.UDP, 1194)
SIX = Endpoint(ip_address("2001:db8::10"), Transport.TCP, 443)
DNS = (ip_address("10.8.0.1"), ip_address("10.8.0.2"), ip_address("fd00::1"))
OWN = (ip_address("10.137.0.20"), ip_address("fe80::1"))
RESOLVER = Endpoint(ip_address("10.139.1.1"), Transport.UDP, 53)
STATES = {
    "blocked": (Blocked(), OWN),
    "final": (Blocked(final=True), OWN),
    "resolving": (Blocked(), OWN, RESOLVER),
    "connecting": (Connecting(FOUR), OWN),
    "connecting6": (Connecting(SIX, Plane.KERNEL), OWN),
    "connected": (Connected(FOUR, "tun-vpn", DNS, ipv6=True), OWN),
    "connected6": (Connected(SIX, "ovpn-vpn", block_dot=True), OWN, RESOLVER),
    "passthrough": (
        Connected(FOUR, "tun7", (), dns_passthrough=True, plane=Plane.KERNEL),
        OWN,
    ),
}


@pytest.fixture(scope="module")
def nft():
    namespace = Namespace(f"transactions-{id(STATES):x}")
    with namespace.enter():
        yield Nft()
    namespace.close()


@pytest.mark.parametrize("policy", [firewall, uplink], ids=["inet", "netdev"])
@pytest.mark.parametrize(
    ("before", "after"), list(itertools.product(STATES, repeat=2))
)
def test_a_change_gives_what_making_it_anew_gives(nft, policy, before, after):
    defines = firewall.defines("eth0", 7078)
    nft.load(defines + policy.render(*STATES[after]))
    wanted = canonical(nft.list_table(policy.TABLE))
    nft.load(defines + policy.render(*STATES[before]))
    nft.load(defines + policy.change(*STATES[after]))
    assert canonical(nft.list_table(policy.TABLE)) == wanted


def test_counters_survive_a_change(nft):
    """A change touches elements and phase chains, no static rule."""
    defines = firewall.defines("eth0", 7078)

    def handles():
        return {
            item["rule"]["handle"]
            for item in nft.list_table(firewall.TABLE)
            if item.get("rule", {}).get("chain") == "forward"
        }

    nft.load(defines + firewall.render(Blocked()))
    before = handles()
    nft.load(defines + firewall.change(*STATES["connected"]))
    assert handles() == before
