"""The offload plane carries the same packets as one by one, to the byte."""

import random
import socket
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.crypto.replay import ReplayWindow
from qubes_vpn.dataplane.offload import TUN_F_USO4, OffloadPlane
from qubes_vpn.dataplane.seal import Sealer
from qubes_vpn.dataplane.segment import VNET, SuperPacket, finish_checksum
from qubes_vpn.engine.cbc_key import CbcKey
from qubes_vpn.engine.data_channel import PRIMARY
from tests.unit.dataplane.oracle import (
    ACK,
    CWR,
    FIN,
    PSH,
    TCP,
    UDP,
    Packet,
    cut_written,
)
from tests.unit.engine.packets import channels, key_pair

ports = st.sampled_from([(5201, 40000), (443, 50001)])
options = st.sampled_from(
    [b"", b"\x01\x01\x08\x0a" + b"\x12" * 8, b"\x01" * 40]
)


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@st.composite
def super_packets(draw, proto=None):
    mss = draw(st.one_of(st.integers(1, 40), st.integers(500, 1460)))
    size = draw(st.integers(1, min(60_000, mss * 64)))
    return Packet(
        draw(
            st.sampled_from([b"\0" * size, content(size, size), b"\xff" * size])
        ),
        ipv6=draw(st.booleans()),
        proto=proto or draw(st.sampled_from([TCP, UDP])),
        ports=draw(ports),
        ident=draw(st.sampled_from([0, 7, 0xFFF0, 0xFFFF])),
        sequence=draw(st.sampled_from([0, 1, 0xFFFFFFFF, 0xFFFF0000, 12345])),
        flags=draw(st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | CWR])),
        options=draw(options),
        mss=mss,
    )


class Collector:
    """A link that keeps what is sent, cut as UDP_SEGMENT cuts."""

    def __init__(self, stream=False):
        self.stream = stream
        self.sent = []
        self.calls = 0

    def send(self, datagram):
        self.sent.append(bytes(datagram))
        return True

    def send_run(self, run, size, count):
        parts = [bytes(run[at : at + size]) for at in range(0, len(run), size)]
        assert len(parts) == count
        self.sent += parts
        self.calls += 1


def as_read(packet: Packet):
    read = packet.read()
    data = np.zeros(6 + len(read), np.uint8)
    data[6:] = np.frombuffer(read, np.uint8)
    return VNET.unpack_from(read), data.data[16:], data[16:]


def sealed(sealer: Sealer, packet: Packet) -> None:
    vnet, view, data = as_read(packet)
    if vnet[1]:
        count = sealer.add_segments(SuperPacket(view, data, vnet), 1.0)
        assert count == len(packet.cut())
    else:
        finish_checksum(view, vnet[4], vnet[5])
        assert sealer.add(view, 1.0)


