"""L25 to L27, L68: IPv6."""

import socket
import struct
import time

import pytest

from lab import addresses as at
from lab.frames import Ip, parse
from lab.traffic import Flood, internet_checksum
from tests.netns.scene import Scene, leaks, proves, report, udp

ALL_NODES = "33:33:00:00:00:01"
ND = (135, 136)


def test_l25_forwarded_beside_a_tunnel_without_it():
    proves(
        lambda scene: udp(scene.app, at.WEB6, at.ECHO_PORT),
        ipv6=True,
    )


def advertisement():
    """A router advertisement of the net qube's interface, as a frame."""
    source = socket.inet_pton(socket.AF_INET6, "fe80::1")
    to = socket.inet_pton(socket.AF_INET6, "ff02::1")
    body = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    pseudo = source + to + struct.pack(">II", len(body), 58)
    check = internet_checksum(pseudo + body)
    body = body[:2] + struct.pack(">H", check) + body[4:]
    head = struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source + to
    macs = bytes.fromhex((ALL_NODES + at.BACKEND_MAC).replace(":", ""))
    return macs + b"\x86\xdd" + head + body


def advertised(scene):
    with scene.lab.net.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        raw.bind(("vif3.0", 0))
        for _ in range(3):
            raw.send(advertisement())
            time.sleep(0.05)
    shown = scene.lab.vpn.run(["ip", "-6", "route", "show", "default"]).stdout
    return "fe80::1" in shown


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l26_a_router_advertises_itself(kind):
    with Scene(kind, ipv6=True) as scene:
        # what a network manager does
        scene.lab.vpn.sysctl({"ipv6/conf/eth0/accept_ra": 2})
        time.sleep(2)  # the link-local address is tentative
        assert advertised(scene) == (kind == "bare")


def flap(scene):
    scene.lab.vpn.ip(f"""
        link set eth0 down
        link set eth0 up
        route replace {at.NET.ip4} dev eth0
        route replace default via {at.NET.ip4} dev eth0 onlink
    """)
    time.sleep(1)


def test_l27_a_link_comes_up():
    proves(flap, seen=lambda leak: "ff02" in str(leak), ipv6=True)


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l68_a_server_over_ipv6(kind):
    """Neighbours are found, and nothing else of IPv6 leaves."""
    with Scene(kind, ipv6=True, address=at.SERVER6, connect=False) as scene:

        def attack(scene):
            # the way is asked for, as without a permanent neighbour
            scene.lab.vpn.run(
                ["ip", "-6", "neigh", "del", str(at.NET.ip6), "dev", "eth0"],
                check=False,
            )
            if kind == "ours":
                scene.appliance.connect(
                    scene.profile, "--uplink6", f"{at.VPN.ip6},{at.NET.ip6}"
                ).wait_connected()
            with Flood(scene.app, to=at.WEB6) as flood:
                flood.wait_sent(20)
            udp(scene.app, at.SERVER6, at.VPN_PORT)
            udp(scene.lab.vpn, at.WEB6, 123)
            if kind == "ours":
                scene.alive()

        with scene.capture() as capture:
            attack(scene)
            found = capture.report()
        if kind == "bare":
            assert found.canaries
            return
        assert not found.leaks, str(found)
        assert found.tunnel > 5
        sixes = [
            packet
            for out, frame in capture.frames()
            if out
            and isinstance(packet := parse(frame), Ip)
            and packet.source.version == 6
            and packet.destination != at.SERVER6
        ]
        assert {packet.icmp for packet in sixes} <= set(ND)


def test_l68_the_servers_neighbour_speaks_to_nobody_else():
    """With an IPv4 endpoint not even neighbour discovery is heard."""
    with Scene("ours", ipv6=True) as scene:
        scene.lab.vpn.sysctl({"ipv6/conf/eth0/disable_ipv6": 0})
        found = report(scene, flap)
        assert not found.leaks
        assert not leaks(scene, lambda s: udp(s.lab.vpn, at.WEB6, 123))
