"""The data plane in our own process, one packet at a time.

How it is used, by one thread:

    plane = UserspacePlane(link, tun, channel, stream=False)
    wait until one of plane.readable() is readable, then
    for datagram in plane.pump(descriptor, now):
        the engine receives it
    plane.install, swap, remove, send_control, send_data as the engine says
    plane.close()

`readable` is one descriptor, an epoll of the plane's own: which of link and
tun it waits for, and whether for room in the link, changes with the load and
is nobody else's concern. pump works until both are empty, or until it met
control packets, or for ROUNDS rounds; then it is called again.
"""

import contextlib
import os
import select
import socket
from typing import Final

from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.dataplane.base import Counters, Slot
from qubes_vpn.dataplane.link import (
    DATAGRAM_MAX,
    SPARE,
    DatagramLink,
    StreamLink,
    slug,
)
from qubes_vpn.dataplane.relayed import RelayedLink
from qubes_vpn.engine.data_channel import OVERHEAD_MAX, DataChannel
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.opcode import DATA_OPCODES

# Packets from one side before the other has its turn.
BURST: Final = 64
ROUNDS: Final = 32
DATA: Final = frozenset(int(opcode) for opcode in DATA_OPCODES)


class UserspacePlane:
    """Moves packets between a tun descriptor and the link socket.

    link: connected and non-blocking, UDP, or TCP with stream=True; whoever
    opened link and tun closes them. header: before each datagram, for a
    relay. Until a key is installed, packets of
    the tun are dropped. Raises SessionError "link-closed" when a stream
    ended, "link-framing" when it is out of step, "tun-gone" when the device
    is.
    """

    def __init__(
        self,
        link: socket.socket,
        tun: int,
        channel: DataChannel,
        *,
        stream: bool = False,
        header: bytes = b"",
    ) -> None:
        self.device = ""
        self._channel = channel
        self._tun = tun
        self._link: DatagramLink | StreamLink
        if stream:
            self._link = StreamLink(link, channel.drop)
        elif header:
            self._link = RelayedLink(link, channel.drop, header)
        else:
            self._link = DatagramLink(link, channel.drop)
        self._plain = memoryview(bytearray(DATAGRAM_MAX))
        self._sealed = memoryview(bytearray(DATAGRAM_MAX + OVERHEAD_MAX))
        self._opened = memoryview(bytearray(DATAGRAM_MAX + SPARE))
        self._rx_packets = self._rx_bytes = self._link_rx_bytes = 0
        self._tx_packets = self._tx_bytes = self._link_tx_bytes = 0
        self._epoll = select.epoll()
        self._link_events = select.EPOLLIN
        self._tun_events = select.EPOLLIN
        self._epoll.register(link, self._link_events)
        self._epoll.register(tun, self._tun_events)

    def resume(self, link: DatagramLink | StreamLink) -> None:
        """Go on with the link where another plane left it; call it first."""
        if isinstance(self._link, StreamLink) and isinstance(link, StreamLink):
            self._link.resume(link)
            self._watch()

    @property
    def link(self) -> DatagramLink | StreamLink:
        """The link, for another plane to go on with."""
        return self._link

    def let_go(self) -> None:
        """Stop watching link and tun; keys stay with the channel."""
        self._epoll.close()

    def open(self, device: str) -> None:
        """Remember the device's name; the descriptor is open already."""
        self.device = device

    def install(self, slot: Slot, keys: DataKeys) -> None:
        """Put keys into a slot; a SECONDARY key decrypts only."""
        self._channel.install(slot, keys)

    def swap(self) -> None:
        """Exchange the slots: what was SECONDARY encrypts from now on."""
        self._channel.swap()

    def remove(self, slot: Slot) -> None:
        """Forget the keys of a slot."""
        self._channel.remove(slot)

    def readable(self) -> tuple[int, ...]:
        """Give the descriptor to watch for input."""
        return (self._epoll.fileno(),)

    def pump(self, descriptor: int, now: float) -> list[bytes]:
        """Move packets both ways; return the control packets on the way.

        now: mono seconds. descriptor: one of readable().
        """
        del descriptor
        control: list[bytes] = []
        for _ in range(ROUNDS):
            ready = self._epoll.poll(0)
            if not ready:
                break
            for which, events in ready:
                if which == self._tun:
                    self._from_tun(now)
                    continue
                if events & select.EPOLLOUT:
                    self._link.flush()
                if events & ~select.EPOLLOUT:
                    self._from_link(control, now)
            self._watch()
            if control:
                break
        return control

    def send_control(self, datagram: bytes) -> None:
        """Send a control packet on the link."""
        if self._link.send(datagram):
            self._link_tx_bytes += len(datagram)
        self._watch()

    def send_data(self, payload: bytes, now: float) -> None:
        """Encrypt and send one payload that is not from the tun."""
        self._send_sealed(memoryview(payload), now)
        self._watch()

    def counters(self) -> Counters:
        """Give a snapshot of the counters."""
        return Counters(
            rx_packets=self._rx_packets,
            rx_bytes=self._rx_bytes,
            tx_packets=self._tx_packets,
            tx_bytes=self._tx_bytes,
            link_rx_bytes=self._link_rx_bytes,
            link_tx_bytes=self._link_tx_bytes,
            drops=tuple(sorted(self._channel.drops.items())),
        )

    def close(self) -> None:
        """Forget all keys and let go of link and device."""
        for slot in Slot:
            self._channel.remove(slot)
        self._epoll.close()

    def _watch(self) -> None:
        """Wait for what can go on: a full link holds the tun back."""
        link = select.EPOLLIN | (select.EPOLLOUT if self._link.waiting else 0)
        if link != self._link_events:
            self._link_events = link
            self._epoll.modify(self._link.sock, link)
        tun = select.EPOLLIN if self._link.has_room() else 0
        if tun != self._tun_events:
            self._tun_events = tun
            self._epoll.modify(self._tun, tun)

    def _from_tun(self, now: float) -> None:
        """Up: read, seal and send until the device is empty."""
        plain, buffers = self._plain, (self._plain,)
        for _ in range(BURST):
            if not self._link.has_room():
                return
            try:
                size = os.readv(self._tun, buffers)
            except BlockingIOError:
                return
            except OSError as error:
                self._tun_failed(error)
                return
            if self._send_sealed(plain[:size], now):
                self._tx_packets += 1
                self._tx_bytes += size
                self._channel.traffic.tun_bytes += size

    def _send_sealed(self, payload: memoryview, now: float) -> bool:
        size = self._channel.seal_into(payload, self._sealed, now)
        if not size or not self._link.send(self._sealed[:size]):
            return False
        self._link_tx_bytes += size
        return True

    def _from_link(self, control: list[bytes], now: float) -> None:
        """Down: receive, open and write until the link is empty."""
        open_into, opened = self._channel.open_into, self._opened
        received = 0
        # closed at once, not when collected: it may have bytes to put back
        with contextlib.closing(self._link.packets(BURST)) as packets:
            for buffer, size in packets:
                received += size
                if size and buffer[0] >> 3 not in self._channel.data_kinds:
                    control.append(bytes(buffer[:size]))
                    continue
                packet = open_into(buffer, size, opened, now)
                if packet is not None:
                    self._deliver(packet)
        self._link_rx_bytes += received

    def _deliver(self, packet: memoryview) -> None:
        try:
            os.write(self._tun, packet)
        except OSError as error:
            self._channel.drop(slug("tun", error))
            return
        self._rx_packets += 1
        self._rx_bytes += len(packet)

    def _tun_failed(self, error: OSError) -> None:
        """Go on while the device exists, up or down."""
        reason = slug("tun", error)
        if reason != "tun-down":
            raise SessionError("tun-gone", error.strerror or "") from error
        self._channel.drop(reason)