@given(
    st.lists(super_packets(), min_size=1, max_size=4),
    st.sampled_from(
        [
            {"cipher": "AES-256-GCM", "peer_id": None},
            {"cipher": "CHACHA20-POLY1305", "peer_id": 9},
            {"cipher": "AES-256-GCM", "epoch": True},
            {"cipher": "CHACHA20-POLY1305", "epoch": True},
        ]
    ),
)
def test_what_is_sealed_together_opens_one_by_one(packets, fields):
    client, server = channels(**fields)
    link = Collector()
    sealer = Sealer(link, client)
    for packet in packets:
        sealed(sealer, packet)
    sealer.flush()
    expected = [part for packet in packets for part in packet.cut()]
    assert [server.open(each, 1.0) for each in link.sent] == expected
    assert not server.drops
    assert client.traffic.tx_packets == len(expected)
    assert client.primary.sent == len(expected)
    assert client.traffic.tx_bytes == sum(map(len, link.sent))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(False, 0), (False, 12), (True, 0), (True, 40)]),
            st.sampled_from([TCP, TCP, TCP, UDP]),
            st.integers(1, 20),
            st.sampled_from([0, 0, 0, 7]),
            st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | CWR]),
            st.sampled_from([7, 0xFFF0, 12345]),
        ),
        min_size=2,
        max_size=12,
    ),
    st.sampled_from([{}, {"epoch": True}]),
)
def test_super_packets_of_one_size_share_a_batch(rows, fields):
    """Flows of all kinds whose segments are equally long, on the wire."""
    client, server = channels(**fields)
    link = Collector()
    sealer = Sealer(link, client)
    expected = []
    for (ipv6, size), proto, count, tail, flags, number in rows:
        packet = Packet(
            b"",
            ipv6=ipv6,
            proto=proto,
            flags=flags,
            ident=number,
            sequence=number << 16,
            options=b"\x01" * size if proto == TCP else b"",
        )
        mss = 600 - len(packet.build())
        payload = content(count * mss + tail, number + count)
        packet = replace(packet, payload=payload, mss=mss)
        sealed(sealer, packet)
        expected += packet.cut()
    sealer.flush()
    assert [server.open(each, 1.0) for each in link.sent] == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"cipher": "AES-128-CBC", "digest": "SHA256"},
        {"cipher": "AES-256-GCM", "compression": "stub"},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_keys_that_are_not_for_batches_share_a_call(fields, stream):
    client, server = channels(**fields)
    link = Collector(stream)
    sealer = Sealer(link, client)
    packet = Packet(content(60_000, 1), mss=1400)
    sealed(sealer, packet)
    sealer.flush()
    if not stream:
        assert link.calls == 1
        assert [server.open(each, 1.0) for each in link.sent] == packet.cut()


@given(
    st.lists(super_packets(), min_size=1, max_size=4),
    st.integers(5, 30_000),
)
def test_an_epoch_wears_out_at_the_same_packet(packets, limit):
    """Together as one by one: the same ids, in the same epochs."""
    client, server = channels(epoch=True)
    singly, _ = channels(epoch=True)
    for channel in (client, singly, server):
        channel.primary._limit = limit
    link = Collector()
    sealer = Sealer(link, client)
    for packet in packets:
        sealed(sealer, packet)
    sealer.flush()
    expected = [part for packet in packets for part in packet.cut()]
    assert link.sent == [singly.seal(each, 1.0) for each in expected]
    assert client.traffic == singly.traffic


def test_a_batch_never_reuses_a_packet_id():
    client, _ = channels()
    client.primary.sent = 0xFFFFFFFF - 5
    link = Collector()
    sealer = Sealer(link, client)
    vnet, view, data = as_read(Packet(content(10_000, 1), mss=1000))
    assert sealer.add_segments(SuperPacket(view, data, vnet), 1.0) == 5
    sealer.flush()
    ids = [int.from_bytes(each[4:8]) for each in link.sent]
    assert ids == list(range(0xFFFFFFFF - 4, 0xFFFFFFFF + 1))
    assert client.drops == {"packet-ids-used-up": 5}


# --- down --------------------------------------------------------------------


class Down:
    """A plane whose link and tun are socketpairs."""

    def __init__(self, channel, offloads=TUN_F_USO4):
        self.far, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.app, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for each in (self.far, link, self.app, tun):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self.sockets = (self.far, link, self.app, tun)
        self.plane = OffloadPlane(
            link, tun.fileno(), channel, offloads=offloads
        )
        self.control = []

    def receive(self, datagrams):
        """Pass datagrams through; return what was written to the tun."""
        for each in datagrams:
            self.far.send(each)
        self.control += self.plane.pump(0, 1.0)
        written = []
        while True:
            try:
                written.append(self.app.recv(1 << 17))
            except BlockingIOError:
                return written

    def close(self):
        self.plane.close()
        for each in self.sockets:
            each.close()


KINDS = {
    "aead": {},
    "epoch": {"epoch": True},
    "cbc": {"cipher": "AES-128-CBC", "digest": "SHA256"},
}


@pytest.fixture(scope="module", params=KINDS)
def down(request):
    pair = key_pair(**KINDS[request.param])
    client, server = channels()
    client.pair = pair
    end = Down(client)
    yield end, client, server
    end.close()


def renew(client, server):
    """Fresh keys and counts, for each example."""
    for channel, keys in zip((client, server), client.pair, strict=True):
        channel.install(PRIMARY, keys)
    client.drops.clear()
    client.traffic.restart()


