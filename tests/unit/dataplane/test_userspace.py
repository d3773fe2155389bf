"""The scalar plane: both transports, and what the network does to them."""

import errno
import os
import socket

import pytest

from qubes_vpn.dataplane.base import Slot
from qubes_vpn.dataplane.link import QUEUE_MAX, DatagramLink, slug
from qubes_vpn.errors import SessionError
from tests.unit.dataplane.rig import End, tcp_pair, udp_pair
from tests.unit.engine.packets import ipv4, key_pair

CONTROL = b"\x20" + b"c" * 60
PAIRS = {"udp": udp_pair, "tcp": tcp_pair}


@pytest.fixture(params=PAIRS)
def ends(request):
    stream = request.param == "tcp"
    ours, theirs = key_pair()
    left, right = PAIRS[request.param]()
    client, server = End(left, ours, stream), End(right, theirs, stream)
    yield client, server
    client.close()
    server.close()


@pytest.fixture
def tcp():
    ours, theirs = key_pair()
    left, right = tcp_pair()
    client, server = End(left, ours, True), End(right, theirs, True)
    yield client, server
    client.close()
    server.close()


@pytest.fixture
def udp():
    ours, theirs = key_pair()
    left, right = udp_pair()
    client, server = End(left, ours, False), End(right, theirs, False)
    yield client, server
    client.close()
    server.close()


def test_packets_go_both_ways_in_order(ends):
    client, server = ends
    up = [ipv4(bytes([n]) * (n * 7)) for n in range(100)]
    for packet in up:
        client.app.send(packet)
    assert client.pump() == []
    assert server.pump() == []
    assert server.received() == up
    server.app.send(up[3])
    server.pump()
    client.pump()
    assert client.received() == [up[3]]
    assert client.drops() == server.drops() == {}


def test_control_packets_are_handed_out(ends):
    client, server = ends
    server.plane.send_control(CONTROL)
    server.plane.send_data(ipv4(), 1.0)
    server.plane.send_control(CONTROL + b"2")
    met = []
    while len(met) < 2:
        met += client.pump()
    assert met == [CONTROL, CONTROL + b"2"]
    assert client.received() == [ipv4()]


def test_counters(ends):
    client, server = ends
    client.app.send(ipv4())
    client.pump()
    server.pump()
    sent, got = client.plane.counters(), server.plane.counters()
    assert (sent.tx_packets, sent.tx_bytes) == (1, len(ipv4()))
    assert (got.rx_packets, got.rx_bytes) == (1, len(ipv4()))
    assert sent.link_tx_bytes == len(ipv4()) + 24
    assert sent.link_tx_bytes <= got.link_rx_bytes
    assert client.channel.traffic.tun_bytes == len(ipv4())


def test_the_loop_rests_when_there_is_nothing(ends):
    client, _ = ends
    import select

    (descriptor,) = client.plane.readable()
    watch = select.poll()
    watch.register(descriptor, select.POLLIN)
    assert watch.poll(0) == []
    client.app.send(ipv4())
    assert watch.poll(0)
    client.pump()
    assert watch.poll(0) == []


def test_without_keys_nothing_leaves(udp):
    client, server = udp
    client.plane.remove(Slot.PRIMARY)
    client.app.send(ipv4())
    client.pump()
    assert server.pump() == []
    assert server.plane.counters().link_rx_bytes == 0
    assert client.drops() == {"no-key": 1}


def test_close_forgets_the_keys(udp):
    client, _ = udp
    client.plane.close()
    assert client.channel.primary is None


def test_bad_datagrams_are_counted(udp):
    client, server = udp
    server.link.send(b"")
    server.link.send(b"\x48" + b"z" * 100)
    server.link.send(b"\x4f" + b"z" * 100)
    server.link.send(b"\x48")
    client.pump()
    assert client.drops() == {
        "bad-tag": 1,
        "not-data": 1,
        "short-data": 1,
        "unknown-key": 1,
    }
    assert client.received() == []


