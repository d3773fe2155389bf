"""A server's sockets and its tunnel device: packets in, packets out.

One thread. What is a control packet goes to `Control`, which is the loop;
data packets go by peer id to the client's data channel.
"""

import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Protocol

from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.engine.data_channel import OVERHEAD_MAX
from qubes_vpn.engine.data_key import OPEN_ROOM
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.path_mtu import answers
from qubes_vpn.runtime.server_clients import Client, Router, SockAddr
from qubes_vpn.runtime.server_stream import Stream
from qubes_vpn.wire.opcode import Opcode

DATAGRAM_MAX: Final = 65_535
# Packets from one descriptor before the others have their turn.
BURST: Final = 64
# Numbers of TCP connections, apart from those of listening sockets.
_FIRST_STREAM: Final = 1000
_DATA_V1: Final = int(Opcode.P_DATA_V1)
_DATA_V2: Final = int(Opcode.P_DATA_V2)
_DATA: Final = frozenset({_DATA_V1, _DATA_V2})


@dataclass(frozen=True, slots=True)
class OnEvents:
    """What the loop calls with the selector's events of a descriptor."""

    call: Callable[[int], None]


class Control(Protocol):
    """What the loop does with what the plane meets."""

    def control(self, datagram: bytes, source: Source) -> None:
        """Take a control packet."""

    def moved(self, client: Client, source: Source) -> bool:
        """Tell whether the client may be at this source from now on."""

    def closed(self, source: Source) -> None:
        """Take note that a TCP connection has ended."""

    def gone(self, client: Client, reason: str) -> None:
        """Take note that the plane has lost a client."""


class _Connection:
    """A TCP connection. client: who it turned out to be."""

    def __init__(self, stream: Stream, source: Source) -> None:
        self.stream = stream
        self.source = source
        self.client: Client | None = None
        self.since = time.monotonic()


