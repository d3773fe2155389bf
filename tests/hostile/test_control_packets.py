"""Control packets that a stranger or a hostile peer sends: rows P01 to P18.

Both engines, a wire and a virtual clock: what is sent and what is kept is
counted to the packet.
"""

import math
import tracemalloc
from dataclasses import replace
from random import Random

import pytest

from qubes_vpn.crypto.control_wrap import (
    METADATA_USER,
    PlainWrap,
    TlsCryptWrap,
    wrap_client_key,
)
from qubes_vpn.engine import server_effects as srv
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.server import ServerEngine
from qubes_vpn.engine.session import OUTER_HEADERS
from qubes_vpn.engine.states import Established
from qubes_vpn.wire.control import ControlPacket, encode_early_negotiation
from qubes_vpn.wire.opcode import Opcode
from tests.unit.engine.pair import (
    EPOCH,
    HERE,
    KEY,
    SERVER_KEY,
    Pair,
    connected,
    pair,
    profiles,
)
from tests.unit.engine.test_server_hello import v2_wrap

SID = b"stranger"
RESET = Opcode.P_CONTROL_HARD_RESET_CLIENT_V2
ANSWER = Opcode.P_CONTROL_HARD_RESET_SERVER_V2
MEMORY = 256 * 1024


def after(world, seconds):
    end = world.time + seconds
    return world.until(lambda one: one.time >= end, limit=seconds + 1)


def undisturbed(world, seconds=5):
    """Nothing was lost, and nothing began again."""
    before = len(world.at_client), len(world.at_server)
    after(world, seconds)
    assert world.established
    assert world.restarts == 0
    assert len(world.at_client) > before[0]
    assert len(world.at_server) > before[1]
    assert not world.channel.drops


def growth(repeat):
    """Bytes that 2,000 more repetitions leave behind."""
    tracemalloc.start()
    try:
        for _ in range(500):
            repeat()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(2000):
            repeat()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_p01_resets_are_answered_once_seldom_and_shortly():
    server = ServerEngine(profiles("plain")[1], entropy=Random(1).randbytes)
    packet = PlainWrap().wrap(ControlPacket(RESET, 0, SID, packet_id=0), 0)
    for _ in range(400):
        server.receive(packet, HERE, Now(1.0, EPOCH))
    answers = []
    while (effect := server.poll()) is not None:
        assert isinstance(effect, srv.SendTo)
        answers.append(effect.datagram)
    assert len(answers) <= 100
    assert all(len(answer) <= 2 * len(packet) for answer in answers)
    # nothing waits to be sent again, and nobody is remembered
    assert server.deadline() == math.inf
    assert not server._sessions


def test_p06_a_wrapped_key_again_and_again_in_mid_session():
    world = pair("tls-crypt-v2").until(connected, limit=5)
    wkc = wrap_client_key(SERVER_KEY, KEY, bytes([METADATA_USER]))
    (session,) = world.server._sessions.values()
    wrap = TlsCryptWrap(KEY, is_server=False, start=5000)

    def repeat():
        for opcode in (
            Opcode.P_CONTROL_HARD_RESET_CLIENT_V3,
            Opcode.P_CONTROL_WKC_V1,
        ):
            packet = ControlPacket(
                opcode, 0, session._channel.peer_session_id, packet_id=0
            )
            datagram = wrap.wrap(packet, world.now.unix) + wkc
            world.server.receive(datagram, HERE, world.now)
            world.drain()
            world.wire.queue.clear()
            world.wire.seen.clear()

    assert growth(repeat) < MEMORY
    assert len(world.server._sessions) == 1
    undisturbed(world)


@pytest.mark.parametrize("asked", [True, False])
def test_p07_the_key_is_sent_again_only_when_the_answer_asks_for_it(asked):
    ours, theirs = profiles("tls-crypt-v2")
    world = Pair(ours, theirs)
    sid = world.client._channel.session_id
    world.wire.queue.clear()
    world.wire.seen.clear()
    answer = ControlPacket(
        *(ANSWER, 0, b"a server", (0,), sid, 0),
        encode_early_negotiation(resend_wkc=asked) + b"\0\x63\0\2xx",
    )
    wrap = TlsCryptWrap(KEY, is_server=True)
    world.client.receive(wrap.wrap(answer, world.now.unix), world.now)
    world.drain()
    opcodes = {datagram[0] >> 3 for _, _, datagram in world.wire.seen}
    assert (int(Opcode.P_CONTROL_WKC_V1) in opcodes) is asked
    largest = max(len(datagram) for _, _, datagram in world.wire.seen)
    assert largest + OUTER_HEADERS <= ours.max_packet_size


def test_p07_a_length_that_overruns_is_dropped():
    ours, theirs = profiles("tls-crypt-v2")
    world = Pair(ours, theirs)
    sid = world.client._channel.session_id
    answer = ControlPacket(
        ANSWER, 0, b"a server", (0,), sid, 0, b"\0\1\xff\xff\0"
    )
    wrap = TlsCryptWrap(KEY, is_server=True)
    world.client.receive(wrap.wrap(answer, world.now.unix), world.now)
    world.drain()
    world.wire.queue.clear()
    assert not isinstance(world.client.state, Established)


@pytest.mark.parametrize(
    "opcode", [RESET, Opcode.P_CONTROL_HARD_RESET_CLIENT_V3]
)
def test_p10_a_clients_reset_is_none_for_a_client(opcode):
    world = pair("plain").until(connected, limit=5)
    for sid in (SID, world.client._channel.peer_session_id):
        packet = ControlPacket(opcode, 0, sid, packet_id=0)
        world.client.receive(PlainWrap().wrap(packet, 0), world.now)
    assert world.client.drops == {"foreign-session": 1, "wrong-role": 1}
    undisturbed(world)


