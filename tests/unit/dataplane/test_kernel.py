"""The kernel's plane, with a keeper that answers and a link that is ours."""

import contextlib
import select
import socket
from dataclasses import replace

import pytest

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.dataplane.base import Slot
from qubes_vpn.dataplane.kernel import KernelPlane, unsuited
from qubes_vpn.dataplane.link import StreamLink
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.timers import PACKET_ID_WARN
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import SessionError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperRefusedError
from tests.unit.keeper.script import Script

SETTINGS = TunnelSettings(ping=2, ping_restart=10, cipher="AES-256-GCM")
OUT = DirectionKeys(b"o" * 32, implicit_iv=b"p" * 8)
IN = DirectionKeys(b"i" * 32, implicit_iv=b"j" * 8)
KEYS = DataKeys(3, 17, "AES-256-GCM", OUT, IN)
COUNTERS = messages.PeerCounters(1000, 500, 10, 5, 1400, 700, 12, 6)


class Driver(Script):
    """Answers as `answers` says, by the request's type."""

    def __init__(self):
        super().__init__()
        self.answers = {
            messages.NewPeer: messages.TunOpened("ovpn-vpn"),
            messages.GetPeer: COUNTERS,
        }

    def answer(self, request):
        return self.answers.get(type(request), messages.Done()), ()


@pytest.fixture
def keeper():
    with Driver() as script:
        yield script.client, script


@pytest.fixture
def link():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def plane(keeper, link):
    plane = KernelPlane(keeper[0], link[0], DataChannel(Traffic()))
    plane.begin(SETTINGS, KEYS)
    return plane


def traffic(plane):
    return plane._channel.traffic


def test_control_packets_come_from_the_link(plane, link):
    data, control = b"\x48" + b"d" * 30, b"\x20" + b"c" * 30
    for packet in (data, control, data):
        link[1].send(packet)
    (descriptor,) = plane.readable()
    assert select.select([descriptor], [], [], 10)[0]
    assert plane.pump(link[0].fileno(), 1.0) == [control]
    assert dict(plane.counters().drops) == {"before-keys": 2}
    plane.send_control(control)
    assert link[1].recv(100) == control


def test_the_keeper_is_told_what_the_engine_decides(plane, keeper):
    plane.install(Slot.PRIMARY, KEYS)
    plane.swap()
    plane.remove(Slot.SECONDARY)
    plane.close()
    new_peer, new_key, *rest = keeper[1].asked
    assert new_peer == messages.NewPeer(17, 2, 10)
    assert (new_key.peer_id, new_key.slot, new_key.key_id) == (17, 0, 3)
    assert new_key.encrypt_key == (b"o" * 32).hex()
    assert new_key.encrypt_nonce == (b"p" * 8).hex()
    assert new_key.decrypt_key == (b"i" * 32).hex()
    assert new_key.decrypt_nonce == (b"j" * 8).hex()
    assert rest == [
        messages.SwapKeys(17),
        messages.RemoveKey(17, 1),
        messages.RemovePeer(17),
    ]
    assert plane.device == "ovpn-vpn"


def test_pings_are_left_to_the_driver(plane, keeper, link):
    plane.send_data(b"ping", 1.0)
    with pytest.raises(BlockingIOError):
        link[1].recv(100, socket.MSG_DONTWAIT)
    plane.apply(replace(SETTINGS, ping_exit=30))
    plane.apply(replace(SETTINGS, ping_exit=30))
    assert keeper[1].asked[1:] == [messages.SetPeer(17, 2, 30)]


def test_traffic_is_what_was_counted_since(plane, keeper):
    plane.refresh(5.0)
    seen = traffic(plane)
    assert (seen.rx_packets, seen.tx_packets) == (12, 6)
    assert (seen.rx_bytes, seen.tx_bytes) == (1400, 700)
    assert seen.tun_bytes == 1500
    assert seen.key_packets == 6
    assert seen.rx_last == 5.0
    seen.restart()
    more = replace(COUNTERS, link_tx_packets=16, link_tx_bytes=1700)
    keeper[1].answers[messages.GetPeer] = more
    plane.refresh(6.0)
    assert (seen.rx_packets, seen.tx_packets, seen.tx_bytes) == (0, 10, 1000)
    assert seen.key_packets == 10
    assert plane.counters().link_tx_bytes == 1700


