"""The keeper opens what it may and closes by itself, by capture."""

import os
import signal
import socket
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lab import addresses as at
from lab.traffic import Flood, fetch, ping, resolve
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperGoneError, KeeperRefusedError
from qubes_vpn.policy import firewall
from qubes_vpn.policy.phase import Endpoint, Transport
from tests.netns.toy import (
    ADDRESS,
    ADDRESS6,
    ALLOWED,
    ENDPOINT,
    TIMEOUT,
    TUNNEL_ADDRESS,
    Rig,
    lock,
    pair,
    silent,
    wait,
)


@pytest.fixture
def rig(lab):
    lock(lab)
    with Rig(lab) as made:
        yield made


def leaks_without_us(lab):
    """The positive control: the same flood leaves when nothing protects."""
    with Flood(lab.app(1)) as flood:
        flood.wait_echoes()
        return silent(lab, flood).leaks


# --- traffic


def test_traffic_takes_the_tunnel_and_nothing_else(lab):
    assert leaks_without_us(lab)
    lock(lab)
    with Rig(lab) as rig, lab.capture(ALLOWED) as capture:
        rig.connect()
        assert fetch(lab.app(1)).seen == TUNNEL_ADDRESS
        assert ping(lab.app(2)) == 3
        with Flood(lab.app(1)) as flood:
            assert flood.wait_echoes(20)[0].seen == TUNNEL_ADDRESS
    report = capture.report()
    assert report.leaks == ()
    assert report.tunnel > 20


def test_every_query_goes_to_the_resolver_of_the_tunnel(lab, rig):
    rig.connect()
    with lab.capture(ALLOWED) as capture:
        for server in (*at.QUBES_DNS, at.OUTSIDE_DNS):
            assert resolve(lab.app(1), server=server) == [at.WEB4]
    assert capture.report().leaks == ()
    assert len(lab.tunnel_dns.asked) == 3
    assert lab.outside_dns.asked == []


def test_no_resolver_means_no_answer_unless_passed_through(lab, rig):
    rig.adopt().dial()
    bare = messages.Configure((ADDRESS,), 1400, ())
    rig.engine.request(bare)
    rig.forward().run_pump()
    with pytest.raises(TimeoutError):
        resolve(lab.app(1), server=at.OUTSIDE_DNS, timeout=0.5)
    rig.engine.request(replace(bare, dns_passthrough=True))
    with lab.capture(ALLOWED) as capture:
        assert resolve(lab.app(1), server=at.OUTSIDE_DNS) == [at.WEB4]
    assert capture.report().leaks == ()


def test_a_query_is_dropped_while_blocked(lab, rig):
    rig.connect()
    assert resolve(lab.app(1)) == [at.WEB4]
    rig.engine.request(messages.Close())
    with lab.capture(ALLOWED) as capture, pytest.raises(TimeoutError):
        resolve(lab.app(1), timeout=0.5)
    assert capture.report().leaks == ()
    assert lab.outside_dns.asked == []


def test_a_qube_cannot_reach_the_endpoint_by_itself(lab):
    """TunnelCrack ServerIP: the endpoint is not an exception for qubes."""
    with Flood(lab.app(1), to=at.SERVER4, port=at.VPN_PORT) as flood:
        assert silent(lab, flood).canaries
    lock(lab)
    with Rig(lab) as rig:
        rig.connect()
        with Flood(lab.app(1), to=at.SERVER4, port=at.VPN_PORT) as flood:
            assert silent(lab, flood).leaks == ()


def send_from_vpn(lab, *, mark=0, gid=0, count=5):
    """Datagrams of a local process of the VPN qube to the endpoint."""
    code = (
        "import os,socket\n"
        f"os.setgid({gid})\n"
        "s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, {mark})\n"
        f"for _ in range({count}):\n"
        f"  try: s.sendto(b'CANARY', ('{at.SERVER4}', {at.VPN_PORT}))\n"
        "  except PermissionError: pass\n"
    )
    with lab.capture(ALLOWED) as capture:
        lab.vpn.run([sys.executable, "-c", code])
        time.sleep(0.1)
    return len(capture.report().canaries)


def test_only_mark_and_group_together_reach_the_endpoint(lab, rig):
    rig.connect()
    mark, gid = firewall.MARK, firewall.KEEPER_GID
    assert send_from_vpn(lab, mark=mark, gid=gid) == 5  # the control
    assert send_from_vpn(lab, mark=mark) == 0
    assert send_from_vpn(lab, gid=gid) == 0
    assert send_from_vpn(lab) == 0


