"""Keys and data packets under attack: rows P47 to P64."""

from dataclasses import replace

import pytest

from qubes_vpn.crypto.control_wrap import TlsCryptWrap
from qubes_vpn.crypto.replay import ReplayWindow
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.data_channel import SECONDARY
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.control import ControlPacket
from qubes_vpn.wire.opcode import Opcode
from tests.hostile.test_control_packets import after, undisturbed
from tests.unit.engine.packets import channels, ipv4, ipv6, key_pair
from tests.unit.engine.pair import KEY, Faults, connected, pair
from tests.unit.engine.test_client import up


def soft_reset(world, key_id):
    channel = world.client._channel
    return ControlPacket(
        Opcode.P_CONTROL_SOFT_RESET_V1,
        key_id,
        channel.peer_session_id,
        packet_id=0,
    )


def test_p48_a_flood_of_soft_resets_is_one_negotiation():
    world = up("tls-crypt", client={"reneg_sec": 0})
    channel = world.client._channel
    wrap = world.server._sessions
    (session,) = wrap.values()
    for number in range(1000):
        later = session._channel._wrap_of(1)
        packet = soft_reset(world, number % 7 + 1)
        world.client.receive(later.wrap(packet, world.now.unix), world.now)
        assert channel.key.key_id <= 1
    # the server never began one: its answer ends nothing that works
    assert world.client.drops["foreign-key-id"] > 800
    assert world.established
    before = len(world.at_client)
    after(world, 3)
    assert len(world.at_client) > before


def test_p49_a_retired_key_opens_until_the_tran_window_ends():
    world = up("tls-crypt", client={"reneg_sec": 100, "tran_window": 30})
    (server,) = world.server_channels.values()
    key = server.primary
    world.until(lambda one: one.client.status.key_id == 1, limit=200)
    assert world.channel.key(0)
    buffer = bytearray(200)
    size = key.seal_into(memoryview(ipv4()), memoryview(buffer))
    late = bytes(buffer[:size])
    assert world.channel.open(late, world.time) == ipv4()
    world.until(lambda one: one.channel.primary.key_id == 1, limit=60)
    after(world, 30)
    assert not world.channel.key(0)
    assert world.channel.open(late, world.time) is None
    assert world.channel.drops == {"unknown-key": 1}


def test_p50_no_data_of_a_key_that_is_not_complete():
    world = up("tls-crypt", client={"reneg_sec": 0})
    server = next(iter(world.server_channels.values()))
    for key_id in range(1, 8):
        ours, _ = key_pair(peer_id=server.primary.key_id)
        early, _ = channels(key_id=key_id)
        assert world.channel.open(early.seal(ipv4(), 1.0), 1.0) is None
        assert ours.key_id == 0
    assert world.channel.drops == {"unknown-key": 7}


@pytest.mark.parametrize("seed", range(3))
def test_p51_every_packet_that_leaves_belongs_to_a_live_session(seed):
    """Two engines, faults, restarts: nothing stale is ever sent."""
    faults = Faults(loss=0.1, duplicate=0.1, delay=0.3)
    world = pair("tls-crypt", seed=seed, faults=faults, reneg_sec=20)
    sessions = {}
    send = world.wire.send

    def watch(now, datagram, *, to_server):
        opcode, key_id = datagram[0] >> 3, datagram[0] & 7
        if opcode not in (6, 9):
            channel = world.client._channel
            # a goodbye may be the last of its session
            if to_server and channel is not None:
                assert datagram[1:9] == channel.session_id
            if key_id == 0:
                fresh = TlsCryptWrap(KEY, is_server=to_server)
                packet = fresh.unwrap(datagram, world.now.unix)
                assert packet.session_id == datagram[1:9]
                if opcode == Opcode.P_CONTROL_HARD_RESET_SERVER_V2:
                    # made without state: the same for the same question
                    return send(now, datagram, to_server=to_server)
                ids = sessions.setdefault((datagram[1:9], to_server), set())
                assert datagram[9:17] not in ids, "a packet id twice"
                ids.add(datagram[9:17])
            else:
                with pytest.raises(UntrustedInputError):
                    TlsCryptWrap(KEY, is_server=to_server).unwrap(
                        datagram, world.now.unix
                    )
        return send(now, datagram, to_server=to_server)

    world.wire.send = watch
    for _ in range(4):
        world.until(connected, limit=200)
        after(world, 50)
        world.client.stop(world.now)
        world.drain()
        world.effects.clear()
        world.at_client.clear()
        world.at_server.clear()
        world.connect()
    assert len(sessions) >= 6


