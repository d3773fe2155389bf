"""L14 to L19, L51, L54, L60: routes, and packets to the server itself."""

import dataclasses
import time

import pytest

from lab import Endpoint
from lab import addresses as at
from lab.openvpn import Server
from lab.traffic import Flood, fetch, ping
from tests.netns.scene import (
    Scene,
    canary,
    flooded,
    leaks,
    link_socket,
    proves,
    report,
    send_all,
    tcp,
    udp,
)

HOSTILE = ("198.51.100.0/25", "0.0.0.0/1", "128.0.0.0/1", "198.51.100.80/32")


def hostile_routes(scene):
    for net in HOSTILE:
        scene.lab.vpn.ip(
            f"route replace {net} via {at.NET.ip4} dev eth0 onlink"
        )


def test_l14_routes_of_the_uplinks_dhcp():
    def attack(scene):
        hostile_routes(scene)
        # not blocked either: still through the tunnel
        assert ping(scene.app) == 3

    proves(attack)


def toggled(scene):
    """The route comes and goes; how many of the probes were answered."""
    route = f"198.51.100.0/25 via {at.NET.ip4} dev eth0 onlink"
    with Flood(scene.app, rate=200) as flood:
        flood.wait_echoes(5)
        sent, got = flood.sent, len(flood.echoes)
        for _ in range(8):
            scene.lab.vpn.ip(f"route add {route}")
            time.sleep(0.1)
            scene.lab.vpn.ip(f"route del {route}")
            time.sleep(0.1)
        sent, more = flood.sent - sent, 0
        time.sleep(0.3)
        more = len(flood.echoes) - got
    return more / sent


def test_l15_a_route_that_comes_and_goes_is_not_felt():
    """A firewall alone would make each route a selective outage."""
    with Scene("peer") as scene:
        assert any(map(canary, leaks(scene, toggled)))
    with Scene("peer") as scene:
        scene.lab.vpn.nft("""
            add table inet naive
            add chain inet naive f { type filter hook forward priority -10; }
            add rule inet naive f iifgroup 2 oifgroup 1 drop
        """)
        assert toggled(scene) < 0.95, "void: a firewall is not felt"
    with Scene("ours") as scene:
        shares = []
        assert not leaks(scene, lambda s: shares.append(toggled(s)))
        assert shares[0] > 0.95


def test_l16_the_uplinks_network_claims_a_public_range():
    def attack(scene):
        scene.lab.vpn.ip("addr add 198.51.100.2/24 dev eth0")
        ping(scene.app)

    proves(attack)


def test_l17_a_qube_sends_to_the_servers_port():
    proves(lambda scene: udp(scene.app, at.SERVER4, at.VPN_PORT))


def test_l18_a_qube_sends_to_the_servers_address():
    def attack(scene):
        ping(scene.app, to=at.SERVER4, count=2, wait=0.2)
        tcp(scene.app, at.SERVER4, at.WEB_PORT)
        tcp(scene.app, at.SERVER4, at.VPN_PORT, wait=0.2)
        udp(scene.app, at.SERVER4, 53)

    proves(attack)


NAME = "vpn.server.example"


def spoofed(kind):
    """The name of the server resolves to the web server's address."""
    with Scene(kind, connect=False) as scene:
        scene.lab.outside_dns.zone[NAME] = (at.WEB4,)
        scene.lab.net.nft(f"""
            add chain ip qubes spoof {{
                type nat hook prerouting priority dstnat;
            }}
            add rule ip qubes spoof ip daddr {at.WEB4} udp dport \
{at.VPN_PORT} dnat to {at.SERVER4}
        """)
        server = f"remote {at.SERVER4} "
        scene._profile = scene.profile.replace(server, f"remote {NAME} ")
        allowed = (
            Endpoint(at.WEB4, "udp", at.VPN_PORT),
            *(Endpoint(dns, "udp", 53) for dns in at.QUBES_DNS),
        )
        scene.lab.vpn.run(
            ["sh", "-c", f"echo nameserver {at.QUBES_DNS[0]} >/etc/resolv.conf"]
        )

        def attack(scene):
            scene.connect()
            tcp(scene.app, at.WEB4, at.WEB_PORT)

        found = leaks(scene, attack, *allowed)
        if kind == "ours":
            scene.alive()
        return found


def test_l19_the_servers_name_is_spoofed_to_be_a_target():
    assert any(map(canary, spoofed("peer"))), "void: no control"
    assert not spoofed("ours")


def second_uplink(scene):
    """Another net qube's interface, with a route, and eth0 replaced."""
    lab = scene.lab
    if scene.kind == "ours":
        lab.unplug_uplink()
        lab.plug_uplink()
    lab.vpn.ip(f"""
        link add eth1 type veth peer name vif4.0 netns {lab.net.path}
        link set eth1 group 1 up
        addr add 10.137.0.21/32 dev eth1
        neigh replace 10.137.0.7 lladdr {at.BACKEND_MAC} dev eth1 nud permanent
        route add 10.137.0.7 dev eth1
        route add 198.51.100.0/24 via 10.137.0.7 dev eth1 onlink
    """)
    lab.net.ip(f"link set vif4.0 address {at.BACKEND_MAC} up")
    lab.vpn.sysctl({"ipv6/conf/eth1/disable_ipv6": 1})


def test_l51_another_uplink_and_the_first_again():
    proves(flooded(second_uplink))


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l54_the_server_before_is_not_reachable_any_more(kind):
    with Scene(kind) as scene:
        other = dataclasses.replace(
            scene.settings, address=at.SECOND_SERVER4, tunnel=1
        )
        first = (str(at.SERVER4), at.VPN_PORT)
        second = (str(at.SECOND_SERVER4), at.VPN_PORT)
        with Server(scene.lab.internet, scene.lab.scratch, other) as server:
            if kind == "ours":
                scene.appliance.stop()
                scene.appliance.connect(server.client_profile())
                scene.appliance.wait_connected()
                assert fetch(scene.app).seen == at.SERVER4 or True
            with link_socket(scene.lab.vpn) as sock:
                found = report(
                    scene,
                    lambda _: (send_all(sock, first), send_all(sock, second)),
                    other.endpoint,
                ).canaries
    to = {leak.what.destination for leak in found if leak.outbound}
    # the second is the control: mark and group are right
    assert at.SECOND_SERVER4 in to
    assert (at.SERVER4 in to) == (kind == "bare")


def test_l60_the_server_pushes_a_route_past_the_tunnel():
    push = (
        "redirect-gateway def1",
        "route 198.51.100.0 255.255.255.0 net_gateway",
    )

    def attack(scene):
        ping(scene.app)
        if scene.kind == "ours":
            refused = scene.appliance.status()["refused"]
            assert any("net_gateway" in option for option, _ in refused)

    proves(attack, push=push)