def test_a_refused_datagram_does_not_cost_the_next_one(udp):
    client, server = udp
    address = server.link.getsockname()
    server.plane.close()
    server.link.close()
    client.plane.send_data(ipv4(), 1.0)  # answered by port unreachable
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(address)
    listener.settimeout(10)
    client.plane.send_data(ipv4(), 1.0)  # ECONNREFUSED, then sent
    assert listener.recv(2000)
    listener.close()
    assert client.drops() == {}


def test_an_error_on_receive_is_counted(udp):
    client, server = udp
    server.plane.close()
    server.link.close()
    client.plane.send_data(ipv4(), 1.0)
    client.pump()
    assert client.drops() == {"link-refused": 1}


def test_a_datagram_that_is_too_big_is_counted(udp):
    client, _ = udp
    client.plane.send_data(ipv4(b"x" * 65_500), 1.0)
    assert client.drops() == {"link-too-big": 1}


def test_a_full_socket_keeps_one_datagram_and_then_says_so():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.setblocking(False)
    dropped = []
    link = DatagramLink(left, dropped.append)
    sent = 0
    while link.has_room():
        assert link.send(b"%d" % sent)
        sent += 1
    assert link.waiting
    assert not link.send(b"lost")
    assert dropped == ["link-full"]
    right.setblocking(False)
    got = [right.recv(100)]
    link.flush()
    assert not link.waiting
    while len(got) < sent:
        got.append(right.recv(100))
    assert got == [b"%d" % n for n in range(sent)]
    left.close()
    right.close()


def test_a_full_stream_holds_the_tun_back_and_loses_nothing(tcp):
    client, server = tcp
    packet = ipv4(b"y" * 1400)
    wanted, sent, held = 4000, 0, False
    arrived = server.channel.traffic
    while arrived.rx_packets < wanted:
        try:
            while sent < wanted:
                client.app.send(packet)
                sent += 1
        except BlockingIOError:
            pass
        client.pump()
        room = client.plane._link.has_room()
        held = held or not room
        assert client.plane._link._queued < QUEUE_MAX + len(packet) + 26
        if sent == wanted or not room:
            server.pump()
            server.received()
    assert held
    assert client.drops() == {}
    assert server.drops().keys() <= {"tun-full"}


def test_a_stream_arrives_in_any_pieces(tcp):
    client, server = tcp
    packets = [ipv4(bytes([n]) * 50) for n in range(5)]
    stream = b""
    for packet in packets:
        datagram = client.channel.seal(packet, 1.0)
        stream += len(datagram).to_bytes(2) + datagram
    for index in range(len(stream)):
        client.link.send(stream[index : index + 1])
        server.pump()
    assert server.received() == packets
    assert server.drops() == {}


def test_a_closed_stream_ends_the_session(tcp):
    client, server = tcp
    server.link.close()
    with pytest.raises(SessionError) as caught:
        client.pump()
    assert caught.value.reason == "link-closed"


def test_a_broken_stream_ends_the_session_on_sending(tcp):
    client, server = tcp
    server.link.close()
    client.plane.send_control(CONTROL)  # answered by a reset
    with pytest.raises(SessionError) as caught:
        client.plane.send_control(CONTROL)
    assert caught.value.reason == "link-closed"


def test_an_empty_frame_ends_the_session(tcp):
    client, server = tcp
    server.link.send(b"\x00\x00\x01")
    with pytest.raises(SessionError) as caught:
        client.pump()
    assert caught.value.reason == "link-framing"


def test_a_tun_that_fails_ends_the_session(udp):
    client, _ = udp
    os.set_blocking(client.tun.fileno(), False)
    with pytest.raises(SessionError) as caught:
        client.plane._tun_failed(OSError(errno.EBADFD, "gone"))
    assert caught.value.reason == "tun-gone"


def test_refusals_have_stable_names():
    assert slug("link", OSError(errno.EPERM, "")) == "link-filtered"
    assert slug("tun", OSError(errno.EIO, "")) == "tun-down"
    assert slug("link", OSError(errno.EDOM, "")) == "link-other"
