"""The path between client and server, and the clock: rows P65 to P75."""

import socket
from ipaddress import ip_address
from random import Random

import pytest

from lab.namespace import Namespace
from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Source
from qubes_vpn.runtime.resolve import ADDRESSES_MAX, query
from tests.fuzz.fuzz_dns import RESOLVER, Link, answer
from tests.hostile.test_control_packets import after, growth, undisturbed
from tests.unit.engine.packets import channels
from tests.unit.engine.pair import EPOCH, Pair, connected, pair, profiles

YEAR = 365 * 86400


def test_p66_silence_shorter_than_ping_restart_is_sat_out():
    world = pair("tls-crypt").until(connected, limit=5)
    world.wire.cut = True
    after(world, 39)
    world.wire.cut = False
    undisturbed(world, 10)
    world.wire.cut = True
    world.until(lambda one: one.of(do.Ended), limit=60)
    end = world.of(do.Ended)[0]
    assert end.retry
    assert not Pair.of(world, do.OpenForwarding)[1:]


def test_p72_only_the_way_back_is_lost():
    world = pair("tls-crypt").until(connected, limit=5)
    send = world.wire.send

    def one_way(now, datagram, *, to_server):
        if to_server:
            send(now, datagram, to_server=True)

    world.wire.send = one_way
    began = world.time
    world.until(lambda one: one.of(do.Ended), limit=100)
    # keepalive 5 40: the silence is noticed, and not much later
    assert world.time - began < 50
    world.wire.send = send
    world.at_client.clear()
    world.at_server.clear()
    world.until(connected, limit=60)


@pytest.mark.parametrize("jump", [YEAR, -YEAR, 3600, -3600, 10 * YEAR])
@pytest.mark.parametrize("wrap", ["tls-auth", "tls-crypt", "tls-crypt-v2"])
def test_p74_a_jump_of_the_clock_is_not_felt(jump, wrap, monkeypatch):
    """Timers are monotonic; a live session does not look at the date."""
    world = pair(wrap, client={"reneg_sec": 0})
    world.until(connected, limit=5)
    shift = [0.0]
    monkeypatch.setattr(
        Pair,
        "now",
        property(lambda one: Now(one.time, EPOCH + one.time + shift[0])),
    )
    sent = len(world.wire.seen)
    shift[0] = jump
    undisturbed(world, 30)
    # no storm: pings, and the packets of the test, one each way in 0.5 s
    assert len(world.wire.seen) - sent < 200


def test_p68_a_server_that_is_new_drops_the_old_sessions_packets():
    world = pair("tls-crypt").until(connected, limit=5)
    ours, theirs = profiles("tls-crypt")
    fresh = Pair(ours, theirs, seed=9)
    datagrams = [one for _, up, one in world.wire.seen if up]
    before = len(fresh.server._sessions)
    for datagram in datagrams:
        if datagram[0] >> 3 not in (6, 9):
            fresh.server.receive(
                datagram, Source(0, ip_address("192.0.2.99"), 1), fresh.now
            )
    assert len(fresh.server._sessions) == before
    fresh.until(connected, limit=5)


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (
            [f"A 198.51.{n // 250}.{n % 250 + 1}" for n in range(200)],
            ADDRESSES_MAX,
        ),
        (["CNAME vpn.example."] * 9, 0),
        (["CNAME a.example."], 0),
        (["AAAA fd00::1"], 0),
        ([], 0),
        (["A 192.0.2.1"] * 500, 1),
    ],
)
def test_p69_a_resolver_gives_few_addresses_or_none(records, found):
    wire = answer(*records)
    got = query("vpn.example", 4, RESOLVER, lambda _: Link(wire[:4096]))
    assert len(got) <= ADDRESSES_MAX
    if len(wire) <= 4096:
        assert len(got) == found


@pytest.mark.parametrize("wire", [b"", b"\0\0", b"\xff" * 600, bytes(12)])
def test_p69_a_resolver_that_is_silent_or_mad_is_asked_three_times(wire):
    link = Link(wire)
    assert query("vpn.example", 4, RESOLVER, lambda _: link) == []
    assert link.tries == 3 or wire


def test_p69_an_answer_to_another_question_is_none():
    other = answer("A 192.0.2.66").replace(b"\3vpn", b"\3vpm")
    assert query("vpn.example", 4, RESOLVER, lambda _: Link(other)) == []


@pytest.mark.netns
def test_p73_icmp_errors_end_nothing():
    """Port unreachable, from a real kernel, on the connected socket."""
    namespace = Namespace("icmp")
    try:
        namespace.ip("link set lo up")
        with namespace.enter():
            link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        link.connect(("127.0.0.1", 9))
        link.setblocking(False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        client, _ = channels()
        plane = UserspacePlane(link, ours.fileno(), client)
        for _ in range(50):
            theirs.send(b"\x45" + bytes(2) + b"\x1c" + bytes(24))
            plane.pump(0.05, 1.0)
            plane.pump(0.0, 1.0)
        assert client.traffic.tx_packets == 50
        assert {one.split("-")[0] for one in client.drops} == {"link"}
        assert sum(client.drops.values()) >= 10
        plane.close()
        for each in (theirs, ours, link):
            each.close()
    finally:
        namespace.close()


def test_p75_ten_thousand_strangers_are_no_state():
    world = pair("tls-crypt").until(connected, limit=5)
    strangers = pair("tls-crypt", seed=3)
    first = strangers.wire.seen[0][2]
    dice = Random(4)

    def repeat():
        source = Source(
            0, ip_address(dice.getrandbits(32) | 1 << 30), dice.randrange(65536)
        )
        world.server.receive(first, source, world.now)
        world.drain()
        world.wire.queue.clear()
        world.wire.seen.clear()

    for _ in range(3):
        assert growth(repeat) < 256 * 1024
    assert len(world.server._sessions) == 1
    undisturbed(world)
