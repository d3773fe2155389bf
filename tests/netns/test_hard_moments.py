"""What happens around a VPN qube while it works, and must open nothing."""

import contextlib
import socket
import time
from types import SimpleNamespace

import pytest

from lab import addresses as at
from lab.appliance import Appliance
from lab.background import Background
from lab.openvpn import Server, Settings
from lab.topology import HERE as LAB
from lab.traffic import fetch
from tests.netns.scene import SETTLE, Scene, canary, leaks, proves, udp, wait
from tests.netns.toy import SCRIPT

DELETE_FIREWALL = """
    delete table ip qubes-firewall
    delete table ip6 qubes-firewall
"""


class Sending(Background):
    """Datagrams of a qube that never stops, whatever its network does."""

    def __init__(self, namespace):
        super().__init__()
        self._namespace = namespace

    def _run(self):
        while not self._stop.wait(0.002):
            udp(self._namespace, at.WEB4, at.ECHO_PORT, count=1)


def a_qube_comes(scene):
    """Its first packet is there as soon as its vif is."""
    with Sending(scene.lab.app(2)):
        for _ in range(3):
            scene.lab.detach_app(2)
            time.sleep(0.05)
            scene.lab.attach_app(2)
            time.sleep(0.1)


@pytest.mark.parametrize("phase", ["locked", "connecting", "connected"])
def test_a_qube_that_comes_and_goes(phase):
    with Scene("ours", connect=phase == "connected") as scene:
        if phase == "connecting":
            scene.server.stop()
            scene.appliance.connect(scene.profile)
            scene.appliance.wait_phase("connecting")
        assert not leaks(scene, a_qube_comes)
        if phase == "connected":
            # it is served as any other
            assert fetch(scene.lab.app(2)).status == 200


def test_without_us_a_qube_that_comes_leaks():
    with Scene("bare") as scene:
        assert any(map(canary, leaks(scene, a_qube_comes)))


def qubes_firewall_comes_and_goes(scene):
    """Started, ended by a crash, started again, stopped; then once more."""
    rules = (LAB / "qubes-firewall.nft").read_text()
    with Sending(scene.app):
        for _ in range(2):
            scene.lab.vpn.nft(rules)
            time.sleep(0.1)
            # a crash leaves its tables, and the next start adds to them
            scene.lab.vpn.nft(rules)
            time.sleep(0.1)
            if scene.kind == "ours":
                scene.alive()
            # SIGTERM: it deletes what would drop
            scene.lab.vpn.nft(DELETE_FIREWALL)
            time.sleep(0.1)
            scene.kill()
            time.sleep(0.1)
            if scene.kind == "ours":
                scene.connect()


def test_qubes_firewall_is_started_stopped_and_crashes():
    proves(qubes_firewall_comes_and_goes, control="bare")


class Wire:
    """Every IPv4 packet between the net qube and the internet."""

    def __init__(self, namespace):
        with namespace.enter():
            self._sock = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)
            )
        self._sock.bind(("isp0", 0))
        self._sock.setblocking(False)

    def frames(self):
        """What has passed since the last time."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self._sock.recv(2048)
                if frame[12:14] == b"\x08\x00":
                    found.append(frame)
        return found

    def close(self):
        self._sock.close()

    def in_clear(self):
        """What is not between the first VPN qube and its own server."""
        server = at.SERVER4.packed
        return [
            frame
            for frame in self.frames()
            if server not in (frame[26:30], frame[30:34]) or b"CANARY" in frame
        ]


def fetches(namespace):
    with contextlib.suppress(OSError):
        return fetch(namespace, timeout=2).status == 200
    return False


@pytest.fixture
def wire(lab):
    with contextlib.closing(Wire(lab.internet)) as wire:
        yield wire


@pytest.fixture
def first(lab):
    """The net qube is a VPN qube itself: the first of a chain."""
    vpn = SimpleNamespace(vpn=lab.net, scratch=lab.scratch)
    appliance = Appliance(vpn)
    yield appliance
    appliance.stop()


def test_two_vpn_qubes_in_a_chain(lab, first, wire):
    """What the second sends goes into the first's tunnel, or nowhere."""
    outer = Settings(push=("redirect-gateway def1",))
    inner = Settings(
        address=at.SECOND_SERVER4,
        tunnel=1,
        push=("redirect-gateway def1", f"dhcp-option DNS {at.TUNNEL_DNS}"),
        extra=("keepalive 1 4",),
    )
    control = str(lab.scratch / "first.sock")
    # the control: nothing is locked yet
    udp(lab.app(1), at.WEB4, at.ECHO_PORT)
    wait(wire.in_clear, "a packet in clear")
    lab.net.run([SCRIPT, "apply", "--uplink", "wan0"])

    def first_connects():
        words = ("--uplink", "wan0", "--control", control)
        first.connect(one.client_profile(), *words).wait_connected()

    with (
        Server(lab.internet, lab.scratch, outer) as one,
        Server(lab.internet, lab.scratch, inner) as two,
        Appliance(lab).lock() as second,
        Sending(lab.app(1)),
    ):
        # the second waits for the first
        second.connect(two.client_profile()).wait_phase("connecting")
        wire.frames()
        time.sleep(0.5)
        assert not wire.frames()
        first_connects()
        second.wait_connected()
        # the web sees the second's tunnel
        assert fetch(lab.app(1)).seen.packed[:3] == inner.network4.packed[:3]
        assert not wire.in_clear()
        # the first ends under the second's traffic, and comes back
        first.kill_all()
        time.sleep(1)
        assert not wire.in_clear()
        first_connects()
        wait(lambda: fetches(lab.app(1)), "traffic again")
        # the second ends: its qubes are not the first's
        second.kill_all()
        time.sleep(SETTLE)
        wire.frames()
        time.sleep(0.5)
        assert not wire.in_clear()
        assert not fetches(lab.app(1))
