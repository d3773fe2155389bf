"""The data plane in our own process, many packets at a time.

Needs a tun with virtio-net headers (IFF_VNET_HDR), and numpy. Up: the kernel
hands over TCP and UDP super-packets, which are cut, sealed in one buffer and
sent in one call (UDP_SEGMENT). Down: datagrams come as one (UDP_GRO) or are
gathered, opened at a stride, and consecutive packets of a flow go to the tun
as one super-packet. What does not fit goes the way of the scalar plane.
"""

import contextlib
import os
import socket
from sys import byteorder
from typing import Final

import numpy as np

from qubes_vpn.dataplane.coalesce import Coalescer
from qubes_vpn.dataplane.link import (
    DATAGRAM_MAX,
    UDP_GRO,
    StreamLink,
    slug,
)
from qubes_vpn.dataplane.seal import Sealer
from qubes_vpn.dataplane.segment import (
    NEEDS_CSUM,
    VNET,
    VNET_SIZE,
    SuperPacket,
    finish_checksum,
)
from qubes_vpn.dataplane.unseal import PLAIN_MAX, ROW_WIDTH, ROWS, Opener
from qubes_vpn.dataplane.userspace import DATA, UserspacePlane
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.data_key import AeadKey
from qubes_vpn.errors import UntrustedInputError

# linux/if_tun.h: TUNSETOFFLOAD bits.
TUN_F_USO4: Final = 0x20
# Packets from the tun before the link has its turn.
_BURST: Final = 256
# Where a packet of the tun begins, so that its payload is aligned.
_TUN_LEAD: Final = 6
# Datagrams in a row that came alone before UDP_GRO is given up, and how many
# later it is tried again.
_GRO_PATIENCE: Final = 256
_GRO_RETRY: Final = 100_000


