"""One super-packet of the tun, cut into packets, many at a time.

With IFF_VNET_HDR each read begins with a struct virtio_net_hdr, native
byte order (linux/virtio_net.h):

    flags 1 | gso_type 1 | hdr_len 2 | gso_size 2 | csum_start 2 |
    csum_offset 2

hdr_len is not used: on forwarded packets it may be the first fragment's
length. A checksum that the sender left to the device (flag NEEDS_CSUM)
holds the folded sum of the pseudo header, and is finished here.

Sums are ones' complement sums modulo 65535 in the machine's byte order: sums
of swapped words are swapped sums (RFC 1071).
"""

import struct
import sys
from typing import Any, Final, TypeAlias

import numpy as np

from qubes_vpn.errors import UntrustedInputError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
# What is the same of packets whose segments go together: bytes of the
# headers, where TCP or UDP begins, whether it is IPv4, whether it is TCP.
Shape: TypeAlias = tuple[int, int, bool, bool]

VNET_SIZE: Final = 10
VNET: Final = struct.Struct("=BBHHHH")
NEEDS_CSUM: Final = 1
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

IPV6_HEADER_SIZE: Final = 40
PROTO_TCP: Final = 6
PROTO_UDP: Final = 17
TCP_FIN_PSH: Final = 0x09
TCP_CWR: Final = 0x80
_ONES: Final = 0xFFFF
_SEQUENCE_MAX: Final = 0xFFFFFFFF
_SWAP: Final = 256 if sys.byteorder == "little" else 1
_BYTE: Final = np.dtype(np.uint8)
_WORD: Final = np.dtype(np.uint32)
_U16: Final = np.dtype(">u2")
_U32: Final = np.dtype(">u4")
# More segments than are made at once, of whatever size.
_ROWS_MAX: Final = 4096
# All IP ids in turn; and checksums of what grows by one from 0 on.
_IDS: Final = np.arange(0x10000).astype(_U16)
_FALLING: Final = (-np.arange(_ONES + _ROWS_MAX) % _ONES).astype(_U16)


def plain_sum(*parts: bytes | bytearray | memoryview) -> int:
    """Sum 16-bit words; each part of even length, but for the last.

    The sum is folded: 0 only if all words are 0, else 1..65535.
    """
    total = sum(int.from_bytes(part, sys.byteorder) for part in parts)
    return (total - 1) % _ONES + 1 if total else 0


def checksum(total: int) -> int:
    """Turn a sum that is not zero into a checksum, native byte order."""
    return _ONES - 1 - (total - 1) % _ONES


def native(number: int, size: int = 2) -> int:
    """Give the value that a big-endian field has when read natively."""
    return int.from_bytes(number.to_bytes(size), sys.byteorder)


def finish_checksum(packet: memoryview, start: int, offset: int) -> None:
    """Finish the checksum of one packet, in place (NEEDS_CSUM)."""
    where = start + offset
    if where + 2 > len(packet):
        raise UntrustedInputError("tun-offload")
    value = checksum(plain_sum(packet[start:]))
    # 0 means "no checksum" to UDP alone, and is the same number as all ones.
    if value == 0 and offset == 6:
        value = _ONES
    packet[where : where + 2] = value.to_bytes(2, sys.byteorder)


