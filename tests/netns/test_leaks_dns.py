"""L20 to L24, L61: names."""

import contextlib
import socket
import struct
import threading

import pytest

from lab import Endpoint
from lab import addresses as at
from lab.frames import Ip, parse
from lab.services import DNS_HEADER, decode_name
from lab.traffic import resolve
from tests.netns.scene import Scene, canary, holds, leaks, proves, tcp, udp

SERVER_NAME = "vpn.server.example"
NET_RESOLVER = (f"dhcp-option DNS {at.NET.ip4}", "redirect-gateway def1")


def ask(scene, server=at.QUBES_DNS[0], timeout=0.5):
    """Ask as app1; an empty list when there is no answer."""
    with contextlib.suppress(OSError):
        return resolve(scene.app, server=server, timeout=timeout)
    return []


def test_l20_a_route_to_the_resolver_of_qubes():
    def attack(scene):
        scene.lab.vpn.ip(
            f"route replace {at.QUBES_DNS[0]} via {at.NET.ip4} dev eth0 onlink"
        )
        ask(scene)

    proves(attack)


@pytest.mark.parametrize("kind", ["peer", "ours"])
def test_l21_another_resolver_through_the_tunnel(kind):
    with Scene(kind) as scene:
        for server in (at.OUTSIDE_DNS, at.QUBES_DNS[0], at.QUBES_DNS[1]):
            ask(scene, server)
        assert bool(scene.lab.outside_dns.asked) == (kind == "peer")
        if kind == "ours":
            assert len(scene.lab.tunnel_dns.asked) == 3


class Forwarder:
    """A resolver in the VPN qube, such as dnsmasq: asks Qubes' own."""

    def __init__(self, namespace):
        with namespace.enter():
            self.bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.bound.bind((str(at.VPN.ip4), 53))
        self.bound.settimeout(1)
        self.asking.settimeout(0.5)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with contextlib.suppress(OSError):
            query, peer = self.bound.recvfrom(512)
            self.asking.sendto(query, (str(at.QUBES_DNS[0]), 53))
            self.bound.sendto(self.asking.recv(512), peer)

    def close(self):
        self.thread.join()
        self.bound.close()
        self.asking.close()


def local_resolver(scene):
    lab = scene.lab
    lab.vpn.nft(f"""
        insert rule ip qubes dnat-dns iifgroup 2 udp dport 53 \
dnat to {at.VPN.ip4}
        add rule ip qubes custom-input iifgroup 2 udp dport 53 accept
    """)
    forwarder = Forwarder(lab.vpn)
    ask(scene)
    # and what it asks by itself
    udp(lab.vpn, at.QUBES_DNS[0], 53, b"CANARY query")
    udp(lab.vpn, at.OUTSIDE_DNS, 53, b"CANARY query")
    forwarder.close()


def test_l22_a_resolver_in_the_vpn_qube():
    proves(local_resolver, control="bare")


def asked_while_dead(scene):
    scene.kill()
    for _ in range(3):
        ask(scene, timeout=0.2)
    if scene.kind == "ours":
        scene.connect()
        assert ask(scene) == [at.WEB4]
    assert bool(scene.lab.outside_dns.asked) == (scene.kind != "ours")


def test_l23_queries_while_the_tunnel_is_down():
    proves(asked_while_dead)


def names_asked(capture):
    """The names that were asked for in clear on the uplink."""
    found = []
    for out, frame in capture.frames():
        packet = parse(frame)
        if out and isinstance(packet, Ip) and packet.destination_port == 53:
            found.append(decode_name(frame, 14 + 28 + DNS_HEADER.size)[0])
    return found


def other_names(scene):
    """A process of the VPN qube and a qube ask as well."""
    label = b"\6canary\7example\0"
    query = DNS_HEADER.pack(7, 0x0100, 1, 0, 0, 0) + label
    query += struct.pack(">HH", 1, 1)
    udp(scene.lab.vpn, at.QUBES_DNS[0], 53, query)
    udp(scene.app, at.QUBES_DNS[0], 53, query)


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l24_the_one_lookup_of_the_servers_name(kind):
    with Scene(kind, connect=False) as scene:
        scene.lab.outside_dns.zone[SERVER_NAME] = (at.SERVER4,)
        number = f"remote {at.SERVER4} "
        scene._profile = scene.profile.replace(number, f"remote {SERVER_NAME} ")
        resolver = Endpoint(at.QUBES_DNS[0], "udp", 53)
        with scene.capture(resolver) as capture:
            if kind == "ours":
                scene.appliance.connect(
                    scene.profile, "--resolver", str(resolver.address)
                )
            for _ in range(5):
                other_names(scene)
            if kind == "ours":
                scene.appliance.wait_connected()
            other_names(scene)
            report = capture.report()
        asked = names_asked(capture)
        if kind == "bare":
            assert "canary.example" in asked
            return
        assert set(asked) == {SERVER_NAME}
        assert not report.leaks
        scene.alive()


def test_l61_the_server_pushes_a_resolver_beside_the_tunnel():
    def attack(scene):
        ask(scene, at.NET.ip4)
        ask(scene)
        tcp(scene.app, at.NET.ip4, 53, wait=0.2)

    found = holds("peer", attack, push=NET_RESOLVER)
    assert any(map(canary, found)), "void: no control"
    with Scene("ours", push=NET_RESOLVER) as scene:
        assert not leaks(scene, attack)
        assert not scene.lab.outside_dns.asked
        scene.alive()
