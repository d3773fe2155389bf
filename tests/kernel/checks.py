# ruff: noqa: T201 -- the console is where it reports
"""What is checked in the machine, in groups that share a lab and a session.

A check gets the group's Place and leaves it connected in the kernel plane.
They are run by tests.kernel.guest and named by tests/kernel/test_machine.py.
"""

import contextlib
import json
import re
import signal
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab import Lab
from lab import addresses as at
from lab.appliance import CONTROL
from lab.namespace import LabError
from lab.openvpn import Client, Server, Settings
from lab.services import EchoServer
from lab.traffic import Flood, download, fetch, ping, resolve
from tests.kernel import order
from tests.kernel.place import (
    CONNECTED,
    DEVICE,
    PATIENCE,
    DcoClient,
    DcoServer,
    Place,
    connected,
)

BULK = 2_000_000
ROUNDS = 5
SECONDS = 2
RENEG = 12


def the_lab_leaks_without_the_lock():
    """The positive control of every other check."""
    with Lab() as lab, lab.capture() as capture, Flood(lab.app(1)) as flood:
        flood.wait_echoes(10, PATIENCE)
    assert capture.report().leaks


# --- the driver moves packets ------------------------------------------------


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


def traffic_of_two_qubes(place):
    """Pages, names, pings, bulk; and our processes see none of it."""
    lab, appliance = place.lab, place.appliance
    place.assert_kernel()
    engine = appliance.pid("engine")
    before = switches(engine)
    began = time.monotonic()
    for number in (1, 2):
        assert str(fetch(lab.app(number)).seen) == "10.8.0.2"
    assert ping(lab.app(1)) == 3
    assert resolve(lab.app(2)) == [at.WEB4]
    assert lab.outside_dns.asked == []
    assert download(lab.app(1), BULK) == BULK
    assert fetch(lab.app(2), upload=b"x" * BULK).body
    assert big_datagram_arrives(lab)
    seconds = time.monotonic() - began
    woken = switches(engine) - before
    time.sleep(1.5)
    counters = appliance.status()["counters"]
    assert counters["rx_bytes"] > BULK, counters
    assert counters["tx_bytes"] > BULK, counters
    packets = counters["rx_packets"] + counters["tx_packets"]
    print(
        f"FIGURE engine woke {woken} times in {seconds:.0f} s,"
        f" for {packets} packets"
    )
    # its heartbeat, and what a new key takes
    assert woken < 100 + 5 * seconds
    assert packets > 2000


def new_keys_under_load(place):
    """New keys lose nothing, and nobody reconnects for them."""
    lab, appliance = place.lab, place.appliance
    before = appliance.log().count(CONNECTED)
    goal = place.assert_kernel()["rekeys"] + 2
    with Flood(lab.app(1), rate=50) as flood:
        flood.wait_echoes(10, PATIENCE)
        appliance.wait(
            lambda: appliance.status()["rekeys"] >= goal, PATIENCE, "new keys"
        )
        assert download(lab.app(2), BULK) == BULK
        flood.wait_echoes(50, PATIENCE)
        lost = flood.sent - len(flood.echoes)
    assert lost < flood.sent * 0.1, (lost, flood.sent)
    place.assert_kernel()
    assert appliance.log().count(CONNECTED) == before


def memory(place):
    """What our three processes take, as their share of all pages.

    Keeper and engine with their memory locked: root of a machine may do so.
    """
    assert fetch(place.lab.app(1)).status == 200
    pids = [place.appliance.pid(role) for role in ("keeper", "engine")]
    for pid in pids:
        text = Path(f"/proc/{pid}/status").read_text()
        locked = int(re.search(r"VmLck:\s+(\d+)", text)[1])
        print(f"FIGURE locked: {locked / 1000:.0f} MB")
        assert locked > 1000
    pids.append(place.appliance.client.pid)
    kilobytes = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        kilobytes += int(re.search(r"Pss:\s+(\d+)", text)[1])
    print(f"FIGURE keeper, engine and agent: {kilobytes / 1000:.0f} MB")
    assert kilobytes < 80_000


def over_ipv6(place):
    """An endpoint with an IPv6 address, and IPv6 inside."""
    status = place.assert_kernel()
    assert status["remote"]["address"] == str(at.SERVER6)
    for to in (at.WEB4, at.WEB6):
        assert fetch(place.lab.app(1), to=to).status == 200
    assert download(place.lab.app(2), BULK) == BULK


def stream(place):
    """The driver takes the TCP stream too, and leaves control to us."""
    status = place.assert_kernel()
    assert status["cipher"] == "CHACHA20-POLY1305"
    assert status["remote"]["proto"] == "tcp"
    assert fetch(place.lab.app(1)).status == 200
    assert download(place.lab.app(2), BULK) == BULK


