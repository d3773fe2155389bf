"""The engine's settings in the keeper's terms."""

from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network

import pytest

from qubes_vpn.config.pulled import TunnelRoute, TunnelSettings
from qubes_vpn.policy.phase import Endpoint, Transport
from qubes_vpn.qubes.qubesdb import DnsChoice
from qubes_vpn.runtime import mapping

UDP4 = Endpoint(ip_address("192.0.2.1"), Transport.UDP, 1194)
TCP6 = Endpoint(ip_address("2001:db8::1"), Transport.TCP, 443)
V4 = IPv4Interface("10.8.0.2/24")
V6 = IPv6Interface("fd00::2/64")


def test_everything_goes_into_the_tunnel_whatever_the_server_names():
    settings = TunnelSettings(
        ifconfig4=V4, routes=(TunnelRoute(ip_network("10.0.0.0/8")),)
    )
    routes = [r.destination for r in mapping.configure(settings).routes]
    assert routes == ["0.0.0.0/0", "10.0.0.0/8"]


def test_where_queries_go_is_the_users_choice():
    settings = TunnelSettings(ifconfig4=V4)
    pushed = mapping.configure(settings)
    assert not pushed.dns_passthrough
    assert not pushed.block_dot
    chosen = DnsChoice(passthrough=True, block_dot=True)
    configure = mapping.configure(settings, chosen)
    assert configure.dns_passthrough
    assert configure.block_dot


def test_ipv6_is_carried_only_with_an_address():
    route = TunnelRoute(ip_network("2001:db8:5::/48"))
    without = TunnelSettings(ifconfig4=V4, routes=(route,))
    assert [r.destination for r in mapping.configure(without).routes] == [
        "0.0.0.0/0"
    ]
    assert not mapping.open_forwarding(without, UDP4).ipv6
    both = TunnelSettings(ifconfig4=V4, ifconfig6=V6, routes=(route,))
    assert [r.destination for r in mapping.configure(both).routes] == [
        "::/0",
        "0.0.0.0/0",
        "2001:db8:5::/48",
    ]
    assert mapping.open_forwarding(both, UDP4).ipv6


def test_block_ipv6_blocks_what_the_server_would_carry():
    settings = TunnelSettings(ifconfig4=V4, ifconfig6=V6, block_ipv6=True)
    assert not mapping.open_forwarding(settings, UDP4).ipv6


@pytest.mark.parametrize(
    ("endpoint", "mtu", "mssfix", "mss4"),
    [
        # 1492 - 20 - 8 - 24 - 40
        (UDP4, 1500, 1492, 1400),
        # 1492 - 40 - 22 - 24 - 40
        (TCP6, 1500, 1492, 1366),
        (UDP4, 1400, 1492, 1360),
        (UDP4, 1500, 0, 1460),
        (UDP4, 1500, 300, mapping.MSS_MIN),
    ],
)
def test_a_segment_fits_what_mssfix_allows(endpoint, mtu, mssfix, mss4):
    settings = TunnelSettings(ifconfig4=V4, mtu=mtu, mssfix=mssfix)
    assert mapping.open_forwarding(settings, endpoint).mss4 == mss4


@pytest.mark.parametrize(
    ("endpoint", "of", "mss4", "mss6"),
    [
        # openvpn 2.6 logs mss4 for an AEAD cipher
        (UDP4, "", 1236, 1216),
        (UDP4, "mtu", 1208, 1188),
        (UDP4, "fixed", 1260, 1240),
        (TCP6, "", 1236, 1216),
    ],
)
def test_mssfix_says_what_its_size_is_of(endpoint, of, mss4, mss6):
    settings = TunnelSettings(ifconfig4=V4, mssfix=1300, mssfix_of=of)
    opened = mapping.open_forwarding(settings, endpoint)
    assert (opened.mss4, opened.mss6) == (mss4, mss6)


@pytest.mark.parametrize(
    ("endpoint", "mssfix", "mss4"),
    # 1280 - 28 - 24 - 40; 1280 - 62 - 24 - 40
    [(UDP4, 1492, 1188), (TCP6, 1492, 1154), (UDP4, 1200, 1108)],
)
def test_a_segment_passes_everywhere_until_the_path_is_known(
    endpoint, mssfix, mss4
):
    settings = TunnelSettings(ifconfig4=V4, mssfix=mssfix)
    opened = mapping.open_forwarding(settings, endpoint, known=False)
    assert opened.mss4 == mss4


@pytest.mark.parametrize(
    ("endpoint", "changed", "mtu"),
    [
        # 1500 - 20 - 8 - 24
        (UDP4, {}, 1448),
        (UDP4, {"aead_epoch": True}, 1444),
        (UDP4, {"compression": "stub"}, 1447),
        (UDP4, {"mtu": 1300}, 1300),
        (TCP6, {}, 1500),
    ],
)
def test_no_packet_of_the_device_is_too_long_for_the_uplink(
    endpoint, changed, mtu
):
    settings = TunnelSettings(ifconfig4=V4, **changed)
    assert mapping.fitted(settings, endpoint).mtu == mtu


V4_DNS, V6_DNS = ip_address("10.8.0.1"), ip_address("fd00::1")


def test_ipv6_is_off_on_a_path_that_is_too_narrow_for_it():
    both = TunnelSettings(
        ifconfig4=V4,
        ifconfig6=V6,
        dns=(V6_DNS, V4_DNS),
        refused=(("up", "no scripts"),),
    )
    for wide in (0, 1280, 1400):
        path = replace(both, path_mtu=wide)
        assert mapping.on_path(path) == replace(path, mtu=wide or 1500)
    narrow = mapping.on_path(replace(both, path_mtu=1228))
    assert (narrow.mtu, narrow.ifconfig6) == (1228, None)
    assert narrow.dns == (V4_DNS,)
    assert narrow.refused[1:] == (
        (
            mapping.NO_IPV6,
            "IPv6 needs 1280 bytes, and this path carries 1228",
        ),
    )
    assert not mapping.open_forwarding(narrow, UDP4).ipv6
    assert V6 not in mapping.configure(narrow).addresses
    # a smaller device would lose it too
    assert mapping.on_path(replace(both, mtu=1200)).ifconfig6 is None


@pytest.mark.parametrize(
    "change",
    [{"ifconfig4": None}, {"block_ipv4": True}, {"dns": (V6_DNS,)}],
)
def test_ipv6_stays_where_there_is_nothing_else(change):
    both = TunnelSettings(ifconfig4=V4, ifconfig6=V6, path_mtu=1228)
    kept = mapping.on_path(replace(both, **change))
    assert (kept.mtu, kept.ifconfig6, kept.refused) == (1280, V6, ())


@pytest.mark.parametrize(
    "change", [{"ifconfig6": None}, {"block_ipv6": True}, {"dns": (V4_DNS,)}]
)
def test_ipv4_fits_a_narrow_path(change):
    both = TunnelSettings(ifconfig4=V4, ifconfig6=V6, path_mtu=1228)
    assert mapping.on_path(replace(both, **change)).mtu == 1228
