"""What a server pushes, and what then holds in the network, fully locked."""

import json
import re
import socket
import struct
from ipaddress import ip_network

import pytest

from lab import addresses as at
from lab.appliance import CONTROL, Appliance
from lab.openvpn import Client
from lab.relay import Relay, Way
from lab.traffic import Flood, download, fetch, resolve

TABLE = "7078"
ETH_P_ALL = 3
SYN = 0x02
OPTION_END, OPTION_NOP, OPTION_MSS = 0, 1, 2


def routes(lab, version=4):
    """Destination -> metric of what leads into the tunnel."""
    words = ["ip", "-json", f"-{version}", "route", "show", "table", TABLE]
    return {
        one["dst"]: one.get("metric", 0)
        for one in json.loads(lab.vpn.run(words).stdout)
    }


@pytest.mark.parametrize("topology", ["subnet", "net30", "p2p"])
def test_each_topology_carries_traffic(lab, start_server, topology):
    server = start_server(extra=(f"topology {topology}",))
    with (
        Appliance(lab).lock() as appliance,
        lab.capture(server.settings.endpoint) as capture,
    ):
        appliance.connect(server.client_profile()).wait_connected()
        seen = fetch(lab.app(1)).seen
        assert seen in ip_network("10.8.0.0/24")
        # a goodbye that the server hears
        appliance.stop()
        server.wait_for("CC-EEN exit message received by peer")
        report = capture.report()
    assert not report.leaks, str(report)


MANY = 150


def test_many_routes_with_their_metrics(lab, start_server):
    """They need several messages of the server, and become routes."""
    push = (
        "route-metric 7",
        *(f"route 172.16.{i}.0 255.255.255.0" for i in range(MANY)),
        "route 172.20.0.0 255.255.0.0 vpn_gateway 50",
        "route 198.51.100.0 255.255.255.0 net_gateway",
        "route 198.18.0.0 255.254.0.0 remote_host",
        "route-ipv6 2001:db8:80::/48 :: 60",
        "dhcp-option DOMAIN example.org",
        f"dhcp-option DNS {at.TUNNEL_DNS}",
        "ping 2",
    )
    server = start_server(push=push, ipv6=True)
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile()).wait_connected()
        server.wait_for("push-continuation 1'")
        found = routes(lab)
        assert {found[f"172.16.{i}.0/24"] for i in range(MANY)} == {7}
        assert found["172.20.0.0/16"] == 50
        assert "default" in found
        assert not {"198.51.100.0/24", "198.18.0.0/15"} & set(found)
        assert routes(lab, 6)["2001:db8:80::/48"] == 60
        refused = str(appliance.status())
        assert "net_gateway" in refused
        assert "remote_host" in refused
        # what net_gateway would have taken past the tunnel is in it
        assert fetch(lab.app(1)).seen == server.settings.network4 + 2
        # a query to the gateway comes out at the pushed resolver
        assert resolve(lab.app(1)) == [at.WEB4]
        assert resolve(lab.app(1), server=at.QUBES_DNS[1]) == [at.WEB4]
        clients = {one.client for one in lab.tunnel_dns.asked}
        assert clients == {server.settings.network4 + 2}
        assert not lab.outside_dns.asked


# --- sizes --------------------------------------------------------------------


def mss_of(packet):
    """The MSS of an IPv4 TCP SYN; None for anything else."""
    header = (packet[0] & 15) * 4
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    tcp = packet[header:]
    if tcp[13] != SYN:
        return None
    options = tcp[20 : (tcp[12] >> 4) * 4]
    while options and options[0] != OPTION_END:
        if options[0] == OPTION_NOP:
            options = options[1:]
            continue
        if options[0] == OPTION_MSS:
            return struct.unpack_from("!H", options, 2)[0]
        options = options[options[1] :]
    return None


def syn_behind(lab, server):
    """The MSS of a connection's first packet where the tunnel ends."""
    with lab.internet.enter():
        tap = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
        )
    with tap:
        tap.bind((server.device, ETH_P_ALL))
        tap.settimeout(5)
        assert fetch(lab.app(1)).status == 200
        while (found := mss_of(tap.recv(1 << 16))) is None:
            pass
    return found


def openvpns_mss(lab, server, line):
    """What Debian's client makes of the same profile."""
    profile = f"{server.client_profile()}{line}\n"
    extra = ("route-nopull", "verb 4")
    with Client(lab.net, lab.scratch, profile, extra=extra) as client:
        client.wait_connected()
        sizes = re.findall(
            r"Data Channel MTU parms \[ mss_fix:(\d+)", client.log
        )
    return int(sizes[-1])


@pytest.mark.parametrize(
    "cipher",
    ["AES-256-GCM", pytest.param("AES-256-CBC", marks=pytest.mark.long)],
)
def test_mssfix_is_what_openvpn_makes_of_it(lab, start_server, cipher):
    server = start_server(extra=("mssfix 0",), cipher=cipher)
    lines = ("mssfix 1300", "mssfix 1300 mtu", "mssfix 1300 fixed")
    for line in (*lines, "max-packet-size 1200"):
        theirs = openvpns_mss(lab, server, line)
        # a CBC packet's length goes in steps of its block
        slack = 3 * 16 if cipher.endswith("CBC") else 0
        right = range(theirs - slack, theirs + 1)
        with Appliance(lab).lock() as appliance:
            profile = f"{server.client_profile()}{line}\n"
            appliance.connect(profile, "--plane", "userspace").wait_connected()
            # smaller until it is known what the path carries
            appliance.wait(
                lambda right=right: syn_behind(lab, server) in right, 10, line
            )


