"""What is checked in the machine: functions without arguments, in order.

Each stands on a lab of its own. They are called by tests.kernel.guest and
named by tests/kernel/test_machine.py.
"""

import contextlib
import json
import re
import signal
import socket
import statistics
import time
from pathlib import Path

from lab import Lab, openvpn27
from lab import addresses as at
from lab.appliance import Appliance
from lab.namespace import LabError
from lab.openvpn import Client, Server, Settings
from lab.services import EchoServer
from lab.traffic import Flood, download, fetch, ping, resolve

DEVICE = "ovpn-vpn"
# Everything is some ten times slower than on a real machine.
PATIENCE = 90
BULK = 2_000_000
ROUNDS = 5
SECONDS = 3


class Dco:
    """For openvpn's programs: version 2.7, with the driver."""

    program = openvpn27.command()

    def config(self):
        return super().config().replace("disable-dco\n", "")


class DcoServer(Dco, Server):
    """OpenVPN 2.7, whose data plane is the driver too."""


class DcoClient(Dco, Client):
    """OpenVPN 2.7 as the client, with the driver."""


@contextlib.contextmanager
def connected(*words, server=Server, profile="", **fields):
    """A lab, its server, and our client connected to it, all captured."""
    with Lab() as lab:
        peer = server(lab.internet, lab.scratch, Settings(**fields))
        with peer, Appliance(lab).lock() as appliance:
            with lab.capture(peer.settings.endpoint) as capture:
                appliance.connect(peer.client_profile() + profile, *words)
                appliance.wait_connected(PATIENCE)
                try:
                    yield lab, peer, appliance
                except BaseException:
                    print(appliance.log(), peer.log[-3000:], flush=True)
                    raise
            report = capture.report()
            assert not report.leaks, str(report)
            assert report.tunnel > 10, str(report)


def link(lab, device=DEVICE):
    """The device as ip(8) describes it; None when it is not there."""
    done = lab.vpn.run(["ip", "-j", "-d", "link"])
    found = {each["ifname"]: each for each in json.loads(done.stdout)}
    return found.get(device)


def assert_kernel(appliance):
    status = appliance.status()
    assert status["plane"] == {"name": "kernel", "why": ""}, status
    assert status["device"] == DEVICE
    found = link(appliance.lab)
    assert found["linkinfo"]["info_kind"] == "ovpn", found
    assert "LOWER_UP" in found["flags"], found
    # no userspace plane stands by
    assert link(appliance.lab, "tun-vpn") is None
    return status


def switches(pid):
    """How often a process has waited so far: once for each wakeup."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"voluntary_ctxt_switches:\s+(\d+)", text)[1])


def big_datagram_arrives(lab):
    """Send a UDP datagram that is too big for the tunnel; was it heard?"""
    echo = next(s for s in lab._services if isinstance(s, EchoServer))
    with lab.app(1).enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.connect((str(at.WEB4), at.ECHO_PORT))
        before = len(echo.heard)
        for _ in range(50):
            # from the first one on the path's MTU is known
            with contextlib.suppress(OSError):
                sock.send(b"CANARY".ljust(1472, b"x"))
            time.sleep(0.1)
            if len(echo.heard) > before:
                return True
    return False


def traffic_of_two_qubes():
    """Pages, names, pings, bulk; and our processes see none of it."""
    with connected() as (lab, _, appliance):
        assert_kernel(appliance)
        engine = appliance.pid("engine")
        before = switches(engine)
        began = time.monotonic()
        for number in (1, 2):
            assert str(fetch(lab.app(number)).seen) == "10.8.0.2"
        assert ping(lab.app(1)) == 3
        assert resolve(lab.app(2)) == [at.WEB4]
        assert lab.outside_dns.asked == []
        assert download(lab.app(1), BULK) == BULK
        assert len(fetch(lab.app(2), upload=b"x" * BULK).body)
        assert big_datagram_arrives(lab)
        seconds = time.monotonic() - began
        woken = switches(engine) - before
        time.sleep(1.5)
        counters = appliance.status()["counters"]
        assert counters["rx_bytes"] > BULK, counters
        assert counters["tx_bytes"] > BULK, counters
        packets = counters["rx_packets"] + counters["tx_packets"]
        print(f"engine woke {woken} times for {packets} packets")
        # its heartbeat, twice a second at the most, and a few timers
        assert woken < 20 + 10 * seconds
        assert packets > 1500


def rekey_under_load():
    """New keys, by our clock, lose nothing."""
    with connected(profile="reneg-sec 6\n") as (lab, server, appliance):
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(10)
            server.wait_rekeyed(2, timeout=PATIENCE)
            assert download(lab.app(2), BULK) == BULK
            flood.wait_echoes(100)
            lost = flood.sent - len(flood.echoes)
        assert lost < flood.sent * 0.1, (lost, flood.sent)
        assert assert_kernel(appliance)["rekeys"] >= 2
        assert appliance.log().count("connected ") == 1


def a_server_with_the_driver():
    """OpenVPN 2.7 with DCO, which also asks for new keys itself."""
    with connected(server=DcoServer, reneg=8) as (lab, server, appliance):
        done = lab.internet.run(["ip", "-d", "link", "show", server.device])
        assert " ovpn " in done.stdout, done.stdout
        assert_kernel(appliance)
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(10)
            server.wait_rekeyed(timeout=PATIENCE)
            assert download(lab.app(2), BULK) == BULK
            flood.wait_echoes(100)
            lost = flood.sent - len(flood.echoes)
        assert lost < flood.sent * 0.1, (lost, flood.sent)
        assert assert_kernel(appliance)["rekeys"] >= 1


def chacha():
    """The driver's other cipher."""
    with connected(cipher="CHACHA20-POLY1305") as (lab, _, appliance):
        assert assert_kernel(appliance)["cipher"] == "CHACHA20-POLY1305"
        assert fetch(lab.app(1)).status == 200


