"""The whole product meets a peer that does each thing on the wire.

A server with the right certificate that says and sends what it likes, and an
upstream that repeats and invents packets, under traffic of an app qube. After
each: nothing left in clear, no process died, none has grown, and the tunnel
carries again.
"""

import contextlib
import os
import socket
import struct
import threading
import time
from itertools import pairwise

import pytest

from lab import Lab
from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Settings, Wrap
from lab.topology import UPLINK_DOMID
from lab.traffic import Flood, internet_checksum
from tests.hostile.peer import HostileServer
from tests.hostile.test_strangers import (
    anonymous,
    datagram,
    drops,
    frame_header,
    link_port,
)

pytestmark = [pytest.mark.netns, pytest.mark.slow]

# A new session begins at once, and one that stalls ends soon.
IMPATIENT = ("connect-retry 1 1", "hand-window 3", "server-poll-timeout 3")
SETTINGS = Settings(wrap=Wrap.PLAIN, client_extra=IMPATIENT)
RECOVERY = 40
# The most routes that there can be take some MiB (9 with Python 3.13 and nft
# 1.1), and keep it.
GROWTH_KIB = 12 * 1024
ROUND_KIB = 1024
ESCAPES = b"\x1b[2J\x1b]0;x\x07\r\n<b>\xff"
ETH_P_ALL = 3


class World:
    def __init__(self, lab):
        self.lab = lab
        self.server = HostileServer(lab.internet, lab.scratch, SETTINGS)
        self.server.start()
        self.appliance = Appliance(lab).lock()
        self.connect()
        self.flood = Flood(lab.app(1), rate=50).start()
        self.recovered()
        self.memory = self.used()

    def connect(self):
        profile = self.server.client_profile()
        self.appliance.connect(profile).wait_connected()

    def used(self):
        return {
            role: anonymous(self.appliance.pid(role))
            for role in ("keeper", "engine")
        }

    def recovered(self):
        self.flood.wait_echoes(20, timeout=RECOVERY)

    def phase(self):
        return self.appliance.status()["phase"]

    def down(self, reason=""):
        """Wait until it is closed; the status says why."""
        self.appliance.wait(lambda: self.phase() != "connected", 20, "end")
        if reason:
            self.appliance.wait(
                lambda: reason in str(self.appliance.status()), 20, reason
            )

    def close(self):
        self.flood.stop()
        self.appliance.stop()
        self.server.stop()


@pytest.fixture(scope="module")
def world():
    with Lab() as lab:
        made = World(lab)
        yield made
        made.close()


@pytest.fixture(autouse=True)
def lawful(world):
    """What holds after each test, whatever was done."""
    keeper = world.appliance.pid("keeper")
    with world.lab.capture(SETTINGS.endpoint) as capture:
        yield
        world.server.order(reply=None, mute=None)
        if world.appliance.client.poll() is not None:
            world.connect()
        world.recovered()
        report = capture.report()
    assert not report.leaks, str(report)
    assert report.tunnel >= 20
    assert "Traceback" not in world.appliance.log()
    assert "ended unexpectedly" not in world.appliance.log()
    log = world.appliance.log_file.read_bytes()
    assert all(byte == 10 or 32 <= byte < 127 for byte in log)
    if world.appliance.pid("keeper") == keeper:
        for role, used in world.used().items():
            assert used - world.memory[role] < GROWTH_KIB, role


def again(world, **order):
    """Have the client come again, to a server with these orders."""
    count = world.appliance.log().count("connected ")
    world.server.order(say=[b"RESTART\0"], **order)
    return count


def push(*options):
    return b"PUSH_REPLY," + b",".join(options) + b"\0"


def more(options):
    """Settings after which more are said to come."""
    return push(*options, b"push-continuation 2")


# --- without any key


def test_p18_resets_without_a_key_on_a_plain_channel(world):
    connected = world.appliance.log().count("connected ")
    for _ in range(20):
        world.server.order(
            send=[
                bytes([first]) + os.urandom(8) + b"\0\0\0\0\0"
                for first in (0x40, 0x38, 0x50, 0x18, 0x20, 0x28)
                for _ in range(20)
            ]
        )
        time.sleep(0.05)
    world.recovered()
    assert world.appliance.log().count("connected ") == connected