# --- IPv6 ---------------------------------------------------------------------


def test_ipv6_inside_both_ways_until_the_server_blocks_it(lab6, start_server):
    lab = lab6
    server = start_server(ipv6=True)
    with (
        Appliance(lab).lock() as appliance,
        lab.capture(server.settings.endpoint) as capture,
    ):
        profile = server.client_profile()
        appliance.connect(profile).wait_connected()
        assert str(fetch(lab.app(1), to=at.WEB6).seen).startswith("fd00:8::")
        body = b"x" * 100_000
        answer = fetch(lab.app(1), to=at.WEB6, upload=body)
        assert answer.status == 200
        with Flood(lab.app(2), to=at.WEB6) as flood:
            flood.wait_echoes(20)
        appliance.stop()
        # the same, but for a word in the profile
        appliance.connect(f"{profile}block-ipv6\n").wait_connected()
        assert fetch(lab.app(1)).status == 200
        with pytest.raises(OSError, match=r".*") as refused:
            fetch(lab.app(1), to=at.WEB6, timeout=5)
        assert not isinstance(refused.value, TimeoutError), "told at once"
        report = capture.report()
    assert not report.leaks, str(report)


def test_ipv6_without_the_feature_goes_nowhere(lab, start_server):
    server = start_server(ipv6=True)
    app = at.APPS[0]
    with (
        Appliance(lab).lock() as appliance,
        lab.capture(server.settings.endpoint) as capture,
    ):
        appliance.connect(server.client_profile()).wait_connected()
        # a qube that helps itself to an address
        lab.app(1).ip(f"""
            addr add {app.ip6}/128 dev eth0 nodad
            neigh replace fe80::1 lladdr {at.BACKEND_MAC} dev eth0
            route add default via fe80::1 dev eth0
        """)
        with Flood(lab.app(1), to=at.WEB6) as flood:
            flood.wait_sent(50)
            assert fetch(lab.app(1)).status == 200
            assert not flood.echoes
        report = capture.report()
    assert not report.leaks, str(report)


# --- moving and ending --------------------------------------------------------


def test_our_address_changes_and_the_session_goes_on(lab, start_server):
    """A NAT that forgets: the server floats to where we are now."""
    server = start_server()
    with (
        Relay(lab.internet, server.settings.endpoint) as relay,
        Appliance(lab).lock() as appliance,
    ):
        profile = server.client_profile(address=relay.endpoint.address)
        appliance.connect(profile).wait_connected()
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(5)
            for _ in range(3):
                relay.rebind()
                flood.wait_echoes(10)
        server.wait_for("Float requested|FLOAT|floated")
        assert appliance.log().count("connected ") == 1
        assert download(lab.app(1), 100_000) == 100_000


def test_nobody_answers_from_elsewhere_not_even_with_float(lab, start_server):
    """The server moves: silence until it is where the profile says again."""
    push = ("redirect-gateway def1", "ping 1")
    server = start_server(push=push, extra=("keepalive 1 5",))
    with (
        Relay(lab.internet, server.settings.endpoint) as relay,
        lab.capture(relay.endpoint) as capture,
        Appliance(lab).lock() as appliance,
    ):
        profile = server.client_profile(address=relay.endpoint.address)
        appliance.connect(f"{profile}float\n").wait_connected()
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(5)
            # from another port, and from another address
            for address in (relay.endpoint.address, at.WEB4):
                with relay.moved(address):
                    flood.wait_sent(10)  # what is on its way
                    echoes, before = len(flood.echoes), relay.passed[Way.DOWN]
                    flood.wait_sent(50)
                    assert len(flood.echoes) == echoes
                    assert relay.passed[Way.DOWN] > before + 10
                flood.wait_echoes(5)
            assert appliance.log().count("connected ") == 1
            with relay.moved(at.WEB4):
                appliance.wait_log("QV-505")
            # we come from another port now, which the relay has not shown
            relay.rebind()
            appliance.wait_connected(count=2)
            flood.wait_echoes(5)
        report = capture.report()
    assert not report.leaks, str(report)


@pytest.mark.parametrize(
    ("push", "code"),
    [
        ("session-timeout 1", "QV-508"),
        ("inactive 1 1000000", "QV-507"),
        ("ping-exit 1", "QV-506"),
    ],
)
def test_an_end_by_time_is_closed_and_named(lab, start_server, push, code):
    server = start_server(push=(push,))
    with (
        Appliance(lab).lock() as appliance,
        lab.capture(server.settings.endpoint) as capture,
    ):
        # keepalive pushes a ping-restart, which would be in force
        lines = 'pull-filter ignore "ping-restart"\n'
        appliance.connect(server.client_profile() + lines)
        appliance.wait_log("connected ")
        appliance.wait_log(code)
        appliance.wait_phase("blocked")
        assert appliance.status()["reason"]["code"] == code
        with pytest.raises(OSError, match=r".*"):
            fetch(lab.app(1), timeout=1)
        appliance.command("connect", "--control", CONTROL)
        appliance.wait_log("connected ", count=2)
        report = capture.report()
    assert not report.leaks, str(report)
