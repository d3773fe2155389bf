"""Consecutive packets of one flow, joined into a super-packet for the tun.

The reverse of segment.py: what the kernel would cut the super-packet into is,
byte for byte, what came in. Packets join when they are TCP with payload and
no flags but ACK and PSH, or UDP, not fragmented, without IP options or
extension headers, equal in every header field but length, id, checksum,
sequence number and PSH, with consecutive ids and sequence numbers, and of
equal size but for a shorter last one. PSH ends a super-packet.

All checksums of the packets are verified first: the kernel makes those of a
super-packet anew and would hide corruption.

Headers are compared one by one, in a loop: for the dozen packets of a usual
batch that is cheaper than any array.
"""

import struct
from collections.abc import Callable
from sys import byteorder
from typing import Final, TypeAlias

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
    checksum,
    native,
    plain_sum,
)

# Bytes of a row before its packet: a virtio-net header, and alignment.
ROW_LEAD: Final = 16
# Smaller packets cost less by themselves than to look at.
JOIN_MIN: Final = 100
_ONES: Final = 0xFFFF
_IPV4_FIRST: Final = 0x45
_IPV4_HEADER_SIZE: Final = 20
_TCP_PSH: Final = 0x08
_TCP_ACK: Final = 0x10
_SIZE_MAX: Final = 0xFFFF
_SEQUENCE_MASK: Final = 0xFFFFFFFF

# What differs or must not, of one packet: (parts that are the same in all of
# a run, length of the IP packet, id, IP checksum's share, sequence number,
# TCP flags).
Fields: TypeAlias = tuple[tuple[object, ...], int, int, int, int, int]
Reader: TypeAlias = Callable[[memoryview, int], Fields]


def _read_tcp4(options: int) -> Reader:
    unpack = struct.Struct(f">2sHH4sH12sI5sB2s2x{2 + options}s").unpack_from

    def read(view: memoryview, at: int) -> Fields:
        tos, size, ident, ttl, check, ends, seq, ack, flags, window, rest = (
            unpack(view, at)
        )
        # A valid header stays valid when its sum stays the same.
        share = (size + ident + check) % _ONES
        same = (tos, ttl, ends, ack, window, rest)
        return same, size, ident, share, seq, flags

    return read


def _read_tcp6(options: int) -> Reader:
    unpack = struct.Struct(f">4sH38sI5sB2s2x{2 + options}s").unpack_from

    def read(view: memoryview, at: int) -> Fields:
        flow, size, ends, seq, ack, flags, window, rest = unpack(view, at)
        size += IPV6_HEADER_SIZE
        return (flow, ends, ack, window, rest), size, 0, 0, seq, flags

    return read


_UDP4: Final = struct.Struct(">2sHH4sH12sH").unpack_from
_UDP6: Final = struct.Struct(">4sH38sH").unpack_from


def _read_udp4(view: memoryview, at: int) -> Fields:
    tos, size, ident, ttl, check, ends, length = _UDP4(view, at)
    share = (size + ident + check) % _ONES
    same = (tos, ttl, ends, size - length)
    return same, size, ident, share, 0, _TCP_ACK


def _read_udp6(view: memoryview, at: int) -> Fields:
    flow, size, ends, length = _UDP6(view, at)
    size += IPV6_HEADER_SIZE
    return (flow, ends, size - length), size, 0, 0, 0, _TCP_ACK


class _Shape:
    """Headers of one layout. words: of the TCP header, 0 means UDP.

    l4: where TCP or UDP begins. header: bytes before the payload.
    """

    __slots__ = ("header", "id_mask", "ipv4", "l4", "read", "tcp")

    def __init__(self, *, ipv4: bool, words: int) -> None:
        self.ipv4 = ipv4
        self.tcp = words > 0
        self.l4 = _IPV4_HEADER_SIZE if ipv4 else IPV6_HEADER_SIZE
        self.header = self.l4 + (words * 4 if words else 8)
        self.id_mask = 0xFFFF if ipv4 else 0
        if words:
            make = _read_tcp4 if ipv4 else _read_tcp6
            self.read = make(words * 4 - 20)
        else:
            self.read = _read_udp4 if ipv4 else _read_udp6


