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
import time
from sys import byteorder
from typing import Final

import numpy as np

from qubes_vpn.dataplane.coalesce import JOIN_MIN, ROW_LEAD, Coalescer
from qubes_vpn.dataplane.gather import Gatherer
from qubes_vpn.dataplane.link import (
    DATAGRAM_MAX,
    SPARE,
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
from qubes_vpn.dataplane.unseal import ROW_WIDTH, ROWS, SEALED_MAX, Opener
from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.data_key import AeadKey
from qubes_vpn.errors import SessionError, UntrustedInputError
from qubes_vpn.wire.framing import LENGTH_SIZE

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
# After a datagram that is too big for a row: how many more are read into a
# buffer that holds any, if none of them is authentic and as big.
_JUMBO_FOR: Final = 10_000
_ANCILLARY_SIZE: Final = 64
# From how many packets a second on a batch may wait, and how long, in seconds;
# and over how many packets the rate is taken.

_LOAD: Final = 12_000
_REST: Final = 0.0003
_SAMPLE: Final = 128
_IPV4_FIRST: Final = 0x45
_IPV4_MIN: Final = 20


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
        self._opener = Opener(channel, self._rows)
        self._joined = np.zeros(DATAGRAM_MAX + 1, np.uint8)
        self._gather = Gatherer(
            link.fileno(), self._opener.data, SEALED_MAX
        ).receive
        self._gro = not stream and self._set_gro(on=True)
        self._gro_misses = 0
        self._jumbo = 0
        self._packets, self._sampled = 0, time.monotonic()
        self._loaded = False

    def _rest(self) -> None:
        """Under load, let a batch grow before it is looked at.

        What a batch costs by itself is more than ten packets do. Without
        load nothing is delayed.
        """
        now = time.monotonic()
        packets = self._rx_packets + self._tx_packets
        many = packets - self._packets >= _SAMPLE
        if many or now - self._sampled > _SAMPLE / _LOAD:
            self._loaded = many and now - self._sampled < _SAMPLE / _LOAD
            self._packets, self._sampled = packets, now
        if self._loaded:
            time.sleep(_REST)

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
        self._rest()
        if isinstance(self._link, StreamLink):
            self._receive_stream(self._link, control, now)
        elif self._gro or self._jumbo:
            self._receive_joined(control, now)
        else:
            self._receive_rows(control, now)

    def _receive_stream(
        self, link: StreamLink, control: list[bytes], now: float
    ) -> None:
        """Read once, and open the whole packets in it together."""
        data = link.receive()
        sizes: list[int] = []
        at, rest = 0, len(data)
        while rest > LENGTH_SIZE:
            size = data[at] << 8 | data[at + 1]
            if not size:
                raise SessionError("link-framing", "a packet of 0 bytes")
            if rest < LENGTH_SIZE + size:
                break
            if size > SEALED_MAX:
                self._open_copied(sizes, control, now)
                begin = at + LENGTH_SIZE
                self._open_alone(data[begin : begin + size], control, now)
                self._link_rx_bytes += size
                count = 1
            else:
                count = self._fill_rows(data, at, size, len(sizes))
                sizes += [size] * count
            at += count * (LENGTH_SIZE + size)
            rest = len(data) - at
            if len(sizes) == ROWS:
                self._open_copied(sizes, control, now)
        link.consume(at)
        self._open_copied(sizes, control, now)

    def _fill_rows(
        self, data: memoryview, at: int, size: int, first: int
    ) -> int:
        """Copy framed packets that have this size into the rows."""
        stride = LENGTH_SIZE + size
        count = min((len(data) - at) // stride, ROWS - first)
        block = np.frombuffer(data, np.uint8, count * stride, at)
        block = block.reshape(count, stride)
        if count > 1:
            other = (block[:, :LENGTH_SIZE] != block[0, :LENGTH_SIZE]).any(1)
            if other.any():
                count = int(other.argmax())
        rows = self._opener.data[first : first + count]
        rows[:, :size] = block[:count, LENGTH_SIZE:]
        return count

    def _open_copied(
        self, sizes: list[int], control: list[bytes], now: float
    ) -> None:
        if sizes:
            self._open(sizes, control, now)
            self._deliver_rows()
            sizes.clear()

    def _receive_rows(self, control: list[bytes], now: float) -> None:
        """Receive datagrams side by side, and open them together."""
        try:
            sizes = self._gather()
        except OSError as error:
            self._channel.drop(slug("link", error))
            return
        if sizes:
            self._open(sizes, control, now)
            self._deliver_rows()
        self._gro_misses -= len(sizes)
        if self._gro_misses < -_GRO_RETRY:
            self._gro = self._set_gro(on=True)
            self._gro_misses = 0

    def _receive_joined(self, control: list[bytes], now: float) -> None:
        """Receive datagrams of any size, and such as the kernel has joined."""
        sizes: list[int] = []
        for _ in range(ROWS):
            try:
                size, ancillary, _, _ = self._link.sock.recvmsg_into(
                    (self._joined.data,), _ANCILLARY_SIZE
                )
            except BlockingIOError:
                break
            except OSError as error:
                self._channel.drop(slug("link", error))
                continue
            self._jumbo -= self._jumbo > 0
            each = size
            if ancillary:
                each = int.from_bytes(ancillary[0][2][:4], byteorder)
            if each == size <= SEALED_MAX:
                self._opener.data[len(sizes), :size] = self._joined[:size]
                sizes.append(size)
                self._gro_misses += 1
                continue
            self._gro_misses = 0
            self._open_copied(sizes, control, now)
            self._split(size, each, control, now)
        self._open_copied(sizes, control, now)
        if self._gro and self._gro_misses > _GRO_PATIENCE:
            self._gro = not self._set_gro(on=False)
            self._gro_misses = 0

    def _split(
        self, size: int, each: int, control: list[bytes], now: float
    ) -> None:
        """Open one read of datagrams that lie end to end."""
        if each > SEALED_MAX:
            self._link_rx_bytes += size
            for begin in range(0, size, each):
                self._open_alone(
                    self._joined.data[begin:size][:each], control, now
                )
            return
        rows = self._opener.data
        whole = size // each
        for first in range(0, whole, ROWS):
            count = min(ROWS, whole - first)
            data = self._joined[first * each : (first + count) * each]
            rows[:count, :each] = data.reshape(count, each)
            self._open_copied([each] * count, control, now)
        tail = size % each
        if tail:
            rows[0, :tail] = self._joined[size - tail : size]
            self._open_copied([tail], control, now)

    def _set_gro(self, *, on: bool) -> bool:
        with contextlib.suppress(OSError):
            self._link.sock.setsockopt(socket.SOL_UDP, UDP_GRO, int(on))
            return True
        return False

    def _open(self, sizes: list[int], control: list[bytes], now: float) -> None:
        """Open the datagrams in the rows: runs that are alike together."""
        self._link_rx_bytes += sum(sizes)
        count = len(sizes)
        kinds = self._opener.data[:count, 0].tobytes()
        if sizes.count(sizes[0]) == count == kinds.count(kinds[0]):
            self._open_alike(0, sizes[0], count, control, now)
            return
        first = 0
        for last in range(1, count + 1):
            if (
                last == count
                or sizes[last] != sizes[first]
                or kinds[last] != kinds[first]
            ):
                alike = last - first
                self._open_alike(first, sizes[first], alike, control, now)
                first = last

    def _open_alike(
        self,
        first: int,
        size: int,
        count: int,
        control: list[bytes],
        now: float,
    ) -> None:
        view = self._opener.view
        kind = view[first * ROW_WIDTH] if size else 0
        key = self._channel.key(kind & 7)
        starts = range(
            first * ROW_WIDTH, (first + count) * ROW_WIDTH, ROW_WIDTH
        )
        if size and kind >> 3 not in self._channel.data_kinds:
            control += [bytes(view[start : start + size]) for start in starts]
        elif size > SEALED_MAX:
            # A row does not hold it all. What is lost, TCP sends again.
            self._channel.drop("link-cut", count)
            self._jumbo = _JUMBO_FOR
        elif isinstance(key, AeadKey) and not key.style:
            self._opener.open_rows(first, size, count, now)
        else:
            self._deliver_rows()
            for start in starts:
                self._open_alone(view[start : start + size], control, now)

    def _open_alone(
        self, datagram: memoryview, control: list[bytes], now: float
    ) -> None:
        """Open what is too big for a row, or of a key not for batches."""
        size = len(datagram)
        if size and datagram[0] >> 3 not in self._channel.data_kinds:
            control.append(bytes(datagram))
            return
        buffer = memoryview(bytearray(size + SPARE))
        buffer[:size] = datagram
        packet = self._channel.open_into(buffer, size, self._opened, now)
        if packet is not None:
            if size > SEALED_MAX:
                self._jumbo = _JUMBO_FOR
            self._deliver(packet)

    def _deliver_rows(self) -> None:
        """Give the tun what has been opened, joined where it can be."""
        channel, rows, sizes = self._channel, self._rows, self._opener.sizes
        view, width, write, tun = rows.view, rows.width, os.write, self._tun
        any_source = channel.sources is None
        row, number, packets, total = 0, len(sizes), 0, 0
        while row < number:
            at, size, count = row * width + ROW_LEAD, sizes[row], 1
            if (
                any_source
                and view[at] == _IPV4_FIRST
                and view[at + 2] << 8 | view[at + 3] == size >= _IPV4_MIN
            ):
                # What accept says to nearly all; it counts, too.
                channel.traffic.tun_bytes += size
            elif not size or not channel.accept(view[at : at + size]):
                row += 1
                continue
            if size < JOIN_MIN:
                joined = view[at - VNET_SIZE : at + size]
            else:
                joined, count = rows.join(row, sizes)
                if count > 1:
                    more = sum(sizes[row + 1 : row + count])
                    channel.traffic.tun_bytes += more
                    size += more
            row += count
            try:
                write(tun, joined)
            except OSError as error:
                channel.drop(slug("tun", error), count)
            else:
                packets += count
                total += size
        self._rx_packets += packets
        self._rx_bytes += total
        sizes.clear()

    def _deliver(self, packet: memoryview) -> None:
        try:
            os.writev(self._tun, (bytes(VNET_SIZE), packet))
        except OSError as error:
            self._channel.drop(slug("tun", error))
            return
        self._rx_packets += 1
        self._rx_bytes += len(packet)
