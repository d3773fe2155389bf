"""The lab leaks without us, and its oracles see it.

Every leak test of the project rests on this file: a leak test whose traffic
would not have left anyway, or whose capture is blind, proves nothing.
"""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import Endpoint, Lab, LabError
from lab import addresses as at
from lab.capture import CANARY
from lab.traffic import Flood, download, fetch, internet_checksum, ping, resolve

APP = at.APPS[0]
SERVER = Endpoint(at.SERVER4, "udp", at.VPN_PORT)


def addresses_in_clear(report):
    return {(leak.what.source, leak.what.destination) for leak in report.leaks}


# --- the topology leaks without us


def test_web_leaves_in_clear(lab):
    with lab.capture(SERVER) as capture:
        page = fetch(lab.app(1))
    report = capture.report()
    assert page.seen == at.NET_OUTSIDE4
    assert (at.VPN.ip4, at.WEB4) in addresses_in_clear(report)
    assert any(leak.why == "canary" for leak in report.outside)
    assert report.canaries
    assert report.tunnel == 0


def test_ping_and_udp_leave_in_clear(lab):
    with lab.capture(SERVER) as capture:
        assert ping(lab.app(2), count=3) == 3
        with Flood(lab.app(1)) as flood:
            echo = flood.wait_echoes()[0]
    assert echo.seen == at.NET_OUTSIDE4
    canaries = capture.report().canaries
    assert {leak.what.protocol for leak in canaries} == {1, 17}


def test_dns_leaves_in_clear(lab):
    with lab.capture(SERVER) as capture:
        assert resolve(lab.app(1)) == [at.WEB4]
        assert resolve(lab.app(1), server=at.QUBES_DNS[1]) == [at.WEB4]
        assert resolve(lab.app(1), "nowhere.example") == []
    report = capture.report()
    assert (at.VPN.ip4, at.QUBES_DNS[0]) in addresses_in_clear(report)
    assert [asked.what for asked in lab.outside_dns.asked] == [
        at.WEB_NAME,
        at.WEB_NAME,
        "nowhere.example",
    ]
    assert lab.tunnel_dns.asked == []


def test_ipv6_leaves_in_clear(lab6):
    with lab6.capture(SERVER) as capture:
        page = fetch(lab6.app(1), to=at.WEB6)
        assert resolve(lab6.app(1), version=6) == [at.WEB6]
    assert page.seen == at.NET_OUTSIDE6
    assert (at.VPN.ip6, at.WEB6) in addresses_in_clear(capture.report())


def test_no_ipv6_unless_asked(lab):
    with pytest.raises(OSError, match="unreachable"):
        fetch(lab.app(1), to=at.WEB6)


def test_bulk_both_ways(lab):
    size = 5_000_000
    assert download(lab.app(1), size) == size
    assert fetch(lab.app(1), upload=bytes(size)).body == b"%d\n" % size


def test_leaks_with_qubes_firewall():
    with Lab(qubes_firewall=True) as lab, lab.capture() as capture:
        assert fetch(lab.app(1)).seen == at.NET_OUTSIDE4
        assert resolve(lab.app(2)) == [at.WEB4]
    assert capture.report().leaks


# --- and it is otherwise Qubes


def test_groups_neighbours_and_routes(lab):
    links = lab.vpn.run(["ip", "-d", "-o", "link"]).stdout.splitlines()
    by_name = {line.split()[1].partition("@")[0]: line for line in links}
    assert " group 1 " in by_name["eth0"]
    assert " group 2 " in by_name["vif1.0"]
    assert " group 2 " in by_name["vif2.0"]
    neighbours = lab.vpn.run(["ip", "neigh", "show"]).stdout
    assert f"{APP.ip4} dev vif1.0 lladdr {APP.mac} PERMANENT" in neighbours
    routes = lab.vpn.run(["ip", "route"]).stdout
    assert f"{APP.ip4} dev vif1.0 scope link metric 32751" in routes
    assert f"default via {at.NET.ip4} dev eth0 onlink" in routes


