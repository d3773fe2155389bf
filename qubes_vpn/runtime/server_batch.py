"""A server's data path in userspace, many packets at a time.

As the client's OffloadPlane, with many peers: what lies together and is of one
client is opened together, and each client has runs of its own. What does not
fit goes the way of ServerPlane, with the same outcome.
"""

import functools
import os
import selectors
import socket
import time
from typing import Final

from qubes_vpn.dataplane.inlet import Inlet, runs
from qubes_vpn.dataplane.link import Address
from qubes_vpn.dataplane.offload import TUN_F_USO4
from qubes_vpn.dataplane.outlet import Outlet
from qubes_vpn.dataplane.receive import Pace, Receiver
from qubes_vpn.dataplane.seal import Sealer
from qubes_vpn.dataplane.segment import VNET_SIZE, Array
from qubes_vpn.dataplane.unseal import SEALED_MAX
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import SessionError
from qubes_vpn.runtime.server_clients import Client
from qubes_vpn.runtime.server_events import Control
from qubes_vpn.runtime.server_plane import ServerPlane, destination
from qubes_vpn.runtime.server_sockets import HEAD_SIZE, head_of, is_data
from qubes_vpn.runtime.server_stream import Connection

# Packets from the tun before the sockets have their turn.
_BURST: Final = 256
# How many clients may have a run in the making.
_SEALERS: Final = 4