def test_p53_every_packet_of_the_server_comes_again_and_again(world):
    with world.lab.net.enter():
        raw = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
        )
    raw.bind((f"vif{UPLINK_DOMID}.0", ETH_P_ALL))
    raw.settimeout(1)
    server, repeated = at.SERVER4.packed, 0
    begun, before = drops(world.appliance), len(world.flood.echoes)
    with raw:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            frame = raw.recv(1 << 16)
            if frame[26:30] == server and repeated < 2000:
                # the sum may be left to a card that there is not
                frame = frame[:40] + b"\0\0" + frame[42:]
                for _ in range(5):
                    raw.send(frame)
                    repeated += 1
    time.sleep(1.2)
    numbers = [echo.number for echo in world.flood.echoes[before:]]
    assert repeated > 200
    assert len(numbers) == len(set(numbers)), "an inner packet came twice"
    assert drops(world.appliance) - begun > repeated / 4


def icmp(kind, code, port, more=0):
    """A frame that says that a packet of the tunnel did not arrive."""
    quoted = struct.pack(
        "!BBHHHBBH4s4sHHHH",
        *(0x45, 0, 60, 0, 0, 64, 17, 0),
        *(at.VPN.ip4.packed, at.SERVER4.packed, port, at.VPN_PORT, 40, 0),
    )
    body = struct.pack("!BBHI", kind, code, 0, more) + quoted
    body = body[:2] + internet_checksum(body).to_bytes(2) + body[4:]
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(body), 0, 0, 64, 1, 0),
        *(at.SERVER4.packed, at.VPN.ip4.packed),
    )
    head = head[:10] + internet_checksum(head).to_bytes(2) + head[12:]
    return frame_header() + head + body


def test_p73_errors_by_icmp_that_are_forged(world):
    connected = world.appliance.log().count("connected ")
    port = link_port(world.lab)
    with world.lab.net.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind((f"vif{UPLINK_DOMID}.0", 0))
    with raw:
        for _ in range(300):
            for kind, code, more in ((3, 3, 0), (3, 4, 552), (3, 1, 0)):
                raw.send(icmp(kind, code, port, more))
            raw.send(datagram(at.SERVER4, port, b""))
    world.recovered()
    route = world.lab.vpn.run(["ip", "route", "get", str(at.SERVER4)]).stdout
    assert "mtu" not in route
    assert world.appliance.log().count("connected ") == connected


# --- with the server's certificate


@pytest.mark.parametrize("count", [0, 2, 4])
def test_p46_a_handshake_that_stalls(world, count):
    again(world, mute=count)
    world.down("QV-")
    for _ in range(5):
        time.sleep(0.5)
        assert world.phase() != "connected"


REPLIES = (
    [push(b"route 1.2.3.4 255.255.255.255," * 9) + b"x" * 60_000],
    [push(b"route 1.2.3.4", b"push-continuation 2")] * 200,
    [push(b"ifconfig " + b"9" * 900)],
    [push(b"ifconfig 10.8.0.2 255.255.255.0", b"cipher none")],
    [b"PUSH_REPLY\0"],
    [b"x" * 1000 + b"\0"] * 100,
    [ESCAPES + b"\0", b"PUSH_REPLY,dns search-domains a\nb\r\n\0"],
    [b"\0" * 4000],
)


def test_p23_settings_that_are_none(world):
    again(world, reply=REPLIES[0])
    world.down()
    for reply in REPLIES:
        before = world.appliance.log().count("\nconfigure ")
        world.server.order(reply=reply)
        world.appliance.wait_log("\nconfigure ", count=before + 1)
        time.sleep(0.5)
        assert world.phase() != "connected"


def test_p60_options_that_would_open_the_network(world):
    hostile = map(
        str.encode,
        (
            *("route 198.51.100.0 255.255.255.0 net_gateway", "block-local"),
            *("route 0.0.0.0 0.0.0.0 10.137.0.6", "route-gateway 10.137.0.6"),
            *("dhcp-option DNS 10.137.0.6", "dhcp-option DNS 10.139.1.1"),
            *("script-security 3", "up /bin/sh", "setenv PATH /tmp"),
            *("redirect-private", "route-nopull", "remote 203.0.113.9"),
            *(
                f"dhcp-option DOMAIN {name}"
                for name in ("$(id)", "`id`", "a;b")
            ),
        ),
    )
    count = again(world, reply=[more(hostile), b""])
    world.appliance.wait_connected(RECOVERY, count=count + 1)
    world.recovered()
    assert len(world.appliance.status()["refused"]) >= 8


