"""From the link to the tun, many packets at a time.

Datagrams of one peer come in the rows of an array, or end to end as the
kernel joined them, or framed as in a stream. They are opened at a stride, and
consecutive packets of a flow go to the tun as one super-packet.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from qubes_vpn.dataplane.coalesce import JOIN_MIN, ROW_LEAD, Coalescer
from qubes_vpn.dataplane.link import DATAGRAM_MAX, SPARE, packet_size, slug
from qubes_vpn.dataplane.segment import VNET_SIZE, Array
from qubes_vpn.dataplane.unseal import ROW_WIDTH, ROWS, SEALED_MAX, Opener
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.wire.framing import LENGTH_SIZE

_IPV4_FIRST: Final = 0x45
_IPV4_MIN: Final = 20


class Inlet:
    """Opens datagrams and writes what was in them to a tun.

    tun: a descriptor with virtio-net headers; udp: its kernel cuts UDP
    super-packets. channel: whose datagrams come. Whoever reads them sets
    `now`, mono seconds, and takes what is found in `control`: packets that
    are not data. rows: where datagrams may be put, ROWS of them and not more
    than SEALED_MAX bytes of each. met_big: one that was longer came.
    packets, size, link_size: of what was delivered, and bytes of all
    datagrams. divert: if set, it is asked for each packet whether it has
    taken it; what it takes does not go to the tun.
    """

    def __init__(self, tun: int, channel: DataChannel, *, udp: bool) -> None:
        self.now = 0.0
        self.control: list[bytes] = []
        self.packets = self.size = self.link_size = 0
        self.met_big = False
        self.divert: Callable[[memoryview], bool] | None = None
        self._tun = tun
        self._channel = channel
        self._rows = Coalescer(ROWS, ROW_WIDTH, udp=udp)
        self._opener = Opener(channel, self._rows)
        self.rows = self._opener.data
        self._opened = memoryview(bytearray(DATAGRAM_MAX + SPARE))

    @property
    def channel(self) -> DataChannel:
        """Whose datagrams come."""
        return self._channel

    @channel.setter
    def channel(self, channel: DataChannel) -> None:
        self._channel = self._opener.channel = channel

    def take_rows(self, sizes: list[int], first: int = 0) -> None:
        """Take datagrams of these sizes from row `first` on."""
        if sizes:
            self._open(sizes, first)
            self._deliver_rows()

    def take_joined(self, joined: Array, each: int) -> None:
        """Take datagrams that lie end to end, of `each` bytes.

        The last may be shorter.
        """
        size = len(joined)
        if each > SEALED_MAX:
            self.link_size += size
            for begin in range(0, size, each):
                self._open_alone(joined.data[begin:][:each])
            return
        rows = self.rows
        whole = size // each
        for first in range(0, whole, ROWS):
            count = min(ROWS, whole - first)
            data = joined[first * each : (first + count) * each]
            rows[:count, :each] = data.reshape(count, each)
            self.take_rows([each] * count)
        tail = size % each
        if tail:
            rows[0, :tail] = joined[size - tail :]
            self.take_rows([tail])

    def take_frames(self, data: memoryview) -> int:
        """Take the framed packets that are whole; return their bytes.

        Stops at a packet that is not data, so that what it changes is in
        force for the next: call again, until there is nothing to take.
        Raises SessionError "link-framing".
        """
        sizes: list[int] = []
        met, at = len(self.control), 0
        while len(self.control) == met and (size := packet_size(data[at:])):
            begin = at + LENGTH_SIZE
            if size > SEALED_MAX or not self._is_data(data[begin]):
                self.take_rows(sizes)
                sizes = []
                self._open_alone(data[begin : begin + size])
                self.link_size += size
                count = 1
            else:
                count = self._fill_rows(data, at, size, len(sizes))
                sizes += [size] * count
            at += count * (LENGTH_SIZE + size)
            if len(sizes) == ROWS:
                self.take_rows(sizes)
                sizes = []
        self.take_rows(sizes)
        return at

    def _is_data(self, first: int) -> bool:
        return first >> 3 in self._channel.data_kinds

    def _fill_rows(
        self, data: memoryview, at: int, size: int, first: int
    ) -> int:
        """Copy framed packets that begin in the same way into the rows."""
        stride = LENGTH_SIZE + size
        count = min((len(data) - at) // stride, ROWS - first)
        flat = np.frombuffer(data, np.uint8, count * stride, at)
        block = flat.reshape(count, stride)
        if count > 1:
            alike = LENGTH_SIZE + 1
            other = (block[:, :alike] != block[0, :alike]).any(1)
            if other.any():
                count = int(other.argmax())
        rows = self.rows[first : first + count]
        rows[:, :size] = block[:count, LENGTH_SIZE:]
        return count

    def _open(self, sizes: list[int], begin: int) -> None:
        """Open the datagrams in rows: runs that are alike together."""
        self.link_size += sum(sizes)
        count = len(sizes)
        kinds = self.rows[begin : begin + count, 0].tobytes()
        if sizes.count(sizes[0]) == count == kinds.count(kinds[0]):
            self._open_alike(begin, sizes[0], count)
            return
        for first, last in runs(sizes, kinds):
            self._open_alike(begin + first, sizes[first], last - first)

    def _open_alike(self, first: int, size: int, count: int) -> None:
        view = self._opener.view
        kind = view[first * ROW_WIDTH] if size else 0
        key = self._channel.key(kind & 7)
        starts = range(
            first * ROW_WIDTH, (first + count) * ROW_WIDTH, ROW_WIDTH
        )
        if size and not self._is_data(kind):
            self.control += [bytes(view[at : at + size]) for at in starts]
        elif size > SEALED_MAX:
            # A row does not hold it all. What is lost, TCP sends again.
            self._channel.drop("link-cut", count)
            self.met_big = True
        elif key is not None and not key.bare and not key.style:
            self._opener.open_rows(first, size, count, self.now)
        else:
            self._deliver_rows()
            for at in starts:
                self._open_alone(view[at : at + size])

    def _open_alone(self, datagram: memoryview) -> None:
        """Open what is too big for a row, or of a key not for rows."""
        size = len(datagram)
        if size and not self._is_data(datagram[0]):
            self.control.append(bytes(datagram))
            return
        buffer = memoryview(bytearray(size + SPARE))
        buffer[:size] = datagram
        packet = self._channel.open_into(buffer, size, self._opened, self.now)
        if packet is not None:
            self.met_big |= size > SEALED_MAX
            self._deliver(packet)

    def _deliver_rows(self) -> None:
        """Give the tun what has been opened, joined where it can be."""
        channel, rows, sizes = self._channel, self._rows, self._opener.sizes
        view, width, write, tun = rows.view, rows.width, os.write, self._tun
        sources, divert = channel.sources, self.divert
        row, number, packets, total = 0, len(sizes), 0, 0
        while row < number:
            at, size, count = row * width + ROW_LEAD, sizes[row], 1
            if (
                sources is None
                and view[at] == _IPV4_FIRST
                and view[at + 2] << 8 | view[at + 3] == size >= _IPV4_MIN
            ):
                # What accept says to nearly all; it counts, too.
                channel.traffic.tun_bytes += size
            elif not size or not channel.accept(view[at : at + size]):
                row += 1
                continue
            if divert is not None and divert(view[at : at + size]):
                row += 1
                packets += 1
                total += size
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
        self.packets += packets
        self.size += total
        sizes.clear()

    def _deliver(self, packet: memoryview) -> None:
        if self.divert is None or not self.divert(packet):
            try:
                os.writev(self._tun, (bytes(VNET_SIZE), packet))
            except OSError as error:
                self._channel.drop(slug("tun", error))
                return
        self.packets += 1
        self.size += len(packet)


def runs(*keys: Sequence[object]) -> Iterator[tuple[int, int]]:
    """Give first and end of each run of items that are alike in all keys."""
    first = 0
    for _, alike in itertools.groupby(zip(*keys, strict=True)):
        last = first + len(list(alike))
        yield first, last
        first = last