def test_p10_a_servers_reset_is_none_for_a_server():
    world = pair("plain").until(connected, limit=5)
    packet = ControlPacket(ANSWER, 0, SID, packet_id=0)
    world.server.receive(PlainWrap().wrap(packet, 0), HERE, world.now)
    assert sum(world.server.drops.values()) == 1
    undisturbed(world)


@pytest.mark.parametrize("key_id", range(1, 8))
@pytest.mark.parametrize("early", [True, False])
def test_p11_a_reset_has_key_id_zero(key_id, early):
    ours, theirs = profiles("plain")
    world = Pair(ours, theirs)
    if not early:
        world.until(connected, limit=5)
    sid = world.client._channel.session_id
    peer = world.client._channel.peer_session_id or SID
    for opcode in (ANSWER, Opcode.P_CONTROL_V1, Opcode.P_ACK_V1):
        number = None if opcode is Opcode.P_ACK_V1 else 0
        packet = ControlPacket(opcode, key_id, peer, (0,), sid, number)
        world.client.receive(PlainWrap().wrap(packet, 0), world.now)
    assert sum(world.client.drops.values()) == 3
    assert set(world.client.drops) <= {
        # later keys are in a wrap of their own
        *("bad-reset", "foreign-key-id", "no-session", "truncated-wrap"),
    }
    for session in world.server._sessions.values():
        peer = session._channel.peer_session_id
    packet = ControlPacket(RESET, key_id, peer, packet_id=0)
    world.server.receive(PlainWrap().wrap(packet, 0), HERE, world.now)
    assert sum(world.server.drops.values()) == 1
    world.until(connected, limit=5)
    undisturbed(world)


def test_p12_only_its_own_session_id_reaches_a_session():
    world = pair("plain").until(connected, limit=5)
    channel = world.client._channel
    for session_id in (bytes(8), b"\xff" * 8, SID):
        for opcode in (Opcode.P_CONTROL_V1, Opcode.P_ACK_V1):
            number = None if opcode is Opcode.P_ACK_V1 else 9
            packet = ControlPacket(
                opcode, 0, session_id, (0,), channel.session_id, number
            )
            world.client.receive(PlainWrap().wrap(packet, 0), world.now)
    assert world.client.drops == {"foreign-session": 6}
    undisturbed(world)


@pytest.mark.parametrize("number", [1, 2**31, 2**32 - 1])
def test_p13_an_ack_of_what_was_not_sent_changes_nothing(number):
    world = pair("plain").until(connected, limit=5)
    channel = world.client._channel
    reliable = channel.key.reliable
    before = reliable.deadline()
    packet = ControlPacket(
        *(Opcode.P_ACK_V1, 0, channel.peer_session_id),
        *((number,) * 8, channel.session_id),
    )
    world.client.receive(PlainWrap().wrap(packet, 0), world.now)
    assert reliable.deadline() == before
    undisturbed(world)


@pytest.mark.parametrize("ahead", [12, 10**6, 2**31, 2**32 - 1])
def test_p15_a_message_number_beyond_the_window_is_not_kept(ahead):
    world = pair("plain").until(connected, limit=5)
    channel = world.client._channel
    reliable = channel.key.reliable
    kept = len(reliable._received)
    packet = ControlPacket(
        *(Opcode.P_CONTROL_V1, 0, channel.peer_session_id, (), None),
        *((reliable._receive_id + ahead) % 2**32, b"x" * 100),
    )
    world.client.receive(PlainWrap().wrap(packet, 0), world.now)
    assert len(reliable._received) == kept
    undisturbed(world)


@pytest.mark.parametrize("number", [1, 2, 2**32 - 1])
def test_p17_a_hard_reset_is_message_zero(number):
    ours, theirs = profiles("plain")
    world = Pair(ours, theirs)
    sid = world.client._channel.session_id
    packet = ControlPacket(ANSWER, 0, SID, (0,), sid, number)
    world.client.receive(PlainWrap().wrap(packet, 0), world.now)
    assert world.client.drops == {"bad-reset": 1}
    packet = ControlPacket(RESET, 0, SID, packet_id=number)
    world.server.receive(PlainWrap().wrap(packet, 0), HERE, world.now)
    assert not world.server._sessions
    assert sum(world.server.drops.values()) == 1
    world.until(connected, limit=5)


def test_p03_noise_leaves_nothing_behind():
    profile = replace(profiles("tls-crypt")[1], connect_freq_initial=(0, 0))
    server = ServerEngine(profile, entropy=Random(1).randbytes)
    client = pair("tls-crypt").until(connected, limit=5).client
    dice = Random(2)

    def repeat():
        noise = dice.randbytes(dice.randrange(1, 200))
        server.receive(noise, HERE, Now(1.0, EPOCH))
        if noise[0] >> 3 not in (6, 9):
            client.receive(noise, Now(10.0, EPOCH + 10))

    assert growth(repeat) < MEMORY
    assert server.poll() is None
    assert not server._sessions


def test_p06_first_packets_with_any_length_of_key_leave_nothing():
    profile = profiles("tls-crypt-v2")[1]
    server = ServerEngine(profile, entropy=Random(1).randbytes)
    packet = ControlPacket(
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V3, 0, SID, packet_id=0
    )
    good = v2_wrap().wrap(packet, EPOCH)
    for length in range(0x10000):
        if length != 291:
            changed = good[:-2] + length.to_bytes(2)
            server.receive(changed, HERE, Now(1.0, EPOCH))
    assert server.poll() is None
    assert not server._sessions
    assert set(server.drops) <= {"bad-wkc-length", "bad-wkc"}