@st.composite
def arrivals(draw):
    """Packets of some flows as they come: runs, with disturbances."""
    packets = []
    for _ in range(draw(st.integers(1, 5))):
        flow = draw(super_packets())
        size = draw(st.integers(1, 20)) * flow.mss
        flow = replace(
            flow,
            payload=flow.payload[: min(size, flow.mss * 20)],
            flags=draw(st.sampled_from([ACK, ACK | PSH])),
            fragment=draw(st.sampled_from([0, 0x4000])),
        )
        packets += flow.cut()
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(packets) - 1))
        match draw(st.sampled_from(["drop", "swap", "corrupt", "repeat"])):
            case "drop" if len(packets) > 1:
                del packets[at]
            case "swap":
                packets[at - 1], packets[at] = packets[at], packets[at - 1]
            case "corrupt":
                bad = bytearray(packets[at])
                bad[draw(st.integers(8, len(bad) - 1))] ^= 1 << draw(
                    st.integers(0, 7)
                )
                packets[at] = bytes(bad)
            case "repeat":
                packets.insert(at, packets[at])
    return packets


@given(arrivals())
def test_what_is_joined_is_cut_into_what_came(down, packets):
    end, client, server = down
    renew(client, server)
    before = end.plane.counters()
    written = end.receive([server.seal(each, 1.0) for each in packets])
    came = [part for each in written for part in cut_written(each)]
    assert came == packets
    after = end.plane.counters()
    assert after.rx_packets - before.rx_packets == len(packets)
    assert after.rx_bytes - before.rx_bytes == sum(map(len, packets))
    assert not client.drops


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_a_clean_run_is_one_write(down, ipv6, proto):
    end, client, server = down
    renew(client, server)
    flow = Packet(content(20_500, 3), ipv6=ipv6, proto=proto, mss=1000)
    written = end.receive([server.seal(each, 1.0) for each in flow.cut()])
    assert len(written) == 1
    assert cut_written(written[0]) == flow.cut()


def test_udp_is_not_joined_where_the_kernel_cannot_cut_it():
    client, server = channels()
    end = Down(client, offloads=0)
    flow = Packet(content(5000, 3), proto=UDP, mss=1000)
    written = end.receive([server.seal(each, 1.0) for each in flow.cut()])
    assert [each[10:] for each in written] == flow.cut()
    end.close()


def forged_slug(channel):
    return "bad-hmac" if isinstance(channel.primary, CbcKey) else "bad-tag"


def test_forged_datagrams_alone_keep_nothing_alive(down):
    end, client, server = down
    renew(client, server)
    client.traffic.rx_last = 0.5
    forged = [
        server.seal(each, 1.0)[:-1] + b"?"
        for each in Packet(content(10_000, 4), mss=1000).cut()
    ]
    assert end.receive(forged) == []
    assert client.traffic.rx_last == 0.5
    assert client.traffic.decrypt_failures == 10


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_forged_datagram_in_a_batch_costs_itself_alone(down, at):
    end, client, server = down
    renew(client, server)
    flow = Packet(content(10_000, 4), mss=1000)
    datagrams = [server.seal(each, 1.0) for each in flow.cut()]
    forged = bytearray(datagrams[at])
    forged[-1] ^= 1
    datagrams[at] = bytes(forged)
    written = end.receive(datagrams)
    came = [part for each in written for part in cut_written(each)]
    expected = flow.cut()
    del expected[at]
    assert came == expected
    assert client.drops == {forged_slug(server): 1}
    assert client.traffic.decrypt_failures == 1


def test_replays_in_a_batch_are_refused(down):
    end, client, server = down
    renew(client, server)
    flow = Packet(content(10_000, 5), mss=1000)
    datagrams = [server.seal(each, 1.0) for each in flow.cut()]
    written = end.receive([*datagrams, *datagrams[3:6], datagrams[0]])
    came = [part for each in written for part in cut_written(each)]
    assert came == flow.cut()
    assert client.drops == {"replay": 4}
    assert end.receive(datagrams) == []
    assert client.drops == {"replay": 14}


