"""What arrives, from the uplink or out of the tunnel, finds nothing open.

Each attack is first made on a qube with the tunnel and no rules at all, where
it has to succeed.
"""

import contextlib
import select
import socket
import struct
import time

import pytest

from lab import addresses as at
from lab.traffic import internet_checksum, ping
from tests.netns.toy import ALLOWED, TUNNEL_ADDRESS, Rig, lock

UPLINK = "vif3.0"  # the VPN qube's eth0, on the net qube's side
IPPROTO = {"icmp": 1, "tcp": 6, "udp": 17}
PORT = 40001


@contextlib.contextmanager
def tunnel(lab, *, locked):
    """A tunnel that works, with the lock, or with no rule of anybody's."""
    if locked:
        lock(lab)
    else:
        lab.vpn.nft("flush ruleset")
        lab.vpn.nft("""
            table ip nat {
                chain c {
                    type nat hook postrouting priority srcnat;
                    oifname { eth0, tun-vpn } masquerade
                }
            }
        """)
    with Rig(lab, *(() if locked else ("--unlocked",))) as rig:
        yield rig.connect()


def packet(protocol, source, to, payload, ttl=64):
    size = 20 + len(payload)
    number = IPPROTO[protocol]

    def header(checksum):
        fixed = (0x45, 0, size, 1, 0, ttl, number, checksum)
        addresses = source.packed + to.packed
        return struct.pack(">BBHHHBBH", *fixed) + addresses

    return header(internet_checksum(header(0))) + payload


def udp(source_port, port, payload=b"CANARY INJECTED"):
    return (
        struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload
    )


def echo_request():
    def message(checksum):
        return struct.pack(">BBHHH", 8, 0, checksum, 7, 1) + b"CANARY"

    return message(internet_checksum(message(0)))


def syn(source, to):
    """A TCP SYN to a port where nobody listens."""

    def segment(checksum):
        return struct.pack(">HHIIBBHHH", 1, 9, 0, 0, 0x50, 2, 1000, checksum, 0)

    pseudo = source.packed + to.packed + struct.pack(">HH", 6, 20)
    return segment(internet_checksum(pseudo + segment(0)))


def inject(lab, ip_packet, count=3):
    """Write frames on the uplink, to the MAC of the VPN qube."""
    with lab.net.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        raw.bind((UPLINK, 0x0800))
        macs = at.VPN.mac + at.BACKEND_MAC
        header = bytes.fromhex(macs.replace(":", "")) + b"\x08\x00"
        for _ in range(count):
            raw.send(header + ip_packet)


def answers(lab, attack):
    """How many frames left that are not the tunnel's own."""
    with lab.capture(ALLOWED) as capture:
        attack()
        time.sleep(0.3)
    return len(capture.report().outside)


def both_ways(lab, attack):
    """The number of answers without us, and with us."""
    with tunnel(lab, locked=False) as rig:
        # as main is where the tunnel is not meant for the qube itself
        lab.vpn.run(["ip", "route", "del", "128.0.0.0/1"])
        control = answers(lab, lambda: attack(rig))
    with tunnel(lab, locked=True) as rig:
        return control, answers(lab, lambda: attack(rig))


# --- from the uplink


@pytest.mark.parametrize("protocol", ["icmp", "tcp"])
def test_the_tunnels_address_answers_nobody_on_the_uplink(lab, protocol):
    """CVE-2019-14899."""
    payload = {
        "icmp": echo_request(),
        "tcp": syn(at.WEB4, TUNNEL_ADDRESS),
    }[protocol]
    probe = packet(protocol, at.WEB4, TUNNEL_ADDRESS, payload)
    control, ours = both_ways(lab, lambda rig: inject(lab, probe))
    assert control > 0
    assert ours == 0


def test_no_arp_answer_names_the_tunnels_address(lab):
    request = (
        struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
        + bytes.fromhex(at.BACKEND_MAC.replace(":", ""))
        + at.NET.ip4.packed
        + bytes(6)
        + TUNNEL_ADDRESS.packed
    )
    macs = "ffffffffffff" + at.BACKEND_MAC.replace(":", "")
    frame = bytes.fromhex(macs) + b"\x08\x06" + request

    def ask(_):
        with lab.net.enter():
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with raw:
            raw.bind((UPLINK, 0x0806))
            raw.send(frame)

    control, ours = both_ways(lab, ask)
    assert control > 0
    assert ours == 0


@pytest.mark.parametrize("locked", [False, True], ids=["control", "locked"])
def test_nothing_is_injected_into_a_flow_of_a_qube(lab, locked):
    """A forged answer on the uplink would be rewritten back to the qube."""
    with tunnel(lab, locked=locked), lab.app(1).enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.bind(("", PORT))
            sock.connect((str(at.WEB4), at.ECHO_PORT))
            sock.settimeout(10)
            sock.send(b"CANARY x 1")
            assert sock.recv(100)
            forged = udp(at.ECHO_PORT, PORT)
            inject(lab, packet("udp", at.WEB4, TUNNEL_ADDRESS, forged))
            arrived = bool(select.select([sock], [], [], 0.5)[0])
    assert arrived == (not locked)


# --- out of the tunnel


def from_server(lab, ip_packet):
    """Have the server's side send a packet into the tunnel."""
    with lab.internet.enter():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    lab.internet.ip("route replace 10.137.0.0/24 dev toy0")
    with raw:
        to = socket.inet_ntoa(ip_packet[16:20])
        for _ in range(3):
            raw.sendto(ip_packet, (to, 0))


@pytest.mark.parametrize(
    "ip_packet",
    [
        packet("udp", at.WEB4, TUNNEL_ADDRESS, udp(1, 9)),
        packet("tcp", at.WEB4, TUNNEL_ADDRESS, syn(at.WEB4, TUNNEL_ADDRESS)),
        packet("udp", at.WEB4, at.NET.ip4, udp(1, 7)),
        packet("udp", at.WEB4, at.APPS[0].ip4, udp(1, 7), ttl=1),
    ],
    ids=["unreachable", "reset", "hairpin", "expired"],
)
def test_a_probe_out_of_the_tunnel_gets_no_answer(lab, ip_packet):
    """The kernel would answer by its default route: in clear."""
    control, ours = both_ways(lab, lambda rig: from_server(lab, ip_packet))
    assert control > 0
    assert ours == 0


# --- between qubes


@pytest.mark.parametrize("locked", [False, True], ids=["control", "locked"])
def test_qubes_do_not_reach_each_other(lab, locked):
    with tunnel(lab, locked=locked):
        reached = ping(lab.app(1), to=at.APPS[1].ip4, count=2, wait=0.5)
    assert bool(reached) == (not locked)
