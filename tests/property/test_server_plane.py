"""The server's planes do the same: many packets at a time, or one by one."""

import contextlib
import selectors
import socket
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from sys import byteorder
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.dataplane import receive
from qubes_vpn.dataplane.link import UDP_SEGMENT
from qubes_vpn.dataplane.offload import TUN_F_USO4
from qubes_vpn.engine import inner
from qubes_vpn.engine.data_channel import PRIMARY, DataChannel
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.path_mtu import OCC_MTU_LOAD_REQUEST
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.runtime.server_batch import BatchPlane
from qubes_vpn.runtime.server_clients import Client, Sources
from qubes_vpn.runtime.server_plane import ServerPlane
from tests.property.test_offload import content, super_packets
from tests.unit.dataplane.oracle import ACK, PSH, Packet, cut_written
from tests.unit.dataplane.rig import tcp_pair
from tests.unit.engine.packets import key_pair

NUMBERS = (5, 6, 70_000)
KINDS = ({}, {"epoch": True}, {"cipher": "AES-128-CBC", "digest": "SHA1"})
SERVER = {False: bytes([10, 8, 0, 1]), True: bytes([0xFD, *[0] * 14, 1])}
BUFFER = 1 << 23
LOAD_REQUEST = bytes([OCC_MTU_LOAD_REQUEST])


def inside(number, ipv6=False):
    """The inner address of a client."""
    return SERVER[ipv6][:-1] + bytes([10 + NUMBERS.index(number)])


def keys_of(number):
    kind = KINDS[NUMBERS.index(number)]
    return key_pair(**{"peer_id": number, **kind})


class Place:
    """A plane between a tun, which is a socketpair, and real sockets."""

    def __init__(self, kind, stream, between):
        self.kind, self.stream = kind, stream
        self.app, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sockets = [self.app, tun]
        for each in self.sockets:
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.selector = selectors.DefaultSelector()
        more = {"offloads": TUN_F_USO4} if kind is BatchPlane else {}
        self.plane = kind(
            self.selector,
            tun.fileno(),
            self,
            client_to_client=between,
            connections_max=10,
            **more,
        )
        self.met = []
        self.remote = {}
        if not stream:
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            listener.bind(("127.0.0.1", 0))
            listener.setblocking(False)
            self.plane.listen(listener)
            self.address = listener.getsockname()

    # what the loop would do

    def control(self, datagram, source):
        self.met.append(datagram)

    def moved(self, client, source):
        self.met.append(("moved", client.number))
        return client.number != NUMBERS[1]

    def closed(self, source):
        self.met.append("closed")

    def gone(self, client, reason):
        raise AssertionError(reason)

    # what the test does

    def join(self, number, remote):
        """Let a client in that is at the socket `remote`."""
        if self.stream:
            ours, remote = tcp_pair()
            self.sockets.append(remote)
            self.plane._connections._adopt(ours, ours.getpeername())
            at = list(self.plane._connections)[-1].source
        else:
            host, port = remote.getsockname()
            at = Source(0, ip_address(host), port)
        self.remote[number] = remote
        client = Client(number, DataChannel(Traffic(), frozenset()), at)
        client.sources = Sources(
            [inside(number), inside(number, ipv6=True)], ()
        )
        self.plane.attach(client)
        self.plane.install(client, PRIMARY, keys_of(number)[1])
        self.plane.admit(client)

    def run(self):
        """Run until nothing is left to do."""
        while ready := self.selector.select(0):
            for key, events in ready:
                key.data.call(events)

    def written(self):
        packets = []
        while True:
            try:
                each = self.app.recv(1 << 17)
            except BlockingIOError:
                return packets
            batch = self.kind is BatchPlane
            packets += cut_written(each) if batch else [each]

    def outcome(self):
        clients = self.plane.clients.values()
        return (
            self.written(),
            self.met,
            dict(self.plane.drops),
            [
                (
                    client.number,
                    client.rx_packets,
                    client.rx_bytes,
                    client.tx_packets,
                    client.tx_bytes,
                    client.floated,
                    client.channel.drops,
                    replace(client.channel.traffic, rx_last=0, tx_last=0),
                )
                for client in clients
            ],
        )

    def close(self):
        self.plane.close()
        self.selector.close()
        for each in self.sockets:
            each.close()


