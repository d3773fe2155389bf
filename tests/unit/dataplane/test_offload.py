"""The offload plane over real sockets: runs, streams, and refusals."""

import errno
import socket
import struct
from types import SimpleNamespace

import pytest

from qubes_vpn.dataplane import choose, receive
from qubes_vpn.dataplane.link import UDP_SEGMENT, DatagramLink
from qubes_vpn.dataplane.offload import TUN_F_USO4, OffloadPlane
from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.errors import SessionError
from tests.unit.dataplane.oracle import UDP, Packet, cut_written
from tests.unit.dataplane.rig import End, tcp_pair, udp_pair
from tests.unit.engine.packets import ipv4, key_pair

PAIRS = {"udp": udp_pair, "tcp": tcp_pair}
BULK = Packet(bytes(range(250)) * 120, mss=1400)
CONTROL = b"\x20" + b"c" * 60


def offload(link, tun, channel, *, stream):
    return OffloadPlane(link, tun, channel, stream=stream, offloads=TUN_F_USO4)


@pytest.fixture(params=PAIRS)
def ends(request):
    """Ours with offloads; the other one packet by packet."""
    stream = request.param == "tcp"
    ours, theirs = key_pair()
    left, right = PAIRS[request.param]()
    client = End(left, ours, stream, offload)
    server = End(right, theirs, stream)
    yield client, server
    client.close()
    server.close()


def arrived(end, count):
    packets = []
    while len(packets) < count:
        end.pump()
        packets += end.received()
    return packets


@pytest.mark.parametrize(
    "packet",
    [BULK, Packet(bytes(20_000), proto=UDP, mss=1200), Packet(b"x" * 30)],
)
def test_up(ends, packet):
    client, server = ends
    client.app.send(packet.read())
    client.app.send(packet.read())
    client.pump()
    expected = packet.cut() * 2
    assert arrived(server, len(expected)) == expected
    counters = client.plane.counters()
    assert counters.tx_packets == len(expected)
    assert counters.tx_bytes == sum(map(len, expected))
    assert client.drops() == server.drops() == {}


def test_down(ends):
    client, server = ends
    for part in BULK.cut():
        server.app.send(part)
    server.pump()
    written = []
    while sum(len(cut_written(each)) for each in written) < len(BULK.cut()):
        client.pump()
        written += client.received()
    assert [p for each in written for p in cut_written(each)] == BULK.cut()
    assert len(written) < len(BULK.cut())
    assert client.plane.counters().rx_bytes == sum(map(len, BULK.cut()))
    assert client.drops() == {}


def test_acknowledgements_of_an_upload_are_not_held_back(ends, monkeypatch):
    """A batch may grow while more comes in than goes out, and only then."""
    client, server = ends
    waits = []
    still = SimpleNamespace(monotonic=lambda: 100.0, sleep=waits.append)
    monkeypatch.setattr(receive, "time", still)
    client.plane._pace = receive.Pace()

    def move(times, up, down):
        for _ in range(times):
            for _ in range(up):
                client.app.send(BULK.read())
            for _ in range(down):
                server.plane.send_data(ipv4(), 1.0)
            for end in (client, server):
                end.pump()
                end.received()

    move(20, up=1, down=8)
    assert not waits
    move(60, up=0, down=8)
    assert waits


def test_between_two_of_us(ends):
    client, server = ends
    server.plane.let_go()
    server.plane = offload(
        server.link,
        server.tun.fileno(),
        server.channel,
        stream=server.plane.link.stream,
    )
    for _ in range(3):
        client.app.send(BULK.read())
        client.pump()
    written, wanted = [], BULK.cut() * 3
    while len(got := [p for w in written for p in cut_written(w)]) < len(
        wanted
    ):
        server.pump()
        written += server.received()
    assert got == wanted
    assert server.drops() == {}


def test_control_among_data(ends):
    client, server = ends
    server.plane.send_control(CONTROL)
    server.plane.send_data(ipv4(), 1.0)
    server.plane.send_control(b"\x20" + b"d" * 3000)
    met = []
    while len(met) < 2:
        met += client.pump()
    assert met == [CONTROL, b"\x20" + b"d" * 3000]