class ServerPlane:
    """Moves packets between the clients and the tunnel device.

    selector: the data of its keys are OnEvents. tun: the device's
    descriptor, non-blocking; None where the kernel moves the packets.
    client_to_client: packets between clients do not touch the device.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        tun: int | None,
        control: Control,
        *,
        client_to_client: bool,
        connections_max: int,
    ) -> None:
        self.clients: dict[int, Client] = {}
        self.router = Router()
        self.drops: Counter[str] = Counter()
        self._selector = selector
        self._tun = tun
        self._control = control
        self._between = client_to_client
        self._connections_max = connections_max
        self._sockets: list[socket.socket] = []
        self._connections: dict[int, _Connection] = {}
        self._by_address: dict[tuple[int, SockAddr], Client] = {}
        self._next_stream = _FIRST_STREAM
        self._buffer = memoryview(bytearray(DATAGRAM_MAX + OPEN_ROOM))
        self._window = self._buffer[:DATAGRAM_MAX]
        self._opened = memoryview(bytearray(DATAGRAM_MAX + OPEN_ROOM))
        self._plain = memoryview(bytearray(DATAGRAM_MAX))
        self._sealed = memoryview(bytearray(DATAGRAM_MAX + OVERHEAD_MAX))
        if tun is not None:
            selector.register(
                tun,
                selectors.EVENT_READ,
                OnEvents(lambda _events: self._from_tun()),
            )

    # --- sockets

    def listen(self, sock: socket.socket) -> None:
        """Receive on a UDP socket, or accept on a listening TCP one."""
        number = len(self._sockets)
        self._sockets.append(sock)
        if sock.type == socket.SOCK_STREAM:
            self._selector.register(
                sock,
                selectors.EVENT_READ,
                OnEvents(lambda _events: self._accept(sock)),
            )
        else:
            self._selector.register(
                sock,
                selectors.EVENT_READ,
                OnEvents(lambda _events: self._from_udp(number, sock)),
            )

    def send_to(self, source: Source, datagram: bytes) -> None:
        """Send a control packet."""
        connection = self._connections.get(source.socket)
        if connection is not None:
            connection.stream.send(datagram)
            return
        if source.socket >= len(self._sockets):
            return  # its connection has ended
        sock = self._sockets[source.socket]
        try:
            sock.sendto(datagram, _sockaddr(sock, source))
        except OSError:
            self.drops["link"] += 1

    def attach(self, client: Client) -> None:
        """Let a client's data packets pass: it has keys."""
        self.clients[client.number] = client
        connection = self._connections.get(client.source.socket)
        if connection is not None:
            connection.client = client
            client.stream = connection.stream
        else:
            self._place(client, client.source)

    def detach(self, client: Client) -> None:
        """Forget a client."""
        del self.clients[client.number]
        self.router.remove(client)
        self._unplace(client)
        self.drops.update(client.channel.drops)

    def hang_up(self, source: Source) -> None:
        """Close the TCP connection of a source, if it is one."""
        connection = self._connections.pop(source.socket, None)
        if connection is not None:
            connection.stream.flush()
            self._selector.unregister(connection.stream.sock)
            connection.stream.sock.close()

    def hang_up_strangers(self, before: float) -> None:
        """Close connections since `before` that never became clients."""
        for connection in list(self._connections.values()):
            if connection.client is None and connection.since < before:
                self._end(connection)

    def close(self) -> None:
        """Close all sockets; the device is the caller's."""
        for connection in list(self._connections.values()):
            self.hang_up(connection.source)
        for sock in self._sockets:
            self._selector.unregister(sock)
            sock.close()
        if self._tun is not None:
            self._selector.unregister(self._tun)

    # --- what the engine decides of a client

    def install(self, client: Client, slot: int, keys: DataKeys) -> None:
        """Put keys into a slot; those of slot 1 decrypt only."""
        client.channel.install(slot, keys)

    def swap(self, client: Client) -> None:
        """Exchange the slots."""
        client.channel.swap()

    def forget(self, client: Client, slot: int) -> None:
        """Forget the keys of a slot."""
        client.channel.remove(slot)

    def admit(self, client: Client) -> None:
        """Route to the client, whose addresses are known now."""
        client.channel.sources = client.sources
        self.router.add(client)

    def refresh(self, now: Now) -> None:
        """Look at what moves by itself; called every few seconds."""

    # --- UDP

    def _from_udp(self, number: int, sock: socket.socket) -> None:
        buffer, clients = self._buffer, self.clients
        now = time.monotonic()
        for _ in range(BURST):
            try:
                size, address = sock.recvfrom_into(self._window)
            except BlockingIOError:
                return
            except OSError:
                self.drops["link"] += 1
                continue
            opcode = buffer[0] >> 3 if size else 0
            if opcode == _DATA_V2 and size > 4:
                client = clients.get(int.from_bytes(buffer[1:4]))
            elif opcode == _DATA_V1:
                client = self._by_address.get((number, address))
            else:
                source = _source(number, address)
                self._control.control(bytes(buffer[:size]), source)
                continue
            if client is None or client.stream is not None:
                self.drops["unknown-peer"] += 1
            elif client.address == address and client.sock is sock:
                self._data(client, size, now)
            else:
                self._from_elsewhere(client, number, address, size, now)

    def _from_elsewhere(
        self,
        client: Client,
        number: int,
        address: SockAddr,
        size: int,
        now: float,
    ) -> None:
        """Follow a client to its new address, if it is really the client.

        What decides is a packet that is authentic, and no replay.
        """
        before = client.channel.traffic.rx_packets
        packet = client.channel.open_into(self._buffer, size, self._opened, now)
        if client.channel.traffic.rx_packets == before:
            return
        source = _source(number, address)
        if not self._control.moved(client, source):
            client.channel.drop("float-refused")
            return
        self.follow(client, source)
        if packet is not None:
            self._inward(client, packet, now)

    def follow(self, client: Client, source: Source) -> None:
        """Send to the client at its new address from now on."""
        self._unplace(client)
        client.source = source
        self._place(client, source)
        client.floated += 1

    def _place(self, client: Client, source: Source) -> None:
        sock = self._sockets[source.socket]
        client.sock = sock
        client.address = _sockaddr(sock, source)
        self._by_address[source.socket, client.address] = client

    def _unplace(self, client: Client) -> None:
        if client.address is not None:
            key = (client.source.socket, client.address)
            if self._by_address.get(key) is client:
                del self._by_address[key]

    # --- TCP

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BURST):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self.drops["accept"] += 1
                return
            if len(self._connections) >= self._connections_max:
                self.drops["too-many-connections"] += 1
                sock.close()
                continue
            self._adopt(sock, address)

    def _adopt(self, sock: socket.socket, address: SockAddr) -> None:
        sock.setblocking(False)
        source = _source(self._next_stream, address)
        self._next_stream += 1

        def want_write(wanted: bool) -> None:  # noqa: FBT001 a callback
            events = selectors.EVENT_READ
            if wanted:
                events |= selectors.EVENT_WRITE
            self._selector.modify(sock, events, OnEvents(ready))

        connection = _Connection(Stream(sock, want_write), source)

        def ready(events: int) -> None:
            if events & selectors.EVENT_WRITE:
                connection.stream.flush()
            if events & selectors.EVENT_READ:
                self._from_stream(connection)

        self._connections[source.socket] = connection
        self._selector.register(sock, selectors.EVENT_READ, OnEvents(ready))

    def _from_stream(self, connection: _Connection) -> None:
        packets = connection.stream.receive()
        if packets is None:
            self._end(connection)
            return
        now = time.monotonic()
        for packet in packets:
            if packet[0] >> 3 not in _DATA:
                self._control.control(packet, connection.source)
                continue
            client, size = connection.client, len(packet)
            if client is None or client.number not in self.clients:
                self.drops["unknown-peer"] += 1
                continue
            self._buffer[:size] = packet
            self._data(client, size, now)

    def _end(self, connection: _Connection) -> None:
        if connection.source.socket in self._connections:
            self.hang_up(connection.source)
            self._control.closed(connection.source)

    # --- inner packets

    def _data(self, client: Client, size: int, now: float) -> None:
        packet = client.channel.open_into(self._buffer, size, self._opened, now)
        if packet is not None:
            self._inward(client, packet, now)
        elif client.channel.traffic.occ:
            for answer in answers(client.channel.traffic):
                self.send_data(client, answer, now)

    def _inward(self, client: Client, packet: memoryview, now: float) -> None:
        """From a client: to another one, or to the device."""
        client.rx_packets += 1
        client.rx_bytes += len(packet)
        if self._between:
            other = self.router.find(_destination(packet))
            if other is not None and other is not client:
                self._outward(other, packet, now)
                return
        assert self._tun is not None
        try:
            os.write(self._tun, packet)
        except OSError:
            self.drops["tun"] += 1

    def _outward(self, client: Client, packet: memoryview, now: float) -> None:
        """Seal a packet for a client and send it."""
        if client.stream is not None and client.stream.full:
            client.channel.drop("link-full")
            return
        size = client.channel.seal_into(packet, self._sealed, now)
        if size and client.send(self._sealed[:size]):
            client.tx_packets += 1
            client.tx_bytes += len(packet)
            client.channel.traffic.tun_bytes += len(packet)

    def send_data(self, client: Client, payload: bytes, now: float) -> None:
        """Encrypt and send a payload that is not from the device."""
        size = client.channel.seal_into(memoryview(payload), self._sealed, now)
        if size:
            client.send(self._sealed[:size])

    def _from_tun(self) -> None:
        assert self._tun is not None
        plain, find = self._plain, self.router.find
        buffers = (plain,)
        now = time.monotonic()
        for _ in range(BURST):
            try:
                size = os.readv(self._tun, buffers)
            except BlockingIOError:
                return
            except OSError:
                self.drops["tun"] += 1
                return
            packet = plain[:size]
            client = find(_destination(packet))
            if client is None:
                self.drops["no-client"] += 1
                continue
            self._outward(client, packet, now)


def _destination(packet: memoryview) -> bytes:
    """Give the packed destination; b"" of what is too short for one."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return bytes(packet[16:20])
    if len(packet) >= 40:
        return bytes(packet[24:40])
    return b""


def _source(number: int, address: SockAddr) -> Source:
    host: IPv4Address | IPv6Address = ip_address(address[0])
    if host.version == 6 and host.ipv4_mapped:
        host = host.ipv4_mapped
    return Source(number, host, address[1])


def _sockaddr(sock: socket.socket, source: Source) -> SockAddr:
    """Give what recvfrom would have given for this source."""
    host = source.address
    if sock.family == socket.AF_INET:
        return (str(host), source.port)
    if host.version == 4:
        return (f"::ffff:{host}", source.port, 0, 0)
    scope = host.scope_id
    number = socket.if_nametoindex(scope) if scope else 0
    return (str(host), source.port, 0, number)
