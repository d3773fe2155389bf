"""Consecutive packets of one flow, joined into a super-packet for the tun.

The reverse of segment.py: what the kernel would cut the super-packet into is,
byte for byte, what came in. Packets join when they are TCP with payload and
no flags but ACK and PSH, or UDP, not fragmented, without IP options or
extension headers, equal in every header field but length, id, checksum,
sequence number and PSH, with consecutive ids and sequence numbers, and of
equal size but for a shorter last one. PSH ends a super-packet.

All checksums of the packets are verified first: the kernel makes those of a
super-packet anew and would hide corruption.
"""

from sys import byteorder
from typing import Final

import numpy as np

from qubes_vpn.dataplane.segment import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    IPV6_HEADER_SIZE,
    NEEDS_CSUM,
    PROTO_TCP,
    PROTO_UDP,
    VNET,
    VNET_SIZE,
    Array,
    checksum,
    native,
    plain_sum,
)

# Bytes of a packet that are looked at: IPv6 and TCP headers with all options.
HEAD: Final = 104
# Bytes of a row before its packet: a virtio-net header, and alignment.
ROW_LEAD: Final = 16
# Smaller packets cost less by themselves than to look at.
_WORTH: Final = 100
_ONES: Final = 0xFFFF
_IPV4_FIRST: Final = 0x45
_IPV4_HEADER_SIZE: Final = 20
_TCP_PSH: Final = 0x08
_TCP_ACK: Final = 0x10
_SIZE_MAX: Final = 0xFFFF


def _mask(ipv4: bool, tcp_words: int) -> bytes:  # noqa: FBT001
    """Mark the header bytes that must be equal; tcp_words 0 means UDP."""
    l4 = _IPV4_HEADER_SIZE if ipv4 else IPV6_HEADER_SIZE
    size = l4 + (tcp_words * 4 if tcp_words else 8)
    mask = bytearray(b"\xff" * size + bytes(HEAD - size))
    differing = [(2, 6), (10, 12)] if ipv4 else [(4, 6)]
    if tcp_words:
        differing += [(l4 + 4, l4 + 8), (l4 + 16, l4 + 18)]
        mask[l4 + 13] = _ONES & ~_TCP_PSH & 0xFF
    else:
        differing += [(l4 + 4, l4 + 8)]
    for begin, end in differing:
        mask[begin:end] = bytes(end - begin)
    return bytes(mask)


class _Shape:
    """What a packet must be for others to join it; None of these: no join.

    l4: where TCP or UDP begins. header: bytes before the payload.
    """

    __slots__ = ("header", "ipv4", "l4", "mask", "tcp")

    def __init__(self, *, ipv4: bool, words: int) -> None:
        self.ipv4 = ipv4
        self.tcp = words > 0
        self.l4 = _IPV4_HEADER_SIZE if ipv4 else IPV6_HEADER_SIZE
        self.header = self.l4 + (words * 4 if words else 8)
        self.mask = np.frombuffer(_mask(ipv4, words), np.uint64)


_SHAPES: Final = {
    (ipv4, words): _Shape(ipv4=ipv4, words=words)
    for ipv4 in (True, False)
    for words in (0, *range(5, 16))
}


def _shape(head: bytes, size: int, *, udp: bool) -> _Shape | None:
    """Classify a packet by its first HEAD bytes."""
    ipv4 = head[0] == _IPV4_FIRST
    if ipv4:
        if head[6] & 0x3F or head[7] or size != head[2] << 8 | head[3]:
            return None
        proto, l4 = head[9], _IPV4_HEADER_SIZE
    elif head[0] >> 4 == 6:
        if size != (head[4] << 8 | head[5]) + IPV6_HEADER_SIZE:
            return None
        proto, l4 = head[6], IPV6_HEADER_SIZE
    else:
        return None
    if proto == PROTO_TCP and head[l4 + 13] & ~_TCP_PSH == _TCP_ACK:
        shape = _SHAPES.get((ipv4, head[l4 + 12] >> 4))
    elif proto == PROTO_UDP and udp:
        shape = _SHAPES[ipv4, 0]
    else:
        shape = None
    return shape if shape and size > shape.header else None


