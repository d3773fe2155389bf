"""Out of bounds is refused by its slug."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from qubes_vpn.keeper import bounds, messages
from qubes_vpn.keeper.bounds import RequestRefusedError
from qubes_vpn.policy.phase import Endpoint, Transport

GOOD = messages.Configure(
    (ip_interface("10.8.0.2/24"),),
    1400,
    (messages.Route("10.0.0.0/8"),),
    (ip_address("10.8.0.1"),),
    ("vpn.example",),
)
ADDRESS = ip_address("192.0.2.10")


def reason(check, *args):
    with pytest.raises(RequestRefusedError) as caught:
        check(*args)
    return caught.value.reason


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        ({"mtu": 575}, "bad-mtu"),
        ({"mtu": 65536}, "bad-mtu"),
        ({"addresses": ()}, "bad-addresses"),
        ({"addresses": GOOD.addresses * 5}, "bad-addresses"),
        ({"addresses": (ip_interface("0.0.0.0/0"),)}, "bad-address"),
        ({"addresses": (ip_interface("127.0.0.1/8"),)}, "bad-address"),
        (
            {"addresses": (ip_interface("fd00::2/64"),), "mtu": 1000},
            "bad-mtu",
        ),
        ({"dns": GOOD.dns * 9}, "too-many-dns"),
        ({"dns": (ip_address("224.0.0.1"),)}, "bad-address"),
        ({"dns": (ip_address("::ffff:10.0.0.1"),)}, "bad-address"),
        ({"search": ("a",) * 17}, "too-many-domains"),
        ({"search": ("-a",)}, "bad-domain"),
        ({"search": ("a..b",)}, "bad-domain"),
        ({"search": ("a" * 64,)}, "bad-domain"),
        ({"search": ("a\n",)}, "bad-domain"),
        ({"search": ("$(id)",)}, "bad-domain"),
        ({"routes": (messages.Route("10.0.0.1/8"),)}, "bad-route"),
        ({"routes": (messages.Route("10.0.0.0/08"),)}, "bad-route"),
        ({"routes": (messages.Route("10.0.0.0"),)}, "bad-route"),
        ({"routes": (messages.Route("10.0.0.0/8", -1),)}, "bad-route"),
        ({"routes": GOOD.routes * 1025}, "too-many-routes"),
    ],
)
def test_configure(change, slug):
    assert bounds.check_configure(GOOD, "t")
    bad = replace(GOOD, **change)
    assert reason(bounds.check_configure, bad, "t") == slug


@pytest.mark.parametrize("port", [0, 65536])
def test_ports_of_endpoints(port):
    end = Endpoint(ADDRESS, Transport.UDP, port)
    assert reason(bounds.check_endpoints, (end,)) == "bad-port"


def test_number_of_endpoints():
    end = Endpoint(ADDRESS, Transport.UDP, 1)
    bounds.check_endpoints((end,) * 512)
    assert reason(bounds.check_endpoints, (end,) * 513) == "too-many-endpoints"


@pytest.mark.parametrize(
    ("request_", "slug"),
    [
        (messages.OpenLink(1), "no-such-endpoint"),
        (messages.OpenLink(-1), "no-such-endpoint"),
        (messages.OpenLink(0, lport=1023), "bad-lport"),
        (messages.OpenLink(0, lport=65536), "bad-lport"),
        (messages.OpenLink(0, sndbuf=-1), "bad-buffer"),
        (messages.OpenLink(0, rcvbuf=1 << 30), "bad-buffer"),
    ],
)
def test_link(request_, slug):
    bounds.check_link(messages.OpenLink(0, lport=1024), 1)
    assert reason(bounds.check_link, request_, 1) == slug


def test_relay():
    bounds.check_relay(messages.OpenRelay(1))
    for bad, slug in (
        (messages.OpenRelay(0), "bad-port"),
        (messages.OpenRelay(65536), "bad-port"),
        (messages.OpenRelay(1, lport=80), "bad-lport"),
        (messages.OpenRelay(1, rcvbuf=-1), "bad-buffer"),
    ):
        assert reason(bounds.check_relay, bad) == slug


def test_forwarding():
    bounds.check_forwarding(messages.OpenForwarding(1360, 1340))
    for bad, slug in (
        (messages.OpenForwarding(87, 1340), "bad-mss"),
        (messages.OpenForwarding(1360, 65496), "bad-mss"),
        (messages.OpenForwarding(1360, 1340, ipv4=False), "no-family"),
    ):
        assert reason(bounds.check_forwarding, bad) == slug