def test_antispoof_drops_a_foreign_source(lab):
    lab.app(1).ip(f"addr add {at.APPS[1].ip4}/32 dev eth0")
    with lab.app(1).enter():
        spoofer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        honest = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with spoofer, honest, lab.capture() as capture:
        spoofer.bind((str(at.APPS[1].ip4), 0))
        spoofer.sendto(b"CANARY spoofed", (str(at.WEB4), at.ECHO_PORT))
        honest.sendto(b"CANARY honest", (str(at.WEB4), at.ECHO_PORT))
        honest.settimeout(10)
        honest.recv(100)
    seen = b"".join(leak.frame for leak in capture.report().outside)
    assert b"honest" in seen
    assert b"spoofed" not in seen


def test_qubes_do_not_reach_each_other(lab):
    assert ping(lab.app(1), to=at.APPS[1].ip4, count=2, wait=0.3) == 0
    assert ping(lab.app(1), to=at.VPN.ip4, count=2) == 2


def test_uplink_and_vif_come_back(lab):
    with lab.capture() as capture:
        lab.unplug_uplink()
        with pytest.raises(OSError, match="unreachable"):
            fetch(lab.app(1), timeout=2)
        lab.plug_uplink(at.VPN.ip4 + 1)
        assert fetch(lab.app(1)).status == 200
        lab.detach_app(1)
        lab.attach_app(1)
        assert fetch(lab.app(1)).status == 200
    # The capture saw the first frames of a device that it did not know.
    sources = {source for source, _ in addresses_in_clear(capture.report())}
    assert at.VPN.ip4 + 1 in sources


def test_qube_has_its_own_run_and_etc(lab):
    mine = Path("/run/qubes-vpn-lab-test"), Path("/etc/qubes-vpn-lab-test")
    lab.vpn.run(["touch", *map(str, mine)])
    assert not any(path.exists() for path in mine)
    text = lab.vpn.run(["cat", "/etc/resolv.conf"]).stdout
    assert text == "nameserver 10.139.1.1\nnameserver 10.139.1.2\n"


# --- the oracles' own controls


def send_from_uplink(lab, frame):
    with lab.vpn.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        raw.bind(("eth0", 0))
        raw.send(frame)


def ethernet(ethertype, payload, source=at.VPN.mac):
    macs = (at.BACKEND_MAC, source)
    packed = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)
    return packed + struct.pack(">H", ethertype) + payload


def ip4(source, destination, protocol, payload, fragment=0):
    head = struct.pack(
        ">BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), 77, fragment, 64, protocol, 0),
        *(source.packed, destination.packed),
    )
    checksum = struct.pack(">H", internet_checksum(head))
    return head[:10] + checksum + head[12:] + payload


def udp(payload, port=at.VPN_PORT):
    return struct.pack(">HHHH", 40000, port, 8 + len(payload), 0) + payload


def outer(payload, port=at.VPN_PORT, **fields):
    fields = {"source": at.VPN.ip4, "destination": at.SERVER4} | fields
    packet = ip4(
        fields["source"], fields["destination"], 17, udp(payload, port)
    )
    return ethernet(0x0800, packet)


def judge(lab, *frames):
    # The kernel's own IPv6 chatter is a leak too; it is not the one looked at.
    lab.vpn.sysctl({"ipv6/conf/eth0/disable_ipv6": 1})
    with lab.capture(SERVER) as capture:
        for frame in frames:
            send_from_uplink(lab, frame)
    return capture.report()


def test_the_tunnels_own_packets_are_in_order(lab):
    report = judge(lab, outer(b"ciphertext"), outer(b"more"))
    assert report.tunnel == 2
    assert report.leaks == ()


def test_arp_for_our_address_is_in_order(lab):
    def arp(sender):
        head = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
        who = bytes(6) + sender.packed + bytes(6) + at.NET.ip4.packed
        return ethernet(0x0806, head + who)

    report = judge(lab, arp(at.VPN.ip4), arp(APP.ip4))
    assert len(report.outside) == 1
    assert report.outside[0].what.sender == APP.ip4


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(outer(b"x", port=1195), id="port"),
        pytest.param(outer(b"x", source=APP.ip4), id="source"),
        pytest.param(outer(b"x", destination=at.WEB4), id="destination"),
        pytest.param(
            ethernet(0x0800, ip4(at.VPN.ip4, at.SERVER4, 6, udp(b"x") * 3)),
            id="protocol",
        ),
        pytest.param(
            ethernet(0x0800, ip4(at.VPN.ip4, at.SERVER4, 17, b"xxxxxxxx", 99)),
            id="stray-fragment",
        ),
        pytest.param(ethernet(0x88B5, b"x" * 46), id="ethertype"),
        pytest.param(
            ethernet(0x0800, b"\x45", source="02:00:00:00:00:01"),
            id="foreign-mac-cut-short",
        ),
    ],
)
def test_anything_else_is_a_leak(lab, frame):
    report = judge(lab, outer(b"fine"), frame)
    assert report.tunnel == 1
    assert len(report.outside) == 1
    assert report.canaries == ()


