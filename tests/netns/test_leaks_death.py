"""L01 to L03, L05, L12, L13, L38, L52, L55, L56, L63: the tunnel ends."""

import dataclasses
import signal
import time

import pytest

from lab import addresses as at
from lab.openvpn import Server
from lab.traffic import Flood, fetch
from tests.netns.scene import (
    QUICK,
    Scene,
    Stream,
    flooded,
    holds,
    leaks,
    proves,
    report,
    udp,
)


@pytest.mark.parametrize("which", ["engine", "keeper", "agent", "all"])
def test_l01_a_process_is_killed(which):
    def kill(scene):
        if scene.kind == "ours" and which != "all":
            scene.appliance.signal(which)
        else:
            scene.kill()

    proves(flooded(kill, probes=40), dead=which in ("agent", "all"))


@pytest.mark.parametrize("verb", ["del", "set down"])
def test_l02_the_device_goes(verb):
    def attack(scene):
        words = f"del {scene.tun}" if verb == "del" else f"set {scene.tun} down"
        scene.lab.vpn.ip(f"link {words}")

    proves(flooded(attack, probes=40))


@pytest.mark.parametrize("what", ["device", "table"])
def test_l03_its_routes_go(what):
    def attack(scene):
        scene.lab.vpn.ip(f"route flush dev {scene.tun}")
        if what == "table":
            scene.lab.vpn.run(
                ["ip", "route", "flush", "table", "7078"], check=False
            )

    proves(flooded(attack))


def restart(scene):
    """What an upgrade and a restart of the units do, five times."""
    for _ in range(5):
        if scene.kind == "ours":
            scene.appliance.stop()
            scene.appliance.lock()
            scene.connect()
        else:
            scene.client.stop()
            time.sleep(0.1)
            scene.connect()


def test_l05_restarts_and_upgrades():
    proves(flooded(restart))


def midstream(scene):
    scene.lab.vpn.sysctl({"netfilter/nf_conntrack_tcp_loose": 1})
    with Stream(scene.app) as stream:
        stream.send(0.2)
        scene.kill()
        stream.send(0.6)


def test_l12_a_connection_is_picked_up_in_its_middle():
    proves(midstream, dead=True)


def out_of_state(scene):
    """Segments that belong to no connection are not translated."""
    for family in ("ip", "ip6"):
        scene.lab.vpn.nft(f"flush chain {family} qubes forward")
    scene.lab.vpn.sysctl({"netfilter/nf_conntrack_tcp_loose": 0})
    with Stream(scene.app) as stream:
        stream.send(0.2)
        scene.kill()
        scene.lab.vpn.run(["conntrack", "-F"], check=False)
        stream.send(0.6)


def test_l13_segments_without_a_state():
    found = holds("peer", out_of_state)
    assert any(leak.why == "canary" for leak in found)
    assert any(leak.what.source == at.APPS[0].ip4 for leak in found)
    assert not holds("ours", out_of_state, dead=True)


def unreachable(scene):
    """The server goes on sending to a port that nobody has any more."""
    scene.kill()
    for _ in range(10):
        udp(scene.lab.internet, scene.tunnel, 9, b"x" * 64, count=1)
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["peer", "ours"])
def test_l38_no_icmp_tells_that_the_client_died(kind):
    with Scene(kind) as scene:
        scene.tunnel = scene.tunnel_address
        if kind == "peer":
            scene.open_agent()
        found = report(scene, unreachable, settle=0.3)
        out = [leak for leak in found.outside if leak.what.icmp == 3]
        assert bool(out) == (kind == "peer")
        assert kind == "peer" or not found.leaks