def test_control_packets_pings_and_noise_among_data(down):
    from qubes_vpn.engine import inner

    end, client, server = down
    renew(client, server)
    end.control.clear()
    flow = Packet(content(3000, 6), mss=1000)
    first, second, third = (server.seal(each, 1.0) for each in flow.cut())
    ping = server.seal(inner.PING, 1.0)
    odd = server.seal(b"\x00" * 40, 1.0)
    mixed = [
        first,
        b"\x20control",
        second,
        ping,
        b"",
        odd,
        b"\x4f" * 30,
        third,
        b"\x20more",
        b"\x48",
    ]
    written = end.receive(mixed)
    while not end.control or end.control[-1] != b"\x20more":
        written += end.receive([])
    came = [part for each in written for part in cut_written(each)]
    assert came == flow.cut()
    assert end.control == [b"\x20control", b"\x20more"]
    assert client.traffic.ping_seen
    forged = forged_slug(server)
    short = forged if forged == "bad-hmac" else "short-data"
    assert client.drops == {
        "not-data": 1,
        "not-ip": 1,
        short: 1,
        "unknown-key": 1,
    }


def test_packets_that_are_too_big_for_rows_pass(down):
    end, client, server = down
    renew(client, server)
    small = Packet(content(500, 7))
    big = Packet(content(8000, 7))
    # The first tells the plane; what it was with is lost.
    end.receive([server.seal(big.build(), 1.0)])
    packets = [small.build(), big.build(), big.build(), small.build()]
    written = end.receive([server.seal(each, 1.0) for each in packets])
    assert [each[10:] for each in written] == packets


@given(st.integers(1, 2**32 - 200), st.integers(1, 130), st.integers(1, 200))
def test_a_run_of_ids_is_as_one_by_one(first, count, size):
    together, singly = ReplayWindow(size), ReplayWindow(size)
    together.accept(first, 1)
    singly.accept(first, 1)
    assert not together.accept_run(first, count, 1)
    assert together.accept_run(first + 1, count, 1)
    for number in range(first + 1, first + 1 + count):
        assert singly.accept(number, 1)
    for number in range(max(0, first - 5), first + count + 5):
        assert together.accept(number, 1) == singly.accept(number, 1)
    assert together.top == singly.top


def through(down, packets):
    """Send packets down; return the writes to the tun."""
    end, client, server = down
    renew(client, server)
    written = end.receive([server.seal(each, 1.0) for each in packets])
    came = [part for each in written for part in cut_written(each)]
    assert came == packets
    return written


def test_psh_ends_a_write(down):
    flow = Packet(content(10_000, 8), mss=1000)
    parts = flow.cut()
    for at in (3, 9):
        part = replace(
            flow,
            payload=flow.payload[at * 1000 : at * 1000 + 1000],
            ident=flow.ident + at,
            sequence=flow.sequence + at * 1000,
            flags=ACK | PSH,
            mss=0,
        )
        parts[at] = part.build()
    assert len(through(down, parts)) == 2


@pytest.mark.parametrize("at", [0, 1, 9])
def test_a_bad_ip_checksum_stays_bad(down, at):
    parts = Packet(content(10_000, 9), mss=1000).cut()
    parts[at] = parts[at][:10] + b"\x12\x34" + parts[at][12:]
    assert len(through(down, parts)) > 1


def test_a_write_is_no_longer_than_ip_allows(down):
    flow = Packet(content(60 * 1400, 10), mss=1400)
    assert len(through(down, flow.cut())) == 2


@pytest.mark.parametrize("fragment", [0x2000, 0x0001])
def test_fragments_are_not_joined(down, fragment):
    flow = Packet(content(5000, 11), mss=1000, fragment=fragment)
    assert len(through(down, flow.cut())) == 5