def test_ipv6_takes_the_tunnel_or_is_refused(lab6):
    with lab6.capture(ALLOWED) as capture:
        assert fetch(lab6.app(1), to=at.WEB6).seen == at.NET_OUTSIDE6
    assert capture.report().canaries
    lock(lab6)
    with Rig(lab6) as rig, lab6.capture(ALLOWED) as capture:
        rig.connect(ipv6=True)
        assert fetch(lab6.app(1), to=at.WEB6).seen == ADDRESS6.ip
        rig.engine.request(messages.CloseForwarding())
        rig.forward()
        with pytest.raises(OSError):  # noqa: PT011 which one is the kernel's
            fetch(lab6.app(1), to=at.WEB6, timeout=1)
        assert fetch(lab6.app(1)).seen == TUNNEL_ADDRESS
    assert capture.report().leaks == ()


def test_segments_are_clamped_both_ways(lab, rig):
    """The answer's clamp is what `set rt mtu` misses."""
    rig.adopt().dial()
    rig.engine.request(messages.OpenForwarding(700, 680))
    rig.run_pump()
    with lab.app(1).enter():
        sock = socket.socket()
    with sock:
        sock.settimeout(TIMEOUT)
        sock.connect((str(at.WEB4), at.WEB_PORT))
        size = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    assert size <= 700


def test_a_final_block_answers_qubes_and_nobody_else(lab, rig):
    rig.connect()
    assert fetch(lab.app(1)).status == 200
    with lab.capture(ALLOWED) as capture:
        rig.engine.request(messages.Close())
        with pytest.raises(TimeoutError):
            fetch(lab.app(1), timeout=0.5)
        rig.engine.request(messages.Close(final=True))
        with pytest.raises(OSError, match="No route to host"):
            fetch(lab.app(1), timeout=TIMEOUT)
    assert capture.report().leaks == ()


# --- deaths


def test_the_engine_is_killed(lab, rig):
    rig.connect()
    with Flood(lab.app(1)) as flood, lab.capture(ALLOWED) as capture:
        flood.wait_echoes(5)
        rig.kill_engine()
        rig.wait_notice(messages.EngineLost)
        flood.wait_sent(50)
        assert rig.status.phase == "blocked"
        rig.connect()
        flood.wait_echoes(5)
    assert capture.report().leaks == ()


# The shipped keeper, which looks once at what changed for longer than it
# waits for an engine.
LATE = f"""
import socket, sys, time
from qubes_vpn.keeper import __main__, guardian
look = guardian.Guardian.check
def late(self, *words):
    if "late0" in [name for _, name in socket.if_nameindex()]:
        guardian.Guardian.check = look
        time.sleep({messages.SILENCE_S + 1})
    look(self, *words)
guardian.Guardian.check = late
sys.exit(__main__.main(sys.argv[3:]))
"""


def test_an_engine_is_not_lost_by_a_keeper_that_is_late(lab):
    lock(lab)
    with Rig(lab, python=(sys.executable, "-c", LATE)) as rig:
        rig.connect()
        lab.vpn.ip("link add late0 type bridge")

        def waited():
            began = time.monotonic()
            rig.engine.request(messages.Heartbeat(), timeout=60)
            return time.monotonic() - began > messages.SILENCE_S

        wait(waited, "a keeper that is late")
        rig.engine.request(messages.Heartbeat())
        assert rig.status.phase == "connected"


def test_an_engine_that_is_stopped_is_closed_on(lab, rig):
    rig.connect()
    rig.engine.request(messages.Heartbeat())
    with Flood(lab.app(1)) as flood, lab.capture(ALLOWED) as capture:
        flood.wait_echoes(5)
        started = time.monotonic()
        assert rig.wait_notice(messages.EngineLost).reason == "silent"
        assert time.monotonic() - started > messages.SILENCE_S / 2
        assert rig.status.phase == "blocked"
        # its device is gone although it still holds the descriptor
        assert "tun-vpn" not in lab.vpn.run(["ip", "-br", "link"]).stdout
        before = len(flood.echoes)
        flood.wait_sent(50)
        assert len(flood.echoes) == before
    assert capture.report().leaks == ()


def test_the_keeper_is_killed_with_the_engine(lab, rig):
    rig.connect()
    with Flood(lab.app(1)) as flood, lab.capture(ALLOWED) as capture:
        flood.wait_echoes(5)
        rig.process.kill()
        rig.process.wait(TIMEOUT)
        with pytest.raises(KeeperGoneError):
            rig.engine.request(messages.Heartbeat())
        rig.kill_engine()  # what the engine does then
        flood.wait_sent(50)
    assert capture.report().leaks == ()


