"""Whatever happens to the client: nothing of a qube leaves in clear.

Each case runs under constant traffic of both app qubes, and ends with the
tunnel carrying it again; a network that is always closed would pass nothing.
"""

import signal
import time
from ipaddress import IPv4Address

import pytest

from lab import Lab
from lab.appliance import Appliance
from lab.openvpn import Server, Settings
from lab.traffic import Flood, resolve

SILENCE = 5.0
RECOVERY = 40


@pytest.fixture
def world():
    """A lab, a server, a connected client, two floods and a capture."""
    with Lab() as lab:
        server = Server(lab.internet, lab.scratch, Settings())
        server.start()
        appliance = Appliance(lab).lock()
        with lab.capture(server.settings.endpoint) as capture:
            appliance.connect(server.client_profile()).wait_connected()
            with (
                Flood(lab.app(1), rate=50) as one,
                Flood(lab.app(2), rate=50) as two,
            ):
                one.wait_echoes(5)
                two.wait_echoes(5)
                yield World(lab, server, appliance, capture, (one, two))
            appliance.stop()
        server.stop()


class World:
    def __init__(self, lab, server, appliance, capture, floods):
        self.lab = lab
        self.server = server
        self.appliance = appliance
        self.capture = capture
        self.floods = floods

    def recovered(self):
        for flood in self.floods:
            flood.wait_echoes(10, timeout=RECOVERY)

    def stopped(self):
        """Wait until echoes cease: the case really took the tunnel down."""
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            before = [len(flood.echoes) for flood in self.floods]
            time.sleep(0.7)
            if before == [len(flood.echoes) for flood in self.floods]:
                return
        raise AssertionError("the tunnel never went down")

    def nothing_leaked(self):
        self.floods[0].wait_sent(25)
        report = self.capture.report()
        assert report.tunnel >= 10
        assert not report.leaks, str(report)


def test_the_same_traffic_leaks_when_nothing_is_locked():
    """The control of every test here: without us it leaves in clear."""
    with Lab() as lab, lab.capture() as capture, Flood(lab.app(1)) as flood:
        flood.wait_echoes(20)
        assert capture.report().leaks


@pytest.mark.parametrize("role", ["agent", "engine", "keeper"])
def test_a_killed_process(world, role):
    world.appliance.signal(role, signal.SIGKILL)
    if role == "agent":
        world.appliance.client.wait(10)
        world.stopped()
        world.nothing_leaked()
        world.appliance.connect(world.server.client_profile())
    else:
        world.appliance.wait_connected(RECOVERY, count=2)
    world.recovered()
    world.nothing_leaked()


def test_all_processes_killed_at_once(world):
    world.appliance.kill_all()
    world.stopped()
    world.nothing_leaked()
    world.appliance.connect(world.server.client_profile()).wait_connected()
    world.recovered()
    world.nothing_leaked()


@pytest.mark.parametrize("role", ["engine", "keeper"])
def test_a_process_that_hangs(world, role):
    """SIGSTOP: closed within the heartbeat, and replaced."""
    world.appliance.signal(role, signal.SIGSTOP)
    world.appliance.wait_connected(RECOVERY, count=2)
    world.recovered()
    world.nothing_leaked()


def test_a_polite_stop_keeps_the_network_closed(world):
    world.appliance.signal("agent", signal.SIGTERM)
    assert world.appliance.exit_status() == 0
    world.stopped()
    world.nothing_leaked()


def test_the_server_dies_and_comes_back(world):
    world.server.signal(signal.SIGKILL)
    world.stopped()
    world.server.stop()
    world.server.start()
    world.recovered()
    world.nothing_leaked()


def test_the_uplink_goes_down_and_up(world):
    world.lab.vpn.ip("link set eth0 down")
    world.stopped()
    world.lab.vpn.ip("""
        link set eth0 up
        route replace 10.137.0.6 dev eth0
        route replace default via 10.137.0.6 dev eth0 onlink
    """)
    world.recovered()
    world.nothing_leaked()


def test_another_net_qube_with_another_address(world):
    world.lab.unplug_uplink()
    world.stopped()
    world.lab.plug_uplink(IPv4Address("10.137.0.77"))
    world.recovered()
    # the oracle knows the first address of the uplink only
    report = world.capture.report()
    assert not report.canaries, str(report)
    assert not [leak for leak in report.outside if leak.why == "app-address"]


def test_names_go_to_the_tunnels_resolver_or_nowhere(world):
    assert resolve(world.lab.app(1))
    assert world.lab.tunnel_dns.asked
    world.appliance.signal("agent", signal.SIGTERM)
    world.appliance.exit_status()
    with pytest.raises(OSError, match=r".*"):
        resolve(world.lab.app(1), timeout=1)
    assert not world.lab.outside_dns.asked
    world.nothing_leaked()