@pytest.mark.parametrize("flags", [ACK | 0x40, ACK | 0x20, ACK | 2, ACK | 4])
def test_other_flags_are_not_joined(down, flags):
    flow = Packet(content(3000, 12), mss=1000, flags=flags)
    assert len(through(down, flow.cut())) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"ports": (5201, 40001)},
        {"ack": 6},
        {"window": 501},
        {"ttl": 63},
        {"tos": 8},
        {"options": b"\x01" * 12},
    ],
)
@pytest.mark.parametrize("ipv6", [False, True])
def test_what_differs_is_not_joined(down, change, ipv6):
    first = Packet(
        content(1000, 13), ipv6=ipv6, options=b"\x01\x01\x08\x0a" + bytes(8)
    )
    second = replace(
        first, ident=first.ident + 1, sequence=first.sequence + 1000
    )
    assert len(through(down, [first.build(), second.build()])) == 1
    other = replace(second, **change)
    assert len(through(down, [first.build(), other.build()])) == 2


def udp_with_sum_zero(mss):
    """A payload whose UDP checksum comes out as 0, sent as 0xFFFF."""
    plain = Packet(bytes(mss), proto=UDP)
    left = int.from_bytes(plain.build()[26:28])
    payload = left.to_bytes(2) + bytes(mss - 2)
    assert replace(plain, payload=payload).build()[26:28] == b"\xff\xff"
    return payload


def test_udp_checksums_of_zero_are_all_ones(down):
    payload = udp_with_sum_zero(1000)
    flow = Packet(payload * 3, proto=UDP, mss=1000)
    client, server = channels()
    link = Collector()
    sealer = Sealer(link, client)
    sealed(sealer, flow)
    sealed(sealer, Packet(payload, proto=UDP))
    sealer.flush()
    expected = [*flow.cut(), Packet(payload, proto=UDP).build()]
    assert [server.open(each, 1.0) for each in link.sent] == expected
    assert len(through(down, flow.cut())) == 1


def test_udp_without_a_checksum_is_not_joined(down):
    parts = Packet(content(3000, 14), proto=UDP, mss=1000).cut()
    parts = [each[:26] + b"\0\0" + each[28:] for each in parts]
    assert len(through(down, parts)) == 3


def test_nothing_is_delivered_for_a_foreign_source(down):
    end, client, server = down
    renew(client, server)
    flow = Packet(content(5000, 15), mss=1000)
    client.sources = {b"\x0a\x08\x00\x09"}
    try:
        assert end.receive([server.seal(p, 1.0) for p in flow.cut()]) == []
    finally:
        client.sources = None
    assert client.drops == {"bad-source": 5}


def test_the_floor_of_cryptography_is_enough():
    """Before version 47 there is no encrypt_into: the ciphers copy."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from qubes_vpn.crypto.aead import copying

    client, server = channels()
    for channel, ours, theirs in ((client, 10, 20), (server, 20, 10)):
        key = channel.primary
        key.outgoing.seal = copying(AESGCM(bytes([ours]) * 32).encrypt)
        key.incoming.half.open = copying(AESGCM(bytes([theirs]) * 32).decrypt)
    link = Collector()
    sealer = Sealer(link, client)
    flow = Packet(content(20_500, 16), mss=1000)
    sealed(sealer, flow)
    sealer.flush()
    end = Down(server)
    written = end.receive(link.sent)
    end.close()
    assert [p for each in written for p in cut_written(each)] == flow.cut()
    assert not server.drops


@given(arrivals(), st.integers(20, 30_000), st.booleans())
def test_epochs_that_change_in_a_batch(packets, limit, twice):
    """What comes in several epochs, to rows as to one by one."""
    client, server = channels(epoch=True)
    singly, _ = channels(epoch=True)
    server.primary._limit = limit
    datagrams = [server.seal(each, 1.0) for each in packets]
    datagrams += datagrams[:5] * twice
    end = Down(client)
    try:
        written = end.receive(datagrams)
        blocks = _blocks(client.primary)
    finally:
        end.close()
    came = [part for each in written for part in cut_written(each)]
    opened = [singly.open(each, 1.0) for each in datagrams]
    assert came == [each for each in opened if each is not None]
    assert client.drops == singly.drops
    assert client.traffic == singly.traffic
    assert blocks == _blocks(singly.primary)


def _blocks(key):
    return key._current.epoch.number, key._current.epoch.blocks
