"""A server's data path in userspace: packets in, packets out, one by one.

What is a control packet goes to `Control`, which is the loop; data packets go
to the client's data channel.
"""

import contextlib
import os
import selectors
import socket
import time
from typing import Final

from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.dataplane.link import Address
from qubes_vpn.engine.data_channel import OVERHEAD_MAX
from qubes_vpn.engine.data_key import OPEN_ROOM
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.path_mtu import answers
from qubes_vpn.errors import SessionError
from qubes_vpn.runtime.server_clients import Client, Router
from qubes_vpn.runtime.server_events import Control
from qubes_vpn.runtime.server_sockets import (
    DATA,
    HEAD_SIZE,
    ServerSockets,
    is_data,
)
from qubes_vpn.runtime.server_stream import Connection, source_of

DATAGRAM_MAX: Final = 65_535
# Packets from one descriptor before the others have their turn.
BURST: Final = 64


class ServerPlane(ServerSockets):
    """Moves packets between the clients and the tunnel device.

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
        super().__init__(selector, tun, control, connections_max)
        self.router = Router()
        self._between = client_to_client
        self._buffer = memoryview(bytearray(DATAGRAM_MAX + OPEN_ROOM))
        self._window = self._buffer[:DATAGRAM_MAX]
        self._opened = memoryview(bytearray(DATAGRAM_MAX + OPEN_ROOM))
        self._plain = memoryview(bytearray(DATAGRAM_MAX))
        self._sealed = memoryview(bytearray(DATAGRAM_MAX + OVERHEAD_MAX))

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

    def detach(self, client: Client) -> None:
        """Forget a client."""
        self.router.remove(client)
        super().detach(client)

    def refresh(self, now: Now) -> None:
        """Look at what moves by itself; called every few seconds."""

    # --- UDP

    def _from_udp(self, number: int, sock: socket.socket) -> None:
        now = time.monotonic()
        for _ in range(BURST):
            try:
                size, address = sock.recvfrom_into(self._window)
            except BlockingIOError:
                return
            except OSError:
                self.drops["link"] += 1
                continue
            self._from_one(number, address, size, now)

    def _from_one(
        self, number: int, address: Address, size: int, now: float
    ) -> None:
        """Take the datagram of `size` bytes in self._buffer."""
        head = bytes(self._buffer[: min(size, HEAD_SIZE)])
        if not is_data(head):
            datagram = bytes(self._buffer[:size])
            self._control.control(datagram, source_of(number, address))
            return
        client = self._whose(number, head, address)
        if client is None:
            self.drops["unknown-peer"] += 1
        elif self._is_at(client, number, address):
            self._data(client, self._buffer, size, now)
        else:
            self._from_elsewhere(client, number, address, size, now)

    def _from_elsewhere(
        self,
        client: Client,
        number: int,
        address: Address,
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
        source = source_of(number, address)
        if not self._control.moved(client, source):
            client.channel.drop("float-refused")
            return
        self.follow(client, source)
        if packet is not None:
            self._inward(client, packet, now)

    # --- TCP

    def _from_stream(self, connection: Connection) -> None:
        now = time.monotonic()
        try:
            with contextlib.closing(
                connection.stream.packets(BURST)
            ) as packets:
                for buffer, size in packets:
                    self._from_connection(connection, buffer, size, now)
        except SessionError:
            self._end(connection)

    def _from_connection(
        self, connection: Connection, buffer: memoryview, size: int, now: float
    ) -> None:
        if buffer[0] >> 3 not in DATA:
            self._control.control(bytes(buffer[:size]), connection.source)
            return
        client = connection.client
        if client is None or client.number not in self.clients:
            self.drops["unknown-peer"] += 1
        else:
            self._data(client, buffer, size, now)

    # --- inner packets

    def _data(
        self, client: Client, buffer: memoryview, size: int, now: float
    ) -> None:
        packet = client.channel.open_into(buffer, size, self._opened, now)
        if packet is not None:
            self._inward(client, packet, now)
        else:
            self._answer(client, now)

    def _answer(self, client: Client, now: float) -> None:
        if client.channel.traffic.occ:
            for answer in answers(client.channel.traffic):
                self.send_data(client, answer, now)

    def _inward(self, client: Client, packet: memoryview, now: float) -> None:
        """From a client: to another one, or to the device."""
        client.rx_packets += 1
        client.rx_bytes += len(packet)
        if not self._between or not self._across(client, packet, now):
            self._to_tun(packet)

    def _across(self, client: Client, packet: memoryview, now: float) -> bool:
        """Pass a client's packet to another one, if that is where it goes."""
        other = self.router.find(destination(packet))
        if other is None or other is client:
            return False
        self._outward(other, packet, now)
        return True

    def _to_tun(self, packet: memoryview) -> None:
        assert self._tun is not None
        try:
            os.write(self._tun, packet)
        except OSError:
            self.drops["tun"] += 1

    def _has_room(self, client: Client, packets: int = 1) -> bool:
        """Say whether the client's link takes packets; count if not."""
        if client.link is not None and client.link.has_room():
            return True
        client.channel.drop("link-full", packets)
        return False

    def _outward(self, client: Client, packet: memoryview, now: float) -> None:
        """Seal a packet for a client and send it."""
        if self._has_room(client) and self._send(client, packet, now):
            client.tx_packets += 1
            client.tx_bytes += len(packet)
            client.channel.traffic.tun_bytes += len(packet)

    def _send(self, client: Client, payload: memoryview, now: float) -> bool:
        size = client.channel.seal_into(payload, self._sealed, now)
        link = client.link
        if not size or link is None or not link.send(self._sealed[:size]):
            return False
        if link.waiting and not link.stream:
            self._hold(client)
        return True

    def send_data(self, client: Client, payload: bytes, now: float) -> None:
        """Encrypt and send a payload that is not from the device."""
        self._send(client, memoryview(payload), now)

    def _from_tun(self) -> None:
        assert self._tun is not None
        plain, find = self._plain, self.router.find
        buffers = (plain,)
        now = time.monotonic()
        for _ in range(BURST):
            if self._held:
                return
            try:
                size = os.readv(self._tun, buffers)
            except BlockingIOError:
                return
            except OSError:
                self.drops["tun"] += 1
                return
            packet = plain[:size]
            client = find(destination(packet))
            if client is None:
                self.drops["no-client"] += 1
                continue
            self._outward(client, packet, now)


def destination(packet: memoryview) -> bytes:
    """Give the packed destination; b"" of what is too short for one."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return bytes(packet[16:20])
    if len(packet) >= 40:
        return bytes(packet[24:40])
    return b""