_SHAPES: Final = {
    (ipv4, words): _Shape(ipv4=ipv4, words=words)
    for ipv4 in (True, False)
    for words in (0, *range(5, 16))
}


def _shape(packet: memoryview, *, udp: bool) -> _Shape | None:
    """Find the layout of a packet of JOIN_MIN bytes at least, or None."""
    ipv4 = packet[0] == _IPV4_FIRST
    if ipv4:
        if packet[6] & 0x3F or packet[7]:
            return None
        proto, l4 = packet[9], _IPV4_HEADER_SIZE
        if plain_sum(packet[:l4]) != _ONES:
            return None
    elif packet[0] >> 4 == 6:
        proto, l4 = packet[6], IPV6_HEADER_SIZE
    else:
        return None
    if proto == PROTO_TCP and packet[l4 + 13] == _TCP_ACK:
        return _SHAPES.get((ipv4, packet[l4 + 12] >> 4))
    if proto == PROTO_UDP and udp:
        length = packet[l4 + 4] << 8 | packet[l4 + 5]
        return _SHAPES[ipv4, 0] if length == len(packet) - l4 else None
    return None


class Coalescer:
    """Joins packets that lie in the rows of one buffer.

    Packet n begins at byte ROW_LEAD of row n. Rows are `width` bytes, a
    multiple of 4; there is room for the widest packet and 4 bytes more.
    """

    def __init__(self, rows: int, width: int, *, udp: bool) -> None:
        self.data = np.zeros((rows, width), np.uint8)
        self.view = self.data.reshape(-1).data
        self.width = width
        self._packets = self.data[:, ROW_LEAD:]
        self._words = self.data.view(np.uint32)[:, ROW_LEAD // 4 :]
        self._udp = udp
        self._out = np.zeros(VNET_SIZE + _SIZE_MAX, np.uint8)
        self._out_view = self._out.data

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
        if (
            size >= JOIN_MIN
            and first + 1 < len(sizes)
            and 0 < sizes[first + 1] <= size
        ):
            packet = self.view[begin : begin + size]
            shape = _shape(packet, udp=self._udp)
            if shape and size > shape.header:
                count = self._extent(shape, first, sizes)
                if count > 1 and self._verified(shape, first, count, sizes):
                    return self._emit(shape, first, count, sizes), count
        return self.view[begin - VNET_SIZE : begin + size], 1

    def _extent(self, shape: _Shape, first: int, sizes: list[int]) -> int:
        """Count the rows from `first` on that are one run."""
        view, width, read = self.view, self.width, shape.read
        size, header, id_mask = sizes[first], shape.header, shape.id_mask
        mss = size - header
        step = mss if shape.tcp else 0
        at = first * width + ROW_LEAD
        same, length, ident, share, sequence, _ = read(view, at)
        if length != size:
            return 1
        count = 1
        most = (_SIZE_MAX - header) // mss
        for given in sizes[first + 1 : first + most]:
            if not header < given <= size:
                break
            at += width
            sequence = (sequence + step) & _SEQUENCE_MASK
            ident = (ident + 1) & id_mask
            also, length, its_id, its_share, its_sequence, flags = read(
                view, at
            )
            if (
                its_sequence != sequence
                or its_id != ident
                or its_share != share
                or length != given
                or flags & ~_TCP_PSH != _TCP_ACK
                or also != same
            ):
                break
            count += 1
            if flags != _TCP_ACK or given != size:
                break
        return count

    def _verified(
        self, shape: _Shape, first: int, count: int, sizes: list[int]
    ) -> bool:
        """Check the TCP or UDP checksums of the rows of a run."""
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
        if shape.tcp:
            return True
        at = shape.l4 + 6
        return bool(self._packets[first:last, at : at + 2].any(axis=1).all())

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