def test_silence_ends_it_by_the_engines_timer(plane):
    plane.refresh(5.0)
    plane.on_event(messages.PeerEvent(17, "expired"))
    assert traffic(plane).rx_last == 0.0
    plane.refresh(6.0)
    assert traffic(plane).rx_last == 0.0


def test_a_lost_peer_ends_the_session(plane):
    with pytest.raises(SessionError) as caught:
        plane.on_event(messages.PeerEvent(17, "transport-disconnect"))
    assert caught.value.reason == "link-closed"


def test_another_peers_end_is_nothing(plane, keeper):
    plane.on_event(messages.PeerEvent(16, "teardown"))
    plane.swap()
    assert keeper[1].asked[-1] == messages.SwapKeys(17)


def test_worn_out_keys_ask_for_new_ones(plane):
    plane.on_event(messages.PeerEvent(17, "keys-worn-out"))
    assert traffic(plane).key_packets >= PACKET_ID_WARN


def test_a_peer_that_is_gone_is_no_error(plane, keeper):
    gone = messages.Refused("no-peer")
    for request in (messages.GetPeer, messages.SwapKeys, messages.NewKey):
        keeper[1].answers[request] = gone
    plane.refresh(1.0)
    plane.swap()
    plane.install(Slot.SECONDARY, KEYS)
    keeper[1].answers[messages.SwapKeys] = messages.Refused("os-refused")
    with pytest.raises(KeeperRefusedError):
        plane.swap()


@pytest.mark.parametrize(
    ("settings", "keys", "why"),
    [
        ({}, {}, ""),
        ({}, {"cipher": "CHACHA20-POLY1305"}, ""),
        ({}, {"peer_id": None}, "the server gave no peer-id"),
        ({}, {"cipher": "AES-256-CBC"}, "not for AES-256-CBC"),
        ({}, {"epoch": True}, "not for this data format"),
        ({}, {"compression": "stub-v2"}, "not with compression framing"),
        ({"fragment": 1200}, {}, "not with fragment"),
    ],
)
def test_what_the_driver_cannot_do(settings, keys, why):
    found = unsuited(replace(SETTINGS, **settings), replace(KEYS, **keys))
    assert found == why


def test_a_stream_goes_on_in_mid_packet(keeper):
    ours, theirs = (each for each in _tcp_pair())
    with ours, theirs:
        ours.setblocking(False)
        plane = KernelPlane(
            keeper[0], ours, DataChannel(Traffic()), stream=True
        )
        whole = b"\x00\x04\x20abc"
        theirs.send(whole + b"\x00\x05\x20de")
        assert plane.pump(ours.fileno(), 1.0) == [b"\x20abc"]
        assert plane.unready()
        following = StreamLink(ours, lambda *_: None)
        following.resume(plane.link)
        theirs.send(b"fg")
        packets = [bytes(b[:n]) for b, n in following.packets(64)]
        assert packets == [b"\x20defg"]


def test_what_a_full_stream_keeps_is_sent_when_there_is_room(keeper):
    ours, theirs = (each for each in _tcp_pair())
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        plane = KernelPlane(
            keeper[0], ours, DataChannel(Traffic()), stream=True
        )
        (descriptor,) = plane.readable()
        count = 0
        while not plane.link.waiting:
            plane.send_control(b"\x20" + bytes(60_000))
            count += 1
        missing = count * 60_003
        while missing:
            if select.select([descriptor], [], [], 0)[0]:
                assert plane.pump(descriptor, 1.0) == []
            with contextlib.suppress(BlockingIOError):
                missing -= len(theirs.recv(1 << 20))
        plane.pump(descriptor, 1.0)
        assert not select.select([descriptor], [], [], 0)[0], "never at rest"


def _tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]