def test_a_canary_inside_the_tunnels_own_packets_is_a_leak(lab):
    report = judge(lab, outer(b"CANARY to the server's address"))
    assert report.outside == ()
    # The server's ICMP error may quote it on its way back.
    assert [
        leak.what.destination for leak in report.canaries if leak.outbound
    ] == [at.SERVER4]


def test_a_canary_that_comes_in_is_a_leak(lab):
    frame = ethernet(
        0x0800, ip4(at.SERVER4, at.VPN.ip4, 17, udp(b"CANARY injected"))
    )
    with lab.net.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw, lab.capture(SERVER) as capture:
        raw.bind(("vif3.0", 0))
        raw.send(frame)
    report = capture.report()
    assert [leak.outbound for leak in report.canaries] == [False]


def test_the_kernels_own_chatter_is_a_leak(lab):
    with lab.capture(SERVER) as capture:
        lab.vpn.ip("link set eth0 down")
        lab.vpn.ip("link set eth0 up")
        with Flood(lab.app(1), rate=20) as flood:
            flood.wait_sent(40)
    assert any(
        leak.what.protocol in (0, 58) for leak in capture.report().outside
    )


def test_a_capture_that_lost_frames_is_no_proof(lab, monkeypatch):
    monkeypatch.setattr("lab.capture.KEPT_BYTES_MAX", 100)
    with lab.capture() as capture:
        fetch(lab.app(1))
    with pytest.raises(LabError, match="lost"):
        capture.report()


def test_canary_is_in_what_the_traffic_says(lab):
    with lab.capture() as capture:
        fetch(lab.app(1))
        resolve(lab.app(1))
        ping(lab.app(1), count=1)
    out = [frame for outbound, frame in capture.frames() if outbound]
    marked = {frame[23] for frame in out if CANARY in frame.lower()}
    assert marked == {1, 6, 17}


# --- nothing is left behind


SLEEPER = """
import sys, time
from lab import Lab
with Lab() as lab:
    children = [lab.vpn.popen(["sleep", "1000"]), lab.app(1).popen(["cat"])]
    print(children[0].pid, lab.scratch, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_lab(number):
    holder = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with holder:
        pid, scratch = holder.stdout.readline().split()
        child = os.pidfd_open(int(pid))
        holder.send_signal(number)
        holder.wait(20)
    try:
        # Readable when the program is gone: the test's timeout is the limit.
        with os.fdopen(os.dup(child), "rb") as gone:
            assert select.select([gone], [], [], 20)[0]
    finally:
        os.close(child)
    # Only SIGKILL leaves the scratch directory, for `python -m lab down`.
    assert Path(scratch).exists() == (number == signal.SIGKILL)


def test_a_closed_lab_leaves_nothing_in_this_process():
    def count():
        tasks = len(list(Path("/proc/self/task").iterdir()))
        return len(list(Path("/proc/self/fd").iterdir())), tasks

    with Lab():
        pass
    before = count()
    with Lab() as lab, lab.capture() as capture, Flood(lab.app(1)) as flood:
        flood.wait_echoes()
        capture.report()
        lab.vpn.popen(["sleep", "1000"])
    assert count() == before
    lab.close()
    with pytest.raises(LabError, match="closed"):
        lab.vpn.run(["true"])


def alive(pid):
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_program_that_ignores_sigterm_or_is_stopped_ends():
    with Lab() as lab:
        deaf = lab.vpn.popen(["sh", "-c", "trap '' TERM; sleep 1000 & wait"])
        stopped = lab.vpn.popen(["sleep", "1000"])
        limit = time.monotonic() + 20
        while len(lab.vpn.pids()) < 3:
            assert time.monotonic() < limit
            time.sleep(0.01)
        pids = lab.vpn.pids()
        stopped.send_signal(signal.SIGSTOP)
    assert deaf.returncode == -signal.SIGKILL
    assert stopped.returncode == -signal.SIGTERM
    limit = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < limit
        time.sleep(0.01)