class OffloadPlane(UserspacePlane):
    """A UserspacePlane with offloads; used in the same way.

    offloads: the TUN_F_* bits that the tun took.
    """

    def __init__(
        self,
        link: socket.socket,
        tun: int,
        channel: DataChannel,
        *,
        stream: bool = False,
        offloads: int = 0,
    ) -> None:
        super().__init__(link, tun, channel, stream=stream)
        self._sealer = Sealer(self._link, channel)
        self._from = np.zeros(_TUN_LEAD + VNET_SIZE + DATAGRAM_MAX, np.uint8)
        self._from_view = self._from.data[_TUN_LEAD:]
        self._from_packet = self._from[_TUN_LEAD + VNET_SIZE :]
        self._rows = Coalescer(ROWS, ROW_WIDTH, udp=bool(offloads & TUN_F_USO4))
        self._data = np.zeros(ROWS * ROW_WIDTH + 2 * DATAGRAM_MAX, np.uint8)
        self._data_view = self._data.data
        self._opener = Opener(channel, self._rows, self._data)
        self._slots = [
            self._data_view[at : at + DATAGRAM_MAX]
            for at in range(0, ROWS * ROW_WIDTH, ROW_WIDTH)
        ]
        self._gro = not stream and self._set_gro(on=True)
        self._gro_misses = 0

    # --- up -----------------------------------------------------------------

    def _from_tun(self, now: float) -> None:
        view, buffers = self._from_view, (self._from_view,)
        sealer, taken = self._sealer, 0
        while taken < _BURST and self._link.has_room():
            try:
                size = os.readv(self._tun, buffers)
            except BlockingIOError:
                break
            except OSError as error:
                sealer.flush()
                self._tun_failed(error)
                return
            taken += self._take(view[VNET_SIZE:size], now)
        sealer.flush()
        self._link_tx_bytes += sealer.link_bytes
        sealer.link_bytes = 0

    def _take(self, packet: memoryview, now: float) -> int:
        """Seal one read of the tun; return how many packets it was."""
        vnet = VNET.unpack_from(self._from_view)
        size, count = len(packet), 1
        try:
            if vnet[1]:
                cut = SuperPacket(packet, self._from_packet, vnet)
                count = self._sealer.add_segments(cut, now)
                size += (count - 1) * (cut.size - cut.mss)
            else:
                if vnet[0] & NEEDS_CSUM:
                    finish_checksum(packet, vnet[4], vnet[5])
                count = int(self._sealer.add(packet, now))
        except UntrustedInputError as error:
            self._channel.drop(error.reason)
            return 1
        if count:
            self._tx_packets += count
            self._tx_bytes += size
            self._channel.traffic.tun_bytes += size
        return max(count, 1)

    # --- down ---------------------------------------------------------------

    def _from_link(self, control: list[bytes], now: float) -> None:
        if isinstance(self._link, StreamLink):
            super()._from_link(control, now)
        elif self._gro:
            self._receive_joined(control, now)
        else:
            self._gather(control, now)

    def _gather(self, control: list[bytes], now: float) -> None:
        """Receive datagrams side by side, and open them together."""
        receive, sizes = self._link.sock.recv_into, []
        for slot in self._slots:
            try:
                size = receive(slot)
            except BlockingIOError:
                break
            except OSError as error:
                self._channel.drop(slug("link", error))
                continue
            sizes.append(size)
            if size > PLAIN_MAX:
                break
        self._open(0, ROW_WIDTH, sizes, control, now)
        self._deliver_rows()
        self._gro_misses -= len(sizes)
        if self._gro_misses < -_GRO_RETRY:
            self._gro = self._set_gro(on=True)
            self._gro_misses = 0

    def _receive_joined(self, control: list[bytes], now: float) -> None:
        """Receive datagrams that the kernel has joined."""
        window = self._data_view[:DATAGRAM_MAX]
        for _ in range(ROWS):
            try:
                size, ancillary, _, _ = self._link.sock.recvmsg_into(
                    (window,), 64
                )
            except BlockingIOError:
                break
            except OSError as error:
                self._channel.drop(slug("link", error))
                continue
            if not ancillary:
                self._gro_misses += 1
                self._open(0, size, [size], control, now)
                continue
            self._gro_misses = 0
            each = int.from_bytes(ancillary[0][2][:4], byteorder)
            whole, tail = divmod(size, each)
            self._open(0, each, [each] * whole, control, now)
            if tail:
                self._open(whole * each, tail, [tail], control, now)
        self._deliver_rows()
        if self._gro_misses > _GRO_PATIENCE:
            self._gro = not self._set_gro(on=False)
            self._gro_misses = 0

    def _set_gro(self, *, on: bool) -> bool:
        with contextlib.suppress(OSError):
            self._link.sock.setsockopt(socket.SOL_UDP, UDP_GRO, int(on))
            return True
        return False

    def _open(
        self,
        begin: int,
        stride: int,
        sizes: list[int],
        control: list[bytes],
        now: float,
    ) -> None:
        """Sort datagrams that lie at a stride: runs that are alike."""
        self._link_rx_bytes += sum(sizes)
        view, count, first = self._data_view, len(sizes), 0
        while first < count:
            at = begin + first * stride
            size, kind = sizes[first], view[at]
            last = first + 1
            while (
                last < count
                and last - first < ROWS
                and sizes[last] == size
                and view[begin + last * stride] == kind
            ):
                last += 1
            self._open_alike(at, stride, size, last - first, control, now)
            first = last

    def _open_alike(
        self,
        at: int,
        stride: int,
        size: int,
        count: int,
        control: list[bytes],
        now: float,
    ) -> None:
        view = self._data_view
        kind = view[at] if size else 0
        key = self._channel.key(kind & 7)
        if size and kind >> 3 not in DATA:
            starts = range(at, at + count * stride, stride)
            control += [bytes(view[start : start + size]) for start in starts]
        elif isinstance(key, AeadKey) and not key.style and size <= PLAIN_MAX:
            if len(self._opener.sizes) + count > ROWS:
                self._deliver_rows()
            self._opener.open_rows(at, stride, size, count, now)
        else:
            self._deliver_rows()
            for begin in range(at, at + count * stride, stride):
                self._open_alone(begin, size, now)

    def _open_alone(self, begin: int, size: int, now: float) -> None:
        """Open what is too big for a row, or of a key not for batches."""
        end = begin + size
        buffer = memoryview(bytearray(size + 64))
        buffer[:size] = self._data_view[begin:end]
        packet = self._channel.open_into(buffer, size, self._opened, now)
        if packet is not None:
            self._deliver(packet)

    def _deliver_rows(self) -> None:
        """Give the tun what has been opened, joined where it can be."""
        sizes, row, rows = self._opener.sizes, 0, self._rows
        accept, traffic = self._channel.accept, self._channel.traffic
        while row < len(sizes):
            size = sizes[row]
            if not size or not accept(rows.packet(row, size)):
                row += 1
                continue
            joined, count = rows.join(row, sizes)
            if count > 1:
                size = sum(sizes[row : row + count])
                traffic.tun_bytes += size - sizes[row]
            row += count
            self._write(joined, count, size)
        sizes.clear()

    def _write(self, joined: memoryview, count: int, size: int) -> None:
        try:
            os.write(self._tun, joined)
        except OSError as error:
            self._channel.drop(slug("tun", error), count)
            return
        self._rx_packets += count
        self._rx_bytes += size

    def _deliver(self, packet: memoryview) -> None:
        self._write(
            memoryview(bytes(VNET_SIZE) + bytes(packet)), 1, len(packet)
        )