def the_server_ends_the_stream(place):
    """The driver sees the end of it; closed, and connected again."""
    with place.reconnects():
        place.server.stop()
        place.appliance.wait_phase("blocked", PATIENCE)
        place.server.start()


def both_have_the_driver(place):
    """OpenVPN 2.7's server moves nothing in userspace either."""
    done = place.lab.internet.run(["ip", "-d", "link"])
    assert re.search(
        rf"{place.server.device}:[^\n]*\n[^\n]*\n\s+ovpn ", done.stdout
    ), done.stdout
    assert fetch(place.lab.app(1)).status == 200


def what_the_driver_cannot_do(place):
    """A cipher that only the server decides: userspace, and it says why."""
    status = place.appliance.status()
    plane = {"name": "userspace", "why": "not for AES-256-CBC"}
    assert status["plane"] == plane, status
    assert status["device"] == "tun-vpn"
    assert place.link() is None
    assert fetch(place.lab.app(1)).status == 200
    assert download(place.lab.app(2), BULK // 4) == BULK // 4


# --- whatever dies, it is closed ---------------------------------------------


@contextlib.contextmanager
def closed_before_the_keys_go(place, *layers):
    """What happens inside ends the keys, and these layers close before."""
    with order.tap(place.lab.vpn) as asked:
        yield
        place.appliance.wait(
            lambda: "keys" in asked(), PATIENCE, "end of the keys"
        )
        found = asked()
    print(f"FIGURE {' > '.join(found)}")
    assert tuple(found[: len(layers) + 1]) == (*layers, "keys"), found


def the_engine_is_killed(place):
    """Closed at once; then connected again, in the kernel again."""
    with (
        place.reconnects(),
        closed_before_the_keys_go(place, "filter", "routing", "uplink"),
    ):
        place.appliance.signal("engine")


def somebody_disconnects(place):
    """The session's own end has the same order; what is left goes last."""
    with place.reconnects():
        with closed_before_the_keys_go(place, "filter", "routing"):
            place.appliance.command("disconnect", "--control", CONTROL)
        place.appliance.command("connect", "--control", CONTROL)


def the_engine_is_stopped(place):
    """Silence is noticed: closed, and peer and device are gone."""
    with place.reconnects() as flood:
        place.appliance.signal("engine", signal.SIGSTOP)
        place.appliance.wait(
            lambda: place.link() is None, PATIENCE, "end of the device"
        )
        flood.wait_sent(20)


def the_keeper_is_killed(place):
    """The engine goes with it; another closes, and then connects."""
    with place.reconnects():
        place.appliance.signal("keeper")


def somebody_deletes_the_device(place):
    """The driver says so; closed, and connected again."""
    with place.reconnects():
        place.lab.vpn.ip(f"link del {DEVICE}")


def the_server_falls_silent(place):
    """The driver counts the seconds; the engine gives the reason."""
    with place.reconnects():
        place.server.signal(signal.SIGSTOP)
        place.appliance.wait_log("ping-restart", PATIENCE)
        place.server.signal(signal.SIGCONT)


def rules_of_routing_removed(place):
    """Layers 1 and 3 hold the traffic of qubes that main would take."""
    with Flood(place.lab.app(1)) as flood:
        flood.wait_echoes(10, PATIENCE)
        # nobody may put them back
        place.appliance.signal("keeper", signal.SIGSTOP)
        for priority in (60, 70, 71):
            place.lab.vpn.ip(f"rule del priority {priority}")
        echoes = len(flood.echoes)
        flood.wait_sent(100)
        assert len(flood.echoes) - echoes < 50
        place.appliance.signal("keeper", signal.SIGCONT)
        flood.wait_echoes(10, PATIENCE)


def everything_is_killed(place):
    """The device stays, without carrier; without either filter, silence."""
    lab, appliance = place.lab, place.appliance
    with Flood(lab.app(1)) as flood:
        flood.wait_echoes(10, PATIENCE)
        appliance.kill_all()
        flood.wait_sent(50)
        assert "LOWER_UP" not in place.link()["flags"]
        for family in ("inet", "netdev"):
            lab.vpn.nft(f"delete table {family} qubes_vpn")
            flood.wait_sent(50)
            appliance.lock()
        echoes = len(flood.echoes)
        flood.wait_sent(20)
        assert len(flood.echoes) == echoes
    # a device that is left over is no obstacle
    appliance.connect(place.server.client_profile())
    appliance.wait_connected(PATIENCE)
    assert fetch(lab.app(1)).status == 200
    place.assert_kernel()


# --- how fast ----------------------------------------------------------------

MEASURED = {
    "extra": ("tun-mtu 1420",),
    "client_extra": ("tun-mtu 1420",),
    "push": ("redirect-gateway def1", "tun-mtu 1420", "ping 10"),
}


@contextlib.contextmanager
def openvpn(client, server):
    """A lab without our lock, with openvpn as the VPN qube's client."""
    with Lab() as lab:
        peer = server(lab.internet, lab.scratch, Settings(**MEASURED))
        with (
            peer,
            client(lab.vpn, lab.scratch, peer.client_profile()) as theirs,
        ):
            theirs.wait_connected(timeout=PATIENCE)
            yield lab


def measure(lab, *words):
    """Megabits a second between app qube 1 and the web server's address."""
    serving = lab.internet.popen(["iperf3", "-s", "-1", "-B", str(at.WEB4)])
    command = ["iperf3", "-c", str(at.WEB4), "-J", "-t", str(SECONDS), *words]
    limit = time.monotonic() + PATIENCE
    while True:
        result = json.loads(lab.app(1).run(command, check=False).stdout)
        if "error" not in result:
            break
        if time.monotonic() > limit:
            raise LabError(result["error"])
        time.sleep(0.1)
    serving.wait(PATIENCE)
    return result["end"]["sum_received"]["bits_per_second"] / 1e6


def throughput(place):
    """Beside OpenVPN 2.7 with DCO, and far above one in userspace.

    Without our lock, which costs every client the same; and with it.
    """
    place.assert_kernel()
    found = {}
    with (
        connected(DcoServer, locked=False, **MEASURED) as bare,
        openvpn(DcoClient, DcoServer) as dco,
        openvpn(Client, Server) as old,
    ):
        bare.assert_kernel()
        labs = {
            "ours": bare.lab,
            "2.7 DCO": dco,
            "2.6": old,
            "locked": place.lab,
        }
        for number in range(ROUNDS):
            for name, lab in labs.items():
                # the slow one decides nothing closely
                if name == "2.6" and number % 2:
                    continue
                for way in ("up", "down"):
                    words = ["-R"] if way == "down" else []
                    found.setdefault((name, way), []).append(
                        measure(lab, *words)
                    )
    medians = {key: statistics.median(found[key]) for key in found}
    for (name, way), median in medians.items():
        values = found[name, way]
        print(
            f"FIGURE {name} {way}: median {median:.1f} Mbit/s,"
            f" {min(values):.1f} to {max(values):.1f}"
        )
    for way in ("up", "down"):
        mine, dco = found["ours", way], found["2.7 DCO", way]
        beside = statistics.median(
            a / b for a, b in zip(mine, dco, strict=True)
        )
        above = medians["ours", way] / medians["2.6", way]
        print(
            f"FIGURE {way}: {beside:.2f} of OpenVPN 2.7 with DCO,"
            f" {above:.1f} times OpenVPN 2.6"
        )
        # generous: the machine's clock is not its own
        # the figures are what counts; a machine that is shared measures
        # itself, so these only catch a plane that is not the kernel's
        assert beside > 0.3, way
        assert above > 1, way


@dataclass
class Group:
    """Checks that share a place; `fields` are of `connected`.

    captured: all that leaves is looked at, which costs time of its own.
    """

    checks: tuple[Callable[[Place], None], ...]
    fields: dict = field(default_factory=dict)
    captured: bool = True


_BOTH = "data-ciphers AES-256-GCM:AES-256-CBC\n"
GROUPS = (
    Group(
        (
            traffic_of_two_qubes,
            memory,
            new_keys_under_load,
            somebody_disconnects,
            the_engine_is_killed,
            the_engine_is_stopped,
            the_keeper_is_killed,
            somebody_deletes_the_device,
            rules_of_routing_removed,
            the_server_falls_silent,
            everything_is_killed,
        ),
        {"profile": f"reneg-sec {RENEG}\n"},
    ),
    Group(
        (stream, new_keys_under_load, the_server_ends_the_stream),
        {
            "proto": "tcp",
            "cipher": "CHACHA20-POLY1305",
            "profile": f"reneg-sec {RENEG}\n",
        },
    ),
    Group(
        (what_the_driver_cannot_do,),
        {"proto": "tcp", "cipher": "AES-256-CBC", "profile": _BOTH},
    ),
    Group(
        (what_the_driver_cannot_do,),
        {"cipher": "AES-256-CBC", "profile": _BOTH},
    ),
    Group((over_ipv6,), {"address": at.SERVER6, "ipv6": True}),
    Group(
        (both_have_the_driver, new_keys_under_load),
        {"server": DcoServer, "reneg": RENEG},
    ),
    Group((throughput,), {"server": DcoServer, **MEASURED}, captured=False),
)