def tcp():
    """The driver takes the stream, in both directions, through new keys."""
    fields = {"proto": "tcp", "profile": "reneg-sec 6\n"}
    with connected(**fields) as (lab, server, appliance):
        assert_kernel(appliance)
        assert fetch(lab.app(1)).status == 200
        assert download(lab.app(2), BULK) == BULK
        with Flood(lab.app(1), rate=50) as flood:
            server.wait_rekeyed(2, timeout=PATIENCE)
            flood.wait_echoes(100)
        assert assert_kernel(appliance)["rekeys"] >= 2
        server.stop()
        appliance.wait_phase("blocked", PATIENCE)


def what_the_driver_cannot_do():
    """A cipher that only the server decides: userspace, and it says why."""
    both = "data-ciphers AES-256-GCM:AES-256-CBC\n"
    for proto in ("udp", "tcp"):
        fields = {"proto": proto, "cipher": "AES-256-CBC", "profile": both}
        with connected(**fields) as (lab, _, appliance):
            status = appliance.status()
            plane = {"name": "userspace", "why": "not for AES-256-CBC"}
            assert status["plane"] == plane, status
            assert status["device"] == "tun-vpn"
            assert link(lab) is None
            assert fetch(lab.app(1)).status == 200
            assert download(lab.app(2), BULK // 4) == BULK // 4


def userspace_when_asked_for():
    """--plane userspace, on a kernel that has the driver."""
    with connected("--plane", "userspace") as (lab, _, appliance):
        plane = {"name": "userspace", "why": "asked for"}
        assert appliance.status()["plane"] == plane
        assert link(lab) is None
        assert fetch(lab.app(1)).status == 200


def the_engine_is_killed():
    """Closed at once; then connected again, in the kernel again."""
    with connected() as (lab, _, appliance), Flood(lab.app(1)) as flood:
        flood.wait_echoes(10)
        appliance.signal("engine")
        appliance.wait_connected(PATIENCE, count=2)
        flood.wait_echoes(10, PATIENCE)
        assert_kernel(appliance)


def the_engine_is_stopped():
    """Silence is noticed: closed, peer and device are gone."""
    with connected() as (lab, _, appliance), Flood(lab.app(1)) as flood:
        flood.wait_echoes(10)
        appliance.signal("engine", signal.SIGSTOP)
        appliance.wait(lambda: link(lab) is None, PATIENCE, "end of the device")
        assert "tunnel4" in lab.vpn.run(["nft", "list", "sets"]).stdout
        flood.wait_sent(100)
        appliance.wait_connected(PATIENCE, count=2)
        flood.wait_echoes(10, PATIENCE)
        assert_kernel(appliance)


def the_keeper_is_killed():
    """The engine goes with it; another closes, and then connects."""
    with connected() as (lab, _, appliance), Flood(lab.app(1)) as flood:
        flood.wait_echoes(10)
        appliance.signal("keeper")
        appliance.wait_connected(PATIENCE, count=2)
        flood.wait_echoes(10, PATIENCE)
        assert_kernel(appliance)


def everything_is_killed():
    """The device stays, without carrier; each layer alone holds."""
    with connected() as (lab, server, appliance):
        with Flood(lab.app(1)) as flood:
            flood.wait_echoes(10)
            appliance.kill_all()
            flood.wait_sent(100)
            found = link(lab)
            assert "LOWER_UP" not in found["flags"], found
            layers = {
                "inet": ["nft", "delete", "table", "inet", "qubes_vpn"],
                "netdev": ["nft", "delete", "table", "netdev", "qubes_vpn"],
            }
            for command in layers.values():
                lab.vpn.run(command)
                flood.wait_sent(100)
                appliance.lock()
            flood.wait_sent(20)
        # a device that is left over is no obstacle
        appliance.connect(server.client_profile())
        appliance.wait_connected(PATIENCE)
        assert fetch(lab.app(1)).status == 200
        assert_kernel(appliance)


def routing_removed():
    """Without layer 2, and with a default route to the uplink in main."""
    with connected() as (lab, _, appliance), Flood(lab.app(1)) as flood:
        flood.wait_echoes(10)
        # nobody may put them back
        appliance.signal("keeper", signal.SIGSTOP)
        for priority in (60, 70, 71):
            lab.vpn.run(["ip", "rule", "del", "priority", str(priority)])
        flood.wait_sent(100)
        appliance.signal("keeper", signal.SIGCONT)


def the_server_falls_silent():
    """The driver notices; the engine's own reason is given."""
    push = ("redirect-gateway def1", "ping 1", "ping-restart 4")
    with connected(push=push) as (lab, server, appliance):
        assert fetch(lab.app(1)).status == 200
        server.signal(signal.SIGSTOP)
        appliance.wait_log("ping-restart", PATIENCE)
        assert "QV-105" in appliance.log() or "ping-restart" in appliance.log()
        server.signal(signal.SIGCONT)
        appliance.wait_connected(PATIENCE, count=2)
        assert fetch(lab.app(1)).status == 200
        assert_kernel(appliance)


def somebody_deletes_the_device():
    """Closed, and connected again."""
    with connected() as (lab, _, appliance), Flood(lab.app(1)) as flood:
        flood.wait_echoes(10)
        lab.vpn.ip(f"link del {DEVICE}")
        appliance.wait_connected(PATIENCE, count=2)
        flood.wait_echoes(10, PATIENCE)
        assert_kernel(appliance)


@contextlib.contextmanager
def openvpn(client, server):
    """A lab without our lock, with openvpn as the VPN qube's client."""
    with Lab() as lab:
        peer = server(lab.internet, lab.scratch, Settings(tunnel=1, **MEASURED))
        with peer:
            theirs = client(lab.vpn, lab.scratch, peer.client_profile())
            with theirs:
                theirs.wait_connected(timeout=PATIENCE)
                yield lab


MEASURED = {
    "extra": ("tun-mtu 1420",),
    "client_extra": ("tun-mtu 1420",),
    "push": ("redirect-gateway def1", "tun-mtu 1420", "ping 10"),
}


def measure(lab, *words):
    """Megabits a second from app qube 1 to the web server's address."""
    serving = lab.internet.popen(["iperf3", "-s", "-1", "-B", str(at.WEB4)])
    command = ["iperf3", "-c", str(at.WEB4), "-J", "-t", str(SECONDS), *words]
    limit = time.monotonic() + PATIENCE
    while True:
        done = lab.app(1).run(command, check=False)
        result = json.loads(done.stdout)
        if "error" not in result:
            break
        if time.monotonic() > limit:
            raise LabError(result["error"])
        time.sleep(0.2)
    serving.wait(PATIENCE)
    return result["end"]["sum_received"]["bits_per_second"] / 1e6


def throughput():
    """Beside OpenVPN 2.7 with DCO, and far above one in userspace."""
    with contextlib.ExitStack() as stack:
        ours, _, appliance = stack.enter_context(
            connected(server=DcoServer, **MEASURED)
        )
        assert_kernel(appliance)
        labs = {
            "ours": ours,
            "OpenVPN 2.7 DCO": stack.enter_context(
                openvpn(DcoClient, DcoServer)
            ),
            "OpenVPN 2.6": stack.enter_context(openvpn(Client, Server)),
        }
        found = {}
        for _ in range(ROUNDS):
            for name, lab in labs.items():
                for way in ((), ("-R",)):
                    key = name, "down" if way else "up"
                    found.setdefault(key, []).append(measure(lab, *way))
    for (name, way), values in found.items():
        print(
            f"FIGURE {name} {way}: median {statistics.median(values):.1f}"
            f" Mbit/s, {min(values):.1f} to {max(values):.1f}"
        )
    for way in ("up", "down"):
        mine = found["ours", way]
        for name, least in (("OpenVPN 2.7 DCO", 0.9), ("OpenVPN 2.6", 3)):
            ratios = [
                a / b for a, b in zip(mine, found[name, way], strict=True)
            ]
            ratio = statistics.median(ratios)
            print(f"FIGURE ours/{name} {way}: {ratio:.2f}")
            assert ratio > least * 0.8, (name, way, ratio)


CHECKS = (
    traffic_of_two_qubes,
    rekey_under_load,
    a_server_with_the_driver,
    chacha,
    tcp,
    what_the_driver_cannot_do,
    userspace_when_asked_for,
    the_engine_is_killed,
    the_engine_is_stopped,
    the_keeper_is_killed,
    everything_is_killed,
    routing_removed,
    the_server_falls_silent,
    somebody_deletes_the_device,
    throughput,
)
