"""A flood from strangers, at a tunnel that carries traffic meanwhile.

From a wrong source nothing reaches the engine: the socket is connected. With
the server's address and port it does, is counted, and leaves nothing behind.
"""

import socket
import struct
import time
from random import Random

import pytest

from lab import Lab
from lab import addresses as at
from lab.appliance import Appliance
from lab.background import Background
from lab.openvpn import Server, Settings
from lab.topology import UPLINK_DOMID
from lab.traffic import Flood, internet_checksum

RATE = 20_000
SECONDS = 4.0
PAYLOADS = (
    # data with a wrong tag; control without the key; noise
    lambda dice: b"\x48\0\0\0" + dice.randbytes(60),
    lambda dice: b"\x20" + dice.randbytes(60),
    lambda dice: dice.randbytes(64),
)

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def link_port(lab):
    """Give the local port of the socket to the server."""
    listing = lab.vpn.run(["cat", "/proc/net/udp"]).stdout.splitlines()[1:]
    for line in listing:
        _, local, remote, *_ = line.split()
        if remote.endswith(f":{at.VPN_PORT:04X}"):
            return int(local.rpartition(":")[2], 16)
    raise AssertionError(listing)


def datagram(source, port, payload):
    udp = struct.pack("!HHHH", at.VPN_PORT, port, 8 + len(payload), 0)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0),
        *(source.packed, at.VPN.ip4.packed),
    )
    head = head[:10] + internet_checksum(head).to_bytes(2) + head[12:]
    return frame_header() + head + udp + payload


def frame_header():
    """The net qube's vif and the VPN qube's eth0: past every filter there."""
    there, here = (
        bytes.fromhex(mac.replace(":", ""))
        for mac in (at.VPN.mac, at.BACKEND_MAC)
    )
    return there + here + b"\x08\x00"


class Strangers(Background):
    """Sends RATE datagrams a second from the net qube, from enter to exit."""

    def __init__(self, lab, source):
        super().__init__()
        dice = Random(1)
        port = link_port(lab)
        self._packets = [
            datagram(source, port, PAYLOADS[n % 3](dice)) for n in range(300)
        ]
        with lab.net.enter():
            self._raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._raw.bind((f"vif{UPLINK_DOMID}.0", 0))
        self.sent = 0

    def stop(self):
        super().stop()
        self._raw.close()

    def _run(self):
        begin = time.monotonic()
        while not self._stop.is_set():
            due = int((time.monotonic() - begin) * RATE)
            for _ in range(min(due - self.sent, 400)):
                self._raw.send(self._packets[self.sent % 300])
                self.sent += 1
            time.sleep(0.002)


def drops(appliance):
    return sum(dict(appliance.status()["drops"]).values())


def share(flood, seconds):
    """Give how much of what was sent meanwhile was answered."""
    sent, answered = flood.sent, len(flood.echoes)
    time.sleep(seconds)
    return (len(flood.echoes) - answered) / (flood.sent - sent)


@pytest.fixture
def tunnel():
    with Lab() as lab:
        server = Server(lab.internet, lab.scratch, Settings())
        server.start()
        appliance = Appliance(lab).lock()
        appliance.connect(server.client_profile()).wait_connected()
        with Flood(lab.app(1), rate=200) as flood:
            flood.wait_echoes(20)
            yield lab, appliance, flood
        appliance.stop()
        server.stop()


def test_a_wrong_source_does_not_reach_the_engine(tunnel):
    lab, appliance, flood = tunnel
    before = drops(appliance)
    with Strangers(lab, at.NET.ip4) as strangers:
        assert share(flood, SECONDS) > 0.5
    assert strangers.sent > 10_000
    time.sleep(1.2)  # the next report
    assert drops(appliance) == before


def test_the_servers_own_address_is_not_enough(tunnel):
    lab, appliance, flood = tunnel
    before = drops(appliance)
    memory = anonymous(appliance.pid("engine"))
    with Strangers(lab, at.SERVER4) as strangers:
        assert share(flood, SECONDS) > 0.5
    assert strangers.sent > 10_000
    time.sleep(1.2)
    # the control of the test above: these do arrive
    assert drops(appliance) - before > strangers.sent / 10
    assert appliance.log().count("connected ") == 1
    assert appliance.status()["phase"] == "connected"
    assert anonymous(appliance.pid("engine")) - memory < 2048


def anonymous(pid):
    """Give the KiB that a process has for itself."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    raise AssertionError(pid)