@dataclass
class World:
    """Both planes side by side, and the clients of them."""

    stream: bool = False
    between: bool = False
    places: list = field(default_factory=list)

    def __enter__(self):
        self.remotes = {}
        for number in (*NUMBERS, "elsewhere"):
            remote = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            remote.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            remote.bind(("127.0.0.1", 0))
            remote.setblocking(False)
            self.remotes[number] = remote
        for kind in (ServerPlane, BatchPlane):
            place = Place(kind, self.stream, self.between)
            self.places.append(place)
            for number in NUMBERS:
                place.join(number, self.remotes[number])
        self.channels = {}
        for number in NUMBERS:
            self.channels[number] = DataChannel(Traffic())
            self.channels[number].install(PRIMARY, keys_of(number)[0])
        return self

    def __exit__(self, *_):
        for each in (*self.places, *self.remotes.values()):
            each.close()

    def send(self, datagrams):
        """To both: (from whom, datagram); equal ones in one call."""
        at = 0
        while at < len(datagrams):
            who, first = datagrams[at]
            end = at + 1
            while (
                end < min(len(datagrams), at + 40)
                and datagrams[end][0] == who
                and len(datagrams[end][1]) == len(first) > 0
            ):
                end += 1
            run = b"".join(each for _, each in datagrams[at:end])
            self.send_run(who, run, len(first))
            at = end

    def send_run(self, who, run, size):
        segment = [(socket.SOL_UDP, UDP_SEGMENT, size.to_bytes(2, byteorder))]
        for place in self.places:
            if self.stream:
                frames = b"".join(
                    size.to_bytes(2) + run[at : at + size]
                    for at in range(0, len(run), size)
                )
                while frames:
                    with contextlib.suppress(BlockingIOError):
                        sent = place.remote[who].send(frames)
                        frames = frames[sent:]
                    place.run()
            else:
                self.remotes[who].sendmsg(
                    [run], segment * (len(run) > size), 0, place.address
                )

    def same(self):
        """Compare; give what both did, and what of it is packets."""
        for place in self.places:
            place.run()
        scalar, batch = (place.outcome() for place in self.places)
        assert batch == scalar
        return scalar


@st.composite
def from_clients(draw, *, stream):
    """What clients send: (who, inner packets, what happens to them)."""
    things = []
    for _ in range(draw(st.integers(1, 5))):
        who = draw(st.sampled_from(NUMBERS))
        flow = draw(super_packets())
        flow = replace(
            flow,
            payload=flow.payload[: flow.mss * 12],
            flags=draw(st.sampled_from([ACK, ACK | PSH])),
        )
        source = draw(st.sampled_from([who, who, who, NUMBERS[0]]))
        target = draw(st.sampled_from([None, None, *NUMBERS]))
        to = inside(target, flow.ipv6) if target else SERVER[flow.ipv6]
        flow = replace(flow, between=(inside(source, flow.ipv6), to))
        faults = ["", "", "", "corrupt", "repeat", "control", "short", "occ"]
        if not stream:
            faults += ["elsewhere", "unknown"]
        things.append((who, flow.cut(), draw(st.sampled_from(faults))))
    return things


def datagrams_of(world, things):
    """Seal; give (from where, datagram)."""
    sent = []
    for who, packets, fault in things:
        sealed = [world.channels[who].seal(each, 1.0) for each in packets]
        middle = len(sealed) // 2
        match fault:
            case "corrupt":
                sealed[middle] = sealed[middle][:-1] + b"?"
            case "repeat":
                sealed += sealed[:2]
            case "control":
                sealed.insert(middle, b"\x20 control")
            case "short":
                sealed.insert(middle, sealed[0][:3])
            case "occ":
                # how large a packet may be, with an example to answer
                asked = inner.OCC_MAGIC + LOAD_REQUEST + (900).to_bytes(2)
                sealed.insert(middle, world.channels[who].seal(asked, 1.0))
            case "unknown":
                sealed[middle] = b"\x48\x99\x99\x99" + sealed[middle][4:]
        where = "elsewhere" if fault == "elsewhere" else who
        sent += [(where, each) for each in sealed]
    return sent