def test_a_new_keeper_closes_what_the_old_one_left(lab, rig):
    rig.connect()
    rig.process.kill()
    rig.process.wait(TIMEOUT)
    assert "tun-vpn" in rig.nft("list", "set", "inet", "qubes_vpn", "tunnel4")
    with Rig(lab, server=False) as second:
        assert second.status.phase == "blocked"
        left = second.nft("list", "ruleset")
        assert "tun-vpn" not in left
        assert str(at.SERVER4) not in left


def test_the_agent_ends(lab, rig):
    rig.connect()
    rig.agent.close()
    assert rig.process.wait(TIMEOUT) == 0
    assert "tun-vpn" not in rig.nft("list", "ruleset")


def test_sigterm_closes(lab, rig):
    rig.connect()
    os.kill(rig.keepers()[0], signal.SIGTERM)
    assert rig.process.wait(TIMEOUT) == 0
    left = rig.nft("list", "ruleset")
    assert "tun-vpn" not in left
    assert str(at.SERVER4) not in left
    assert rig.nft("list", "table", "inet", "qubes_vpn")


# --- what is left and what is needed


def test_it_does_not_start_without_the_lock(lab):
    ours, theirs = pair()
    keeper = lab.vpn.popen(
        [
            *(sys.executable, "-m", "qubes_vpn.keeper"),
            *("--agent-fd", str(theirs.fileno())),
        ],
        pass_fds=[theirs.fileno()],
    )
    assert keeper.wait(TIMEOUT) == os.EX_UNAVAILABLE
    ours.close()
    theirs.close()


def test_it_holds_one_capability_and_no_root(lab, rig):
    assert rig.status.phase == "blocked"
    found = [Path(f"/proc/{pid}/status").read_text() for pid in rig.keepers()]
    assert len(found) == 1
    assert f"\nUid:\t{firewall.KEEPER_GID}\t" in found[0]
    for kind in ("Prm", "Eff", "Bnd"):
        assert f"\nCap{kind}:\t0000000000001000\n" in found[0]
    assert "\nNoNewPrivs:\t1\n" in found[0]


def test_the_agents_chain_has_our_accept_only_while_open(lab, rig):
    def ours():
        chain = rig.nft("list", "chain", "ip", "qubes", "custom-input")
        lines = [line for line in chain.splitlines() if "qubes_vpn" in line]
        # what the qube answers itself, in every phase
        assert sum("ct zone 7078 udp dport 7053" in line for line in lines) == 1
        return [line for line in lines if "dport 7053" not in line]

    assert rig.status.phase == "blocked"
    assert ours() == []
    rig.adopt().dial()
    rig.forward()
    assert len(ours()) == 1
    assert f"ip saddr {at.SERVER4} udp sport {at.VPN_PORT}" in ours()[0]
    rig.engine.request(messages.Close())
    assert ours() == []


def connections(lab):
    return lab.vpn.run(["conntrack", "-L"]).stdout


def test_tracked_connections_are_forgotten_on_closing(lab, rig):
    def tracked():
        return str(at.WEB4) in connections(lab)

    rig.connect()
    fetch(lab.app(1))
    assert tracked()
    rig.engine.request(messages.Close())
    assert not tracked()


def test_the_link_is_not_tracked(lab, rig):
    rig.connect()
    fetch(lab.app(1))
    assert str(at.WEB4) in connections(lab)
    assert str(at.SERVER4) not in connections(lab)


def test_another_address_replaces_the_old_one(lab, rig):
    rig.connect()
    assert fetch(lab.app(1)).seen == ADDRESS.ip
    other = type(ADDRESS)("10.8.0.77/24")
    rig.engine.request(rig.configuration(other))
    assert fetch(lab.app(1)).seen == other.ip
    shown = lab.vpn.run(["ip", "-br", "addr", "show", "tun-vpn"]).stdout
    assert str(ADDRESS) not in shown


# --- the name of a server


def test_one_resolver_may_be_asked_for_a_name(lab, rig):
    _, (number,) = rig.agent.request(messages.OpenResolver(at.QUBES_DNS[0]))
    query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0)
    query += b"\3web\6canary\7example\0\0\1\0\1"
    with socket.socket(fileno=number) as sock:
        sock.settimeout(TIMEOUT)
        sock.send(query)
        assert sock.recv(512)[:2] == query[:2]
        rig.agent.request(messages.CloseResolver())
        with pytest.raises(PermissionError):
            sock.send(query)
    assert rig.status.phase == "blocked"


# --- what is refused


def refused(rig, message):
    with pytest.raises(KeeperRefusedError) as caught:
        rig.engine.request(message)
    return caught.value.reason