def test_the_handshakes_plane_hands_over(ends):
    client, server = ends
    client.plane.let_go()
    client.plane = UserspacePlane(
        client.link,
        client.tun.fileno(),
        client.channel,
        stream=client.plane.link.stream,
    )
    server.plane.send_control(CONTROL)
    while not client.pump():
        pass
    # Half of a packet, where the transport has halves.
    sealed = server.channel.seal(ipv4(), 1.0)
    framed = len(sealed).to_bytes(2) + sealed
    stream = client.plane.link.stream
    if stream:
        server.link.send(framed[:20])
        client.pump()
    client.plane = choose.with_offloads(
        client.plane,
        client.link,
        client.tun.fileno(),
        client.channel,
        stream=stream,
        offloads=0,
    )
    server.link.send(framed[20:] if stream else sealed)
    assert [each[10:] for each in arrived(client, 1)] == [ipv4()]


def test_an_empty_frame_ends_the_session():
    ours, _ = key_pair()
    left, right = tcp_pair()
    client = End(left, ours, True, offload)
    right.send(b"\x00\x00\x01")
    with pytest.raises(SessionError) as caught:
        arrived(client, 1)
    assert caught.value.reason == "link-framing"
    client.close()
    right.close()


def test_nonsense_of_the_device_is_counted(ends):
    client, _ = ends
    head = struct.pack("=BBHHHH", 1, 1, 0, 1400, 20, 16)
    client.app.send(head + b"\x45" * 30)
    client.app.send(struct.pack("=BBHHHH", 1, 0, 0, 0, 60, 16) + b"\x45" * 30)
    client.app.send(struct.pack("=BBHHHH", 1, 3, 0, 9, 20, 16) + b"\x45" * 90)
    client.pump()
    assert client.drops() == {"tun-offload": 3}


class Refusing:
    """A UDP socket whose sendmsg says no; all else is real."""

    def __init__(self, sock, number):
        self._sock = sock
        self.number = number
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def sendmsg(self, *_):
        self.calls += 1
        raise OSError(self.number, "refused")


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_without_segmentation_they_go_one_by_one_for_good(number):
    left, right = udp_pair()
    refusing = Refusing(left, number)
    dropped = []
    link = DatagramLink(refusing, dropped.append)
    run = memoryview(b"a" * 100 + b"b" * 100 + b"c" * 50)
    for _ in range(2):
        link.send_run(run, 100, 3)
        got = [right.recv(200) for _ in range(3)]
        assert got == [b"a" * 100, b"b" * 100, b"c" * 50]
    assert refusing.calls == 1
    assert dropped == []
    left.close()
    right.close()


def test_above_the_paths_mtu_they_go_one_by_one():
    left, right = udp_pair()
    refusing = Refusing(left, errno.EMSGSIZE)
    link = DatagramLink(refusing, print)
    link.send_run(memoryview(b"a" * 2800), 1400, 2)
    link.send_run(memoryview(b"a" * 2800), 1400, 2)
    assert refusing.calls == 1
    link.send_run(memoryview(b"a" * 200), 100, 2)
    assert refusing.calls == 2
    for size in (1400, 1400, 1400, 1400, 100, 100):
        assert len(right.recv(2000)) == size
    left.close()
    right.close()


def test_what_a_full_socket_did_not_take_goes_later():
    left, right = udp_pair()
    refusing = Refusing(left, errno.EAGAIN)
    dropped = []
    link = DatagramLink(refusing, dropped.append)
    link.send_run(memoryview(b"a" * 250), 100, 3)
    assert link.waiting
    assert not link.has_room()
    link.send_run(memoryview(b"b" * 200), 100, 2)
    link.sock = left
    link.flush()
    assert not link.waiting
    sizes = [right.recv(200) for _ in range(5)]
    assert [each[:1] for each in sizes] == [b"a"] * 3 + [b"b"] * 2
    assert [len(each) for each in sizes] == [100, 100, 50, 100, 100]
    assert dropped == []
    left.close()
    right.close()


def test_the_kernel_segments_as_we_say():
    left, right = udp_pair()
    link = DatagramLink(left, print)
    data = bytes(range(200)) * 400
    link.send_run(memoryview(data[:79_999]), 1000, 80)
    got = [right.recv(2000) for _ in range(80)]
    assert b"".join(got) == data[:79_999]
    assert {len(each) for each in got} == {1000, 999}
    # It was the kernel that did it.
    option = left.getsockopt(socket.SOL_UDP, UDP_SEGMENT)
    assert option == 0
    assert link._gso
    left.close()
    right.close()