class Coalescer:
    """Joins packets that lie in the rows of one buffer.

    Packet n begins at byte ROW_LEAD of row n. Rows are `width` bytes, a
    multiple of 8; there is room for the widest packet and 8 bytes more.
    """

    def __init__(self, rows: int, width: int, *, udp: bool) -> None:
        self.data = np.zeros((rows, width), np.uint8)
        self.view = self.data.reshape(-1).data
        self.width = width
        self._packets = self.data[:, ROW_LEAD:]
        self._heads = self.data.view(np.uint64)[:, ROW_LEAD // 8 :]
        self._words = self.data.view(np.uint32)[:, ROW_LEAD // 4 :]
        self._udp = udp
        self._out = np.zeros(VNET_SIZE + _SIZE_MAX, np.uint8)
        self._out_view = self._out.data
        self._number = np.arange(rows, dtype=np.uint32)

    def packet(self, row: int, size: int) -> memoryview:
        """Show the packet of a row."""
        begin = row * self.width + ROW_LEAD
        return self.view[begin : begin + size]

    def join(self, first: int, sizes: list[int]) -> tuple[memoryview, int]:
        """Join the packet of row `first` with those after it.

        sizes: of the packets in all rows, 0 for none. Returns what the tun
        is to be given, virtio-net header included, and how many packets it
        is. The result is valid until the next call.
        """
        size = sizes[first]
        begin = first * self.width + ROW_LEAD
        lone = self.view[begin - VNET_SIZE : begin + size]
        following = sizes[first + 1] if first + 1 < len(sizes) else 0
        if not 0 < following <= size or size < _WORTH:
            return lone, 1
        next_begin = begin + self.width
        view = self.view
        if (
            view[begin + 6 : begin + 10]
            != view[next_begin + 6 : next_begin + 10]
        ):
            return lone, 1
        shape = _shape(bytes(view[begin : begin + HEAD]), size, udp=self._udp)
        if shape is None:
            return lone, 1
        count = self._extent(shape, first, sizes)
        if count < 2 or not self._verified(shape, first, count, sizes):
            return lone, 1
        return self._emit(shape, first, count, sizes), count

    def _extent(self, shape: _Shape, first: int, sizes: list[int]) -> int:
        """Count the rows from `first` on that are one run."""
        size = sizes[first]
        mss = size - shape.header
        most = (_SIZE_MAX - shape.header) // mss
        last = min(len(sizes), first + most)
        packets = self._packets[first:last]
        width = -(-shape.header // 8)
        heads = self._heads[first:last, :width]
        same = ~((heads ^ heads[0]) & shape.mask[:width]).any(axis=1)
        number = self._number[: last - first]
        l4 = shape.l4
        if shape.tcp:
            same &= _field(packets, l4 + 4, ">u4") == (
                _number(packets[0], l4 + 4, 4) + number * mss
            )
        if shape.ipv4:
            same &= _field(packets, 4, ">u2") == (
                (_number(packets[0], 4, 2) + number) & 0xFFFF
            )
        given = np.array(sizes[first:last])
        full = same & (given == size)
        count = _first(~full)
        if shape.tcp:
            pushed = _first(packets[:count, l4 + 13] & _TCP_PSH != 0) + 1
            if pushed <= count:
                return pushed
        if count < len(full) and same[count]:
            count += shape.header < sizes[first + count] < size
        return count

    def _verified(
        self, shape: _Shape, first: int, count: int, sizes: list[int]
    ) -> bool:
        """Check all checksums of the rows of a run."""
        size, last = sizes[first], first + count
        tail = sizes[last - 1]
        even = size + -size % 4
        self._packets[first:last, size:even] = 0
        self._packets[last - 1, tail:even] = 0
        words = self._words[first:last]
        start = 12 if shape.ipv4 else 8
        totals = words[:, start // 4 : even // 4].sum(axis=1, dtype=np.uint64)
        proto = native(PROTO_TCP if shape.tcp else PROTO_UDP)
        totals += np.uint64(proto + native(size - shape.l4))
        # 65535 is 0 here: no difference of lengths becomes negative.
        totals[-1] += np.uint64(_ONES + native(tail - shape.l4)) - np.uint64(
            native(size - shape.l4)
        )
        if (totals % np.uint64(_ONES)).any():
            return False
        if shape.ipv4:
            header = words[:, :5].sum(axis=1, dtype=np.uint64)
            if (header % np.uint64(_ONES)).any():
                return False
        if shape.tcp:
            return True
        at = shape.l4 + 6
        return bool(_field(self._packets[first:last], at, ">u2").all())

    def _emit(
        self, shape: _Shape, first: int, count: int, sizes: list[int]
    ) -> memoryview:
        """Build the super-packet of a run."""
        size, h, l4 = sizes[first], shape.header, shape.l4
        mss, tail = size - h, sizes[first + count - 1] - h
        packets = self._packets
        start = VNET_SIZE + h
        body = (count - 1) * mss
        end = start + body + tail
        out = self._out
        out[VNET_SIZE:start] = packets[first, :h]
        out[start : start + body].reshape(count - 1, mss)[:] = packets[
            first : first + count - 1, h:size
        ]
        last = packets[first + count - 1]
        out[start + body : end] = last[h : h + tail]
        if shape.tcp:
            out[VNET_SIZE + l4 + 13] |= last[l4 + 13] & _TCP_PSH
        self._finish(shape, end - VNET_SIZE)
        kind = GSO_UDP_L4
        if shape.tcp:
            kind = GSO_TCPV4 if shape.ipv4 else GSO_TCPV6
        VNET.pack_into(
            self._out_view,
            0,
            NEEDS_CSUM,
            kind,
            h,
            mss,
            l4,
            16 if shape.tcp else 6,
        )
        return self._out_view[:end]

    def _finish(self, shape: _Shape, size: int) -> None:
        """Set lengths, the IP checksum and the pseudo header's sum."""
        view, l4 = self._out_view[VNET_SIZE:], shape.l4
        if shape.ipv4:
            view[2:4] = size.to_bytes(2)
            view[10:12] = bytes(2)
            total = checksum(plain_sum(view[:l4]))
            view[10:12] = total.to_bytes(2, byteorder)
            addresses = view[12:20]
        else:
            view[4:6] = (size - IPV6_HEADER_SIZE).to_bytes(2)
            addresses = view[8:40]
        proto = PROTO_TCP if shape.tcp else PROTO_UDP
        total = plain_sum(addresses) + native(proto) + native(size - l4)
        pseudo = _ONES - checksum(total)
        at = l4 + 16 if shape.tcp else l4 + 6
        view[at : at + 2] = pseudo.to_bytes(2, byteorder)
        if not shape.tcp:
            view[l4 + 4 : l4 + 6] = (size - l4).to_bytes(2)


def _field(packets: Array, at: int, kind: str) -> Array:
    """Read one big-endian field of all rows."""
    width = int(kind[-1])
    field: Array = np.ascontiguousarray(packets[:, at : at + width])
    return field.view(kind).reshape(-1)


def _number(packet: Array, at: int, size: int) -> int:
    return int.from_bytes(packet[at : at + size].tobytes())


def _first(flags: Array) -> int:
    """Give the index of the first true one, or how many there are."""
    return int(flags.argmax()) if flags.any() else len(flags)