def resume(scene):
    """Suspended with the network gone, and a server that forgot us."""
    roles = ("agent", "keeper", "engine")
    pids = []
    if scene.kind == "ours":
        pids = [scene.appliance.signal(r, signal.SIGSTOP) for r in roles]
    scene.lab.vpn.ip("link set eth0 down")
    scene.server.stop()
    with Flood(scene.app) as flood:
        time.sleep(0.5)
        scene.server.start()
        scene.lab.vpn.ip(f"""
            link set eth0 up
            route replace {at.NET.ip4} dev eth0
            route replace default via {at.NET.ip4} dev eth0 onlink
        """)
        time.sleep(0.5)
        for role, _ in zip(roles, pids, strict=False):
            scene.appliance.signal(role, signal.SIGCONT)
        flood.wait_sent(20)


def test_l52_suspended_and_resumed():
    proves(resume, control="bare", **QUICK)


def residue(scene):
    """Packets that wait in the device while its program is stopped."""
    ours = scene.kind == "ours"
    if ours:
        scene.appliance.signal("engine", signal.SIGSTOP)
    else:
        scene.client.signal(signal.SIGSTOP)
    udp(scene.app, at.WEB4, at.ECHO_PORT, b"CANARY residue", count=100)
    if ours:
        scene.server.stop()
        scene.server.start()
        scene.appliance.wait_connected(count=2, timeout=60)
    else:
        scene.client.signal(signal.SIGCONT)
    fetch(scene.app)
    return [each for each in scene.heard if "residue" in each.what]


def test_l55_nothing_waits_in_the_device_for_the_next_session():
    with Scene("peer") as scene:
        assert residue(scene), "void: nothing waited"
    with Scene("ours") as scene:
        assert not residue(scene)


def another_address(scene):
    """The same flow before and after the tunnel's address changed."""
    with Flood(scene.app) as flood:
        before = flood.wait_echoes(3)[0].seen
        if scene.kind == "ours":
            scene.server.stop()
            scene.server = Server(
                scene.lab.internet, scene.lab.scratch, tunnel(scene, 1)
            )
            scene.server.start()
            scene.appliance.wait_connected(count=2, timeout=60)
        else:
            scene.lab.vpn.ip(f"""
                addr add 10.8.0.99/24 dev {scene.tun}
                route replace 198.51.100.0/24 dev {scene.tun} src 10.8.0.99
            """)
        after = flood.wait_echoes(20)[-1].seen
    return before, after


def tunnel(scene, number):
    return dataclasses.replace(scene.settings, tunnel=number)


def test_l56_no_packet_keeps_the_old_address_of_the_tunnel():
    with Scene("peer") as scene:
        before, after = another_address(scene)
        assert before == after, "void: no control"
    with Scene("ours", **QUICK) as scene:
        before, after = another_address(scene)
        assert str(before).startswith("10.8.0.")
        assert str(after).startswith("10.8.1.")


def test_l63_a_pause_is_silent_and_resets_no_connection():
    rejecting = """
        add table inet naive
        add chain inet naive f { type filter hook forward priority -10; }
        add rule inet naive f iifgroup 2 oifgroup 1 reject with tcp reset
    """
    with Scene("peer") as scene, Stream(scene.app) as stream:
        scene.lab.vpn.nft(rejecting)
        scene.kill()
        stream.send(0.5)
        assert stream.error, "void: no control"
    with Scene("ours") as scene, Stream(scene.app) as stream:

        def pause(scene):
            stream.send(0.2)
            scene.appliance.signal("engine", signal.SIGSTOP)
            scene.server.stop()
            stream.send(0.8)

        assert not leaks(scene, pause)
        assert stream.error is None


@pytest.mark.parametrize("version", [4, 6])
def test_l56_no_flow_keeps_the_address_of_another_device(version):
    """While the tunnel has no address, masquerading takes any other."""
    with Scene("ours", ipv6=True, inside6=True) as scene:
        to = at.WEB4 if version == 4 else at.WEB6
        with Flood(scene.app, rate=200, to=to) as flood:
            for _ in range(3):
                before = flood.wait_echoes(3)[0].seen
                scene.lab.vpn.run(["ip", "addr", "flush", "dev", "tun-vpn"])
                mark = flood.sent
                flood.wait_echoes(10)
            late = {echo.seen for echo in flood.echoes if echo.number > mark}
        assert late == {before}