class SuperPacket:
    """A super-packet, taken apart; raises UntrustedInputError "tun-offload".

    packet, data: the same bytes, from the IP header. vnet: its VNET fields.
    count: how many segments there are. whole: how many of them are full.
    tail: bytes of payload in the last one, if that is less. mss: in a full
    one. size: of a full segment, as an IP packet.
    """

    __slots__ = (
        "_flags",
        "_header",
        "_ip_id",
        "_ipv4",
        "_l4",
        "_payload",
        "_sequence",
        "_tcp",
        "count",
        "mss",
        "size",
        "tail",
        "whole",
    )

    def __init__(
        self, packet: memoryview, data: Array, vnet: tuple[int, ...]
    ) -> None:
        kind, self.mss, self._l4 = vnet[1] & ~GSO_ECN, vnet[3], vnet[4]
        self._tcp = kind in (GSO_TCPV4, GSO_TCPV6)
        self._ipv4 = packet[0] >> 4 == 4
        l4 = self._l4
        if (
            not self.mss
            or not (self._tcp or kind == GSO_UDP_L4)
            or l4 < (20 if self._ipv4 else 40)
            or l4 + (20 if self._tcp else 8) > len(packet)
        ):
            raise UntrustedInputError("tun-offload")
        words = packet[l4 + 12] >> 4 if self._tcp else 5
        size = l4 + (words * 4 if self._tcp else 8)
        if words < 5 or size >= len(packet):
            raise UntrustedInputError("tun-offload")
        self._header = bytearray(packet[:size])
        self._payload = data[size : len(packet)]
        self.whole, self.tail = divmod(len(self._payload), self.mss)
        self.count = self.whole + (self.tail > 0)
        self.size = size + self.mss
        self._ip_id = self._sequence = self._flags = 0
        self._clear()

    def _clear(self) -> None:
        """Keep what differs between segments, and zero it in the header."""
        header, l4 = self._header, self._l4
        if self._ipv4:
            self._ip_id = header[4] << 8 | header[5]
            header[2:6] = bytes(4)
            header[10:12] = bytes(2)
        else:
            header[4:6] = bytes(2)
        if self._tcp:
            self._sequence = int.from_bytes(header[l4 + 4 : l4 + 8])
            self._flags = header[l4 + 13]
            header[l4 + 4 : l4 + 8] = bytes(4)
            header[l4 + 13] &= ~(TCP_FIN_PSH | TCP_CWR)
            header[l4 + 16 : l4 + 18] = bytes(2)
        else:
            header[l4 + 4 : l4 + 8] = bytes(4)

    @property
    def shape(self) -> Shape:
        """Say whose segments go together with these."""
        return len(self._header), self._l4, self._ipv4, self._tcp

    def fill(
        self, data: Array, at: int, stride: int, start: int, count: int
    ) -> int:
        """Write segments start..start+count; return the size of each.

        data: bytes; the first goes to data[at], the next is `stride` further
        on. The tail must be asked for by itself.
        """
        self.place(data, at, stride, start, count)
        width = self.width(start)
        rows = HeaderRows(data, at, stride, count, self.shape, width)
        finish([(self, start, count)], rows, 0)
        return len(self._header) + width

    def place(
        self, data: Array, at: int, stride: int, start: int, count: int
    ) -> None:
        """Write what is behind the headers alone."""
        h, width = len(self._header), self.width(start)
        begin = start * self.mss
        payload = self._payload[begin : begin + count * width]
        out = np.ndarray((count, width), np.uint8, data, at + h, (stride, 1))
        out[:] = payload.reshape(count, width)

    def width(self, start: int) -> int:
        """Give the bytes of payload in segment `start`."""
        return self.mss if start < self.whole else self.tail

    def write_headers(
        self, rows: "HeaderRows", row: int, start: int, count: int, sums: Array
    ) -> None:
        """Write those of segments start..start+count from `row` on.

        All but the checksums of TCP or UDP; their parts of these are taken
        from `sums`.
        """
        header, l4, end = self._header, self._l4, row + count
        size = len(header) + self.width(start)
        if self._ipv4:
            header[2:4] = size.to_bytes(2)
            addresses = header[12:20]
        else:
            header[4:6] = (size - IPV6_HEADER_SIZE).to_bytes(2)
            addresses = header[8:40]
        if not self._tcp:
            header[l4 + 4 : l4 + 6] = (size - l4).to_bytes(2)
        rows.headers[row:end] = np.frombuffer(header, np.uint8)
        total = _big_sum(addresses) + _big_sum(header[l4:]) + size - l4
        sums -= total + (PROTO_TCP if self._tcp else PROTO_UDP)
        if self._ipv4:
            self._number(rows, row, start, count)
        if self._tcp:
            first = (self._sequence + start * self.mss) & _SEQUENCE_MAX
            after = first + count * self.mss
            sequences = np.arange(first, after, self.mss)
            if after > _SEQUENCE_MAX:
                sequences &= _SEQUENCE_MAX
            rows.sequences[row:end] = sequences
            sums -= sequences
            for index, more in self._edges(start, count):
                rows.headers[row + index, l4 + 13] |= more
                sums[index] -= more

    def _number(
        self, rows: "HeaderRows", row: int, start: int, count: int
    ) -> None:
        """Write IP ids, and the checksums that go with them."""
        ip_sum, end = _big_sum(self._header[: self._l4]), row + count
        ident = (self._ip_id + start) & _ONES
        while row < end:
            more = min(end - row, len(_IDS) - ident)
            rows.ids[row : row + more] = _IDS[ident : ident + more]
            at = (ident + ip_sum) % _ONES
            rows.ip_sums[row : row + more] = _FALLING[at : at + more]
            row, ident = row + more, 0

    def _edges(self, start: int, count: int) -> tuple[tuple[int, int], ...]:
        """Give (segment of these, flags) where TCP has more flags.

        CWR stays on the first segment, FIN and PSH on the last.
        """
        flags = self._flags
        found: tuple[tuple[int, int], ...] = ()
        if flags & TCP_CWR and not start:
            found = ((0, TCP_CWR),)
        if flags & TCP_FIN_PSH and start + count == self.count:
            found += ((count - 1, flags & TCP_FIN_PSH),)
        return found


