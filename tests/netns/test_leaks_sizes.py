"""L44 to L47, L62: fragments, segments, and what lengths say."""

import contextlib
import os
import random
import socket
import struct
import time

import pytest

from lab import addresses as at
from lab.frames import Ip, parse
from lab.traffic import Flood, download, fetch
from tests.netns.scene import Scene, icmp_packet, ip4, leaks, proves

IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 10, 0, 2
NARROW = {"extra": ("tun-mtu 1400",)}
IP_HEADER, TCP_HEADER = 20, 20


def outer_packets(capture):
    return [
        (packet, frame)
        for out, frame in capture.frames()
        if out
        and isinstance(packet := parse(frame), Ip)
        and packet.destination == at.SERVER4
    ]


def test_l44_the_tunnels_own_packets_are_not_cut():
    with Scene("bare") as scene:
        with scene.capture() as capture, scene.lab.vpn.enter():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sock:
                sock.setsockopt(
                    socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT
                )
                sock.sendto(bytes(3000), (str(at.SERVER4), at.VPN_PORT))
            time.sleep(0.1)
            capture.stop()
        cut = [packet for packet, _ in outer_packets(capture)]
        assert [p for p in cut if p.fragment], "void: no fragment is seen"
    with Scene("ours") as scene:
        with scene.capture() as capture:
            download(scene.app, 300_000)
            fetch(scene.app, upload=bytes(300_000))
            report = capture.report()
        sent = outer_packets(capture)
        assert len(sent) > 10
        assert not [packet for packet, _ in sent if packet.fragment]
        dont_fragment = 0x40
        assert all(frame[20] & dont_fragment for _, frame in sent)
        assert not report.leaks


def large_pings(scene):
    """Echo requests in three fragments, and a UDP one without its ports."""
    with scene.app.enter():
        raw = socket.socket(
            socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP
        )
    with raw:
        raw.settimeout(0.5)
        whole = icmp_packet(
            *("0.0.0.0", at.WEB4, 8, 0, b"\0\1\0\1", b"CANARY" * 700)
        )
        for _ in range(3):
            raw.sendto(whole[20:], (str(at.WEB4), 0))
    with scene.app.enter():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        last = bytearray(ip4(at.APPS[0].ip4, at.WEB4, 17, b"CANARY last"))
        last[6:8] = struct.pack(">H", 100)  # its offset
        raw.sendto(bytes(last), (str(at.WEB4), 0))


def test_l45_fragments_of_a_qube():
    proves(large_pings, control="bare")


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l46_segments_fit_both_ways(kind):
    with Scene(kind, **NARROW) as scene:
        with scene.app.enter():
            sock = socket.socket()
        with sock:
            sock.settimeout(5)
            sock.connect((str(at.WEB4), at.WEB_PORT))
            size = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        fits = size <= 1400 - IP_HEADER - TCP_HEADER
        assert fits == (kind == "ours")


def too_large(scene):
    """A packet that may not be cut; what the qube is told."""
    with scene.app.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    told = None
    with sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sock.connect((str(at.WEB4), at.ECHO_PORT))
        for _ in range(5):
            try:
                sock.send(b"CANARY" * 240)
            except OSError as error:
                told = error
            time.sleep(0.05)
    if scene.kind == "ours":
        assert told is not None, "the qube is not told the size"
        assert told.errno == 90, os.strerror(told.errno)  # EMSGSIZE


def test_l47_only_the_qube_is_told_what_fits():
    with Scene("bare", **NARROW) as scene:
        assert leaks(scene, too_large)
    with Scene("ours", **NARROW) as scene:
        assert not leaks(scene, too_large)
        scene.alive()


def lengths(scene, body, count=10):
    """The lengths of the tunnel's packets that carry a datagram each."""
    with scene.app.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def found():
        # the search for the path's size sends packets as long as the uplink
        # carries, whatever a qube sends
        sizes = [len(frame) for _, frame in outer_packets(capture)]
        return sorted(size for size in sizes if size < PROBE_MIN)

    with sock, scene.capture() as capture:
        # a port that does not answer: only what goes up is counted
        for _ in range(count):
            sock.sendto(body, (str(at.WEB4), 4444))
            time.sleep(0.01)
        limit = time.monotonic() + PATIENCE
        while len(found()) < count and time.monotonic() < limit:
            time.sleep(0.05)
        capture.stop()
    return found()[-count // 2 :]


PATIENCE = 2.0
PROBE_MIN = 1200
RANDOM = random.Random(62).randbytes(1000)
SAME = b"A" * 1000
COMPRESS = ("allow-compression yes", "compress lz4")


@pytest.mark.parametrize("pushed", ["compress lz4", "comp-lzo yes", ""])
def test_l62_a_length_says_nothing_about_what_is_in_it(pushed):
    if not pushed:
        fields = {"extra": COMPRESS, "client_extra": COMPRESS}
        with Scene("peer", **fields) as scene:
            assert max(lengths(scene, SAME)) < min(lengths(scene, RANDOM))
    push = ("redirect-gateway def1", *([pushed] if pushed else []))
    with Scene("ours", push=push, connect=False) as scene:
        scene.appliance.connect(scene.profile)
        with contextlib.suppress(Exception):
            scene.appliance.wait_connected(timeout=5)
        same, other = lengths(scene, SAME), lengths(scene, RANDOM)
        assert same == other
        if not pushed:
            assert min(same) > len(SAME)
            with Flood(scene.app) as flood:
                flood.wait_echoes(3)