def test_p29_a_flood_of_routes(world):
    routes = [
        b"route 100.%d.%d.0 255.255.255.0" % divmod(number, 256)
        for number in range(1200)
    ]
    parts = [more(routes[at : at + 24]) for at in range(0, 1200, 24)]
    used = []
    for _ in range(4):
        count = again(world, reply=[*parts, b""])
        world.appliance.wait_connected(RECOVERY, count=count + 1)
        world.recovered()
        used.append(sum(world.used().values()))
    # what is kept each time is in each round; a fuller heap only in some
    grown = [after - before for before, after in pairwise(used)]
    assert min(grown) < ROUND_KIB, used
    table = world.lab.vpn.run(["ip", "-4", "route", "show", "table", "all"])
    assert 1000 < table.stdout.count("\n") < 1100


def test_p42_waiting_without_end(world):
    again(world, reply=[b"AUTH_PENDING,timeout 4294967295\0"])
    world.down()
    for _ in range(40):
        world.server.order(say=[b"AUTH_PENDING,timeout 999999\0"] * 50)
        time.sleep(0.1)
    assert world.phase() != "connected"
    world.server.order(say=[b"RESTART\0"], reply=None)


def test_p21_messages_with_escape_sequences(world):
    for head in (b"INFO,", b"INFO_PRE,WEB_AUTH::", b"X,", b"CR_RESPONSE,"):
        world.server.order(say=[head + ESCAPES * 9 + b"\0"] * 50)
    world.recovered()
    shown = str(world.appliance.status())
    assert shown.isprintable()
    assert "\\x1b" not in shown


def test_p40_a_refusal_with_escape_sequences(world):
    again(world, reply=[b"AUTH_FAILED," + ESCAPES[:-6] + b"no\0"])
    time.sleep(3)
    again(world, reply=[b"AUTH_FAILED,you \xc2\x9b31m may not\0"])
    status = world.appliance.exit_status()
    assert status == os.EX_NOPERM
    assert "may not" in world.appliance.log()


# --- streams that lie


LIES = (
    b"\0\0",
    b"\xff\xff" + b"x" * 4000,
    b"\0\x0e\x40" + b"12345678" + b"\0\0\0\0\0" + b"\0\0",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\0\x05",
    b"",
)


class Liar:
    """A TCP server: what it says to each connection in turn."""

    def __init__(self, lab):
        with lab.internet.enter():
            self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((str(at.SERVER4), at.VPN_PORT + 1))
        self._sock.listen()
        self.met = 0
        self._kept = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._sock.accept()
                lie = LIES[self.met % len(LIES)]
                self.met += 1
                for at_ in range(len(lie)):
                    stream.send(lie[at_ : at_ + 1])
                # every other one neither says more nor ends
                if self.met % 2:
                    stream.close()
                self._kept.append(stream)

    def close(self):
        self._sock.shutdown(socket.SHUT_RDWR)
        for stream in (self._sock, *self._kept):
            stream.close()


def test_p71_a_stream_that_lies():
    with Lab() as lab, Flood(lab.app(1), rate=50):
        liar = Liar(lab)
        settings = Settings(
            proto="tcp", port=at.VPN_PORT + 1, client_extra=IMPATIENT
        )
        server = HostileServer(lab.internet, lab.scratch, settings)
        appliance = Appliance(lab).lock()
        with lab.capture(settings.endpoint) as capture:
            appliance.connect(server.client_profile())
            appliance.wait(lambda: liar.met > len(LIES), 60, "all lies")
            engine = appliance.pid("engine")
            with open(f"/proc/{engine}/stat", encoding="ascii") as stat:
                fields = stat.read().rpartition(")")[2].split()
            assert appliance.status()["phase"] != "connected"
            # user and system time, in ticks: nothing spins
            assert (int(fields[11]) + int(fields[12])) / 100 < 5
            assert "Traceback" not in appliance.log()
        appliance.stop()
        liar.close()
    assert not capture.report().leaks