class BatchPlane(ServerPlane):
    """A ServerPlane for a tun with virtio-net headers.

    offloads: the TUN_F_* bits that the tun took.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        tun: int,
        control: Control,
        *,
        client_to_client: bool,
        connections_max: int,
        offloads: int,
    ) -> None:
        super().__init__(
            selector,
            tun,
            control,
            client_to_client=client_to_client,
            connections_max=connections_max,
        )
        self._device = tun
        # Whose packets belong to no client.
        self._nobody = DataChannel(Traffic())
        self._inlet = Inlet(tun, self._nobody, udp=bool(offloads & TUN_F_USO4))
        self._outlet = Outlet(tun)
        self._receivers: dict[int, Receiver] = {}
        self._number = 0
        self._idle: list[Sealer] = []
        self._sealers: dict[int, Sealer] = {}
        self._pace = Pace()
        # Packets in less packets out: what comes while more goes out are
        # acknowledgements, which are not to be held back.
        self._surplus = 0

    # --- from the clients

    def listen(self, sock: socket.socket) -> None:
        """Receive on a UDP socket, or accept on a listening TCP one."""
        if sock.type == socket.SOCK_DGRAM:
            self._receivers[sock.fileno()] = Receiver(
                sock, self._inlet, self._drop, connected=False
            )
        super().listen(sock)

    def _from_udp(self, number: int, sock: socket.socket) -> None:
        self._pace.rest(self._surplus)
        self._number, self._inlet.now = number, time.monotonic()
        self._receivers[sock.fileno()].receive(self)
        self._flush()

    def took_rows(self, sizes: list[int], sources: list[Address]) -> None:
        """Take what the receiver read: runs of one client together."""
        count = len(sizes)
        raw = self._inlet.rows[:count, :HEAD_SIZE].tobytes()
        if (
            min(sizes) >= HEAD_SIZE
            and sources.count(sources[0]) == count
            and raw == raw[:HEAD_SIZE] * count
        ):
            self._take_run(0, sizes, head_of(raw[:HEAD_SIZE]), sources[0])
            return
        heads = [
            head_of(raw[number * HEAD_SIZE :][: min(size, HEAD_SIZE)])
            for number, size in enumerate(sizes)
        ]
        for first, last in runs(heads, sources):
            self._take_run(
                first, sizes[first:last], heads[first], sources[first]
            )

    def took_joined(self, joined: Array, each: int, source: Address) -> None:
        """Take what the receiver read: of one source, if of one client."""
        head = _common_head(joined, each)
        client = self._here(head, source)
        if client is None:
            for at in range(0, len(joined), each):
                self._take_alone(joined[at:][:each].data, source)
            return
        self._turn_to(client)
        self._inlet.take_joined(joined, each)
        self._took(client)

    def _take_run(
        self, first: int, sizes: list[int], head: bytes, source: Address
    ) -> None:
        """Take rows from `first` on that begin with `head`."""
        client = self._here(head, source)
        if client is None:
            for row, size in zip(self._inlet.rows[first:], sizes, strict=False):
                self._inlet.met_big |= size > SEALED_MAX
                self._take_alone(row[: min(size, SEALED_MAX)].data, source)
            return
        self._turn_to(client)
        self._inlet.take_rows(sizes, first)
        self._took(client)

    def _here(self, head: bytes, source: Address) -> Client | None:
        """Say who sends data from where it is known to be."""
        if is_data(head):
            client = self._whose(self._number, head, source)
            if client and self._is_at(client, self._number, source):
                return client
        return None

    def _take_alone(self, datagram: memoryview, source: Address) -> None:
        size = len(datagram)
        self._buffer[:size] = datagram
        self._from_one(self._number, source, size, self._inlet.now)

    def _from_stream(self, connection: Connection) -> None:
        self._pace.rest(self._surplus)
        self._inlet.now = time.monotonic()
        try:
            data, at = connection.stream.receive(), 0
            while taken := self._take_frames(connection, data[at:]):
                at += taken
            connection.stream.consume(at)
        except SessionError:
            self._end(connection)
        self._flush()

    def _take_frames(self, connection: Connection, data: memoryview) -> int:
        client, inlet = connection.client, self._inlet
        if client is not None and client.number in self.clients:
            self._turn_to(client)
            taken = inlet.take_frames(data)
            self._took(client)
        else:
            inlet.channel = self._nobody
            taken = inlet.take_frames(data)
            self.drops["unknown-peer"] += sum(self._nobody.drops.values())
            self._nobody.drops.clear()
        control, inlet.control = inlet.control, []
        for packet in control:
            self._control.control(packet, connection.source)
        return taken

    def _turn_to(self, client: Client) -> None:
        self._inlet.channel = client.channel
        if self._between:
            self._inlet.divert = functools.partial(
                self._across, client, now=self._inlet.now
            )

    def _took(self, client: Client) -> None:
        """Count what the inlet delivered of a client."""
        inlet = self._inlet
        client.rx_packets += inlet.packets
        client.rx_bytes += inlet.size
        self._surplus += inlet.packets
        inlet.packets = inlet.size = 0
        self._answer(client, inlet.now)

    def _to_tun(self, packet: memoryview) -> None:
        try:
            os.writev(self._device, (bytes(VNET_SIZE), packet))
        except OSError:
            self.drops["tun"] += 1

    # --- to the clients

    def _from_tun(self) -> None:
        outlet, find, now = self._outlet, self.router.find, time.monotonic()
        taken = 0
        while taken < _BURST and not self._held:
            try:
                packet = outlet.read()
            except BlockingIOError:
                break
            except OSError:
                self.drops["tun"] += 1
                break
            client = find(destination(packet))
            taken += 1
            if client is None:
                self.drops["no-client"] += 1
            elif self._has_room(client):
                count, size = outlet.seal(packet, self._sealer(client), now)
                self._sealed_for(client, count, size)
                taken += count
        self._flush()

    def _outward(self, client: Client, packet: memoryview, now: float) -> None:
        if self._has_room(client) and self._sealer(client).add(packet, now):
            client.channel.traffic.tun_bytes += len(packet)
            self._sealed_for(client, 1, len(packet))

    def _sealed_for(self, client: Client, count: int, size: int) -> None:
        client.tx_packets += count
        client.tx_bytes += size
        self._surplus -= count

    def send_data(self, client: Client, payload: bytes, now: float) -> None:
        """Encrypt and send a payload, after what is sealed already."""
        self._flush()
        super().send_data(client, payload, now)

    def _sealer(self, client: Client) -> Sealer:
        """Give what collects packets for this client until _flush."""
        assert client.link is not None
        sealer = self._sealers.get(client.number)
        if sealer is None:
            if len(self._sealers) == _SEALERS:
                self._flush()
            sealer = (
                self._idle.pop()
                if self._idle
                else Sealer(client.link, client.channel)
            )
            self._sealers[client.number] = sealer
        if sealer.link is not client.link:
            sealer.turn_to(client.link, client.channel)
        return sealer

    def _flush(self) -> None:
        """Send all that is sealed."""
        for number, sealer in self._sealers.items():
            sealer.flush()
            client = self.clients.get(number)
            if (
                client is not None
                and client.link is sealer.link
                and client.link.waiting
                and not client.link.stream
            ):
                self._hold(client)
        self._idle += self._sealers.values()
        self._sealers.clear()

    def _drop(self, reason: str, count: int = 1) -> None:
        self.drops[reason] += count


def _common_head(joined: Array, each: int) -> bytes:
    """Give the head that all datagrams have which lie end to end, or b""."""
    head = head_of(joined[: min(each, HEAD_SIZE)].tobytes())
    size, whole = len(head), len(joined) // each
    starts = joined[: whole * each].reshape(whole, each)[:, :size]
    tail = joined[whole * each :][:size].tobytes()
    alike = starts.tobytes() == head * whole and tail in (b"", head)
    return head if alike else b""