@given(st.data(), st.booleans(), st.booleans())
def test_from_the_clients(data, stream, between):
    things = data.draw(from_clients(stream=stream))
    with World(stream, between) as world:
        world.send(datagrams_of(world, things))
        world.same()


def packets_of(number, count, size=500):
    ends = inside(number), SERVER[False]
    return Packet(content(count * size, 1), mss=size, between=ends).cut()


def test_two_sources_in_one_batch():
    """The first that is authentic moves the client, none before it."""
    here, there = ((NUMBERS[0], packets_of(NUMBERS[0], 1), "") for _ in "ab")
    with World() as world:
        datagrams = datagrams_of(world, [here, there])
        (who, first), (_, second) = datagrams
        # alone they come in one batch, not joined
        for source, datagram in ((who, first), ("elsewhere", second)):
            world.send_run(source, datagram, len(datagram))
        _, met, _, clients = world.same()
        assert met == [("moved", NUMBERS[0])]
        assert clients[0][1] == 2


def test_acknowledgements_of_a_download_are_not_held_back(monkeypatch):
    """A batch may grow while more comes in than goes out, and only then."""
    number, waits = NUMBERS[0], []
    still = SimpleNamespace(monotonic=lambda: 100.0, sleep=waits.append)
    monkeypatch.setattr(receive, "time", still)
    bulk = Packet(bytes(9000), mss=500, between=(SERVER[False], inside(number)))
    with World() as world:
        _, place = world.places

        def move(times, down):
            for _ in range(times):
                for _ in range(down):
                    place.app.send(bulk.read())
                seal = world.channels[number].seal
                acks = [seal(p, 1.0) for p in packets_of(number, 8, 30)]
                world.send([(number, each) for each in acks])
                place.run()
                place.written()

        move(20, down=1)
        assert not waits
        move(60, down=0)
        assert waits


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_strangers_peer_id_in_what_the_kernel_joined(at):
    number = NUMBERS[0]
    with World() as world:
        run = [
            world.channels[number].seal(p, 1.0) for p in packets_of(number, 10)
        ]
        run[at] = b"\x48\x99\x99\x99" + run[at][4:]
        world.send([(number, each) for each in run])
        _, _, drops, clients = world.same()
        assert drops == {"unknown-peer": 1}
        assert clients[0][1] == 9


@given(
    st.lists(
        st.tuples(st.sampled_from(NUMBERS), super_packets()),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_to_the_clients(packets, stream):
    with World(stream) as world:
        expected = {number: [] for number in NUMBERS}
        for number, packet in packets:
            flow = replace(
                packet,
                payload=packet.payload[: packet.mss * 20],
                between=(
                    SERVER[packet.ipv6],
                    inside(number, packet.ipv6),
                ),
            )
            scalar, batch = world.places
            batch.app.send(flow.read())
            for each in flow.cut():
                scalar.app.send(each)
                scalar.run()
            expected[number] += flow.cut()
        world.same()
        for number in NUMBERS:
            for came in received(world, number):
                # both planes have sealed with the same keys and ids
                channel = DataChannel(Traffic())
                channel.install(PRIMARY, keys_of(number)[0])
                opened = [channel.open(each, 1.0) for each in came]
                assert opened == expected[number]


def received(world, number):
    """What each plane has sent to a client: all of it is there already."""
    if world.stream:
        return [
            list(unframed(drain(place.remote[number])))
            for place in world.places
        ]
    # one socket has what both sent; the scalar plane sent first
    packets = drain(world.remotes[number])
    half = len(packets) // 2
    return packets[:half], packets[half:]


def drain(remote):
    parts = []
    while True:
        try:
            parts.append(remote.recv(1 << 17))
        except BlockingIOError:
            return parts


def unframed(parts):
    data = b"".join(parts)
    while data:
        size = 2 + int.from_bytes(data[:2])
        yield data[2:size]
        data = data[size:]