def test_what_is_out_of_bounds_is_refused(rig):
    rig.adopt()
    assert refused(rig, messages.OpenLink(1)) == "no-such-endpoint"
    assert refused(rig, messages.OpenLink(-1)) == "no-such-endpoint"
    assert refused(rig, messages.OpenLink(0, lport=80)) == "bad-lport"
    assert refused(rig, messages.OpenForwarding(1360, 1340)) == "no-link"
    rig.engine.request(messages.OpenLink(0))
    assert refused(rig, messages.OpenForwarding(1360, 1340)) == "not-configured"
    assert refused(rig, rig.configuration()) == "os-refused"  # no device
    rig.engine.request(messages.OpenTun())
    bad = messages.Configure((ADDRESS,), 100, ())
    assert refused(rig, bad) == "bad-mtu"
    bad = messages.Configure((ADDRESS,), 1400, (messages.Route("10.0.0.1/8"),))
    assert refused(rig, bad) == "bad-route"
    bad = messages.Configure((ADDRESS,), 1400, (), (), ("a b; drop",))
    assert refused(rig, bad) == "bad-domain"
    assert rig.status.phase == "connecting"


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{}",
        b"\xff" * 100,
        b'{"seq":1,"type":"SetEndpoints","endpoints":[]}',
        b'{"seq":1,"type":"Heartbeat","extra":1}',
        b"[" * 5000,
    ],
    ids=["eof", "empty", "noise", "role", "field", "deep"],
)
def test_an_engine_that_says_nonsense_is_dropped(lab, rig, record):
    rig.connect()
    os.set_blocking(rig.engine.fileno(), True)
    sock = socket.socket(fileno=os.dup(rig.engine.fileno()))
    with sock:
        sock.send(record)
        assert rig.wait_notice(messages.EngineLost)
    assert rig.status.phase == "blocked"
    assert not rig.status.engine


def test_an_endpoint_that_is_withdrawn_is_closed(lab, rig):
    rig.connect()
    other = Endpoint(at.SECOND_SERVER4, Transport.UDP, at.VPN_PORT)
    rig.agent.request(messages.SetEndpoints((other, ENDPOINT)))
    assert rig.status.phase == "connected"
    assert rig.status.endpoint == 1
    rig.agent.request(messages.SetEndpoints((other,)))
    assert rig.status.phase == "blocked"
    assert str(at.SERVER4) not in rig.nft("list", "ruleset")


# --- a proxy that relays


def test_a_relay_is_one_port_of_the_proxy_and_only_while_it_is_used(lab):
    """The control is the port itself, while the keeper has opened it."""
    proxy = Endpoint(at.SERVER4, Transport.TCP, 1080, relays=True)
    mark, gid = firewall.MARK, firewall.KEEPER_GID
    lock(lab)

    def reached():
        return send_from_vpn(lab, mark=mark, gid=gid)

    with Rig(lab) as rig:
        rig.adopt(proxy, ENDPOINT)
        with pytest.raises(KeeperRefusedError, match="no-relay"):
            rig.engine.request(messages.OpenRelay(at.VPN_PORT))
        rig.engine.request(messages.OpenLink(1))
        with pytest.raises(KeeperRefusedError, match="no-relay"):
            rig.engine.request(messages.OpenRelay(at.VPN_PORT))
        rig.dial()
        assert reached() == 0
        _, (relay,) = rig.engine.request(messages.OpenRelay(at.VPN_PORT))
        with socket.socket(fileno=relay) as sock:
            assert sock.getpeername() == (str(at.SERVER4), at.VPN_PORT)
        assert reached() == 5
        rig.forward()
        assert reached() == 5
        rig.engine.request(messages.CloseForwarding())
        assert reached() == 5
        # another port stands in its place, not beside it
        rig.engine.request(messages.OpenRelay(at.VPN_PORT + 1))
        assert reached() == 0
        rig.engine.request(messages.OpenRelay(at.VPN_PORT))
        rig.engine.request(messages.Close())
        assert reached() == 0


def test_the_link_leaves_from_where_the_profile_says(lab, rig):
    """`local` and `lport`; an address that is not ours is refused."""
    ours = at.VPN.ip4
    rig.adopt()
    request = messages.OpenLink(0, lport=4321, local=ours)
    _, (link,) = rig.engine.request(request)
    with socket.socket(fileno=link) as sock:
        assert sock.getsockname() == (str(ours), 4321)
    with pytest.raises(KeeperRefusedError, match="Cannot assign"):
        rig.engine.request(messages.OpenLink(0, local=at.SERVER4))