class HeaderRows:
    """Where in a buffer the headers of equal segments are, and each field.

    at: of the first; stride: to the next. shape: of their SuperPackets.
    width: bytes of payload behind each. To be made once and used often.
    """

    __slots__ = (
        "_payload",
        "_words",
        "headers",
        "ids",
        "ip_sums",
        "sequences",
        "sums",
        "tcp",
    )

    def __init__(
        self,
        data: Array,
        at: int,
        stride: int,
        count: int,
        shape: Shape,
        width: int,
    ) -> None:
        def rows(size: int, kind: np.dtype[Any], where: int) -> Array:
            strides = (stride, kind.itemsize)
            return np.ndarray((count, size), kind, data, at + where, strides)

        h, l4, _, self.tcp = shape
        self.headers = rows(h, _BYTE, 0)
        self.ids = rows(1, _U16, 4)[:, 0]
        self.ip_sums = rows(1, _U16, 10)[:, 0]
        self.sequences = rows(1, _U32, l4 + 4)[:, 0]
        self.sums = rows(1, _U16, l4 + (16 if self.tcp else 6))[:, 0]
        self._payload = rows(width, _BYTE, h)
        self._words = rows(width // 4, _WORD, h) if width % 4 == 0 else None

    def payload_sums(self, first: int, last: int) -> Array:
        """Sum the 16-bit words of each payload, natively."""
        if self._words is None:
            payload = self._payload[first:last]
            count, width = payload.shape
            padded = np.zeros((count, width + -width % 4), np.uint8)
            padded[:, :width] = payload
            words: Array = padded.view(_WORD)
        else:
            words = self._words[first:last]
        found: Array = words.sum(axis=1, dtype=np.int64)
        return found


def finish(
    parts: list[tuple[SuperPacket, int, int]], rows: HeaderRows, first: int
) -> None:
    """Write the headers of segments that have been placed.

    parts: (packet, its first segment here, how many), of the rows' shape;
    they are in rows from `first` on.
    """
    row = first
    # Taken away from 0: then what is left, modulo 65535, is the checksum. A
    # sum of swapped words is the swapped sum: 256 times it.
    sums = rows.payload_sums(first, first + sum(part[2] for part in parts))
    sums *= -_SWAP
    for packet, start, count in parts:
        at = row - first
        packet.write_headers(rows, row, start, count, sums[at : at + count])
        row += count
    sums %= _ONES
    if not rows.tcp:
        sums[sums == 0] = _ONES
    rows.sums[first:row] = sums


def _big_sum(data: bytearray) -> int:
    """Sum 16-bit words, big-endian; may be of odd length."""
    return int.from_bytes(data + bytes(len(data) % 2)) % _ONES