def test_p54_depths_of_the_window():
    window = ReplayWindow(64)
    assert window.accept(100, 1.0)
    assert window.accept(100 - 63, 1.0)
    assert not window.accept(100 - 64, 1.0)
    assert not window.accept(100 - 65, 1.0)


def test_p55_a_stream_may_have_gaps_and_never_goes_back():
    client, server = channels()
    packets = [server.seal(ipv4(bytes([n]) * 30), 1.0) for n in range(6)]
    for number in (0, 2, 5):
        assert client.open(packets[number], 1.0) is not None
    for number in (0, 2, 5):
        assert client.open(packets[number], 1.0) is None
    assert client.drops == {"replay": 3}


def test_p57_a_wrong_tag_counts_and_the_key_is_renewed():
    world = up(client={"reneg_sec": 0})
    good = next(iter(world.server_channels.values())).seal(ipv4(), 1.0)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    for _ in range(100):
        assert world.channel.open(bad, 1.0) is None
    assert world.traffic.decrypt_failures == 100
    world.traffic.decrypt_failures = 1 << 35
    world.until(lambda one: one.client.status.key_id == 1, limit=60)


@pytest.mark.parametrize("peer_id", [0, 6, 0xFFFFFF])
def test_p60_a_foreign_peer_id_is_not_authentic(peer_id):
    client, server = channels()
    packet = bytearray(server.seal(ipv4(), 1.0))
    packet[1:4] = peer_id.to_bytes(3)
    assert client.open(bytes(packet), 1.0) is None
    assert client.drops == {"bad-tag": 1}
    for size in range(4):
        assert client.open(bytes(packet[:size]), 1.0) is None
    v1 = bytes([6 << 3]) + bytes(packet[4:])
    assert client.open(v1, 1.0) is None
    assert client.traffic.rx_packets == 0


MARTIANS = (
    b"",
    b"\x45",
    b"\x00" * 60,
    b"\x55" * 60,
    ipv4()[:-5],
    b"\x44" + ipv4()[1:],
    b"\x4f" + ipv4()[1:],
    ipv6()[:39],
    ipv6()[:-1],
    b"\x7f" * 100,
)


@pytest.mark.parametrize("content", MARTIANS[1:])
def test_p62_what_is_no_ip_packet_stops_at_the_client(content):
    client, server = channels()
    assert client.open(server.seal(content, 1.0), 1.0) is None
    assert sum(client.drops.values()) == 1


@pytest.mark.parametrize(
    "source", [b"\x0a\x09\0\1", b"\x7f\0\0\1", b"\x0a\x09\0\3", bytes(4)]
)
def test_p62_a_client_speaks_for_its_own_address_alone(source):
    world = up()
    (number,) = world.server_channels
    server = world.server_channels[number]
    server.sources = {b"\x0a\x09\0\2"}
    sealed = world.channel.seal(ipv4(source=source), 1.0)
    assert server.open(sealed, 1.0) is None
    assert server.drops == {"bad-source": 1}
    sealed = world.channel.seal(ipv4(source=b"\x0a\x09\0\2"), 1.0)
    assert server.open(sealed, 1.0) is not None


def test_p50_a_key_in_the_second_slot_never_seals():
    client, _ = channels()
    ours, _ = key_pair(key_id=1)
    client.install(SECONDARY, ours)
    assert client.seal(ipv4(), 1.0)[0] & 7 == 0


def test_p47_an_end_in_the_middle_of_a_negotiation():
    world = up("tls-crypt", client={"reneg_sec": 10})
    world.until(lambda one: one.client._channel.key.key_id == 1, limit=20)
    world.wire.queue.clear()
    world.client.stop(world.now)
    world.drain()
    assert isinstance(world.effects[-1], do.Ended)
    assert not world.law.forwarding
    again = pair("tls-crypt", client={"reneg_sec": 10})
    again.until(connected, limit=5)
    undisturbed(again, 40)
    assert replace(again.client.state.settings) == again.client.state.settings
