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

import functools
import struct
import sys
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import numpy as np

from qubes_vpn.errors import UntrustedInputError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

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
# No super-packet has more segments than bytes.
_NUMBERS: Final = np.arange(0x10000, dtype=np.int64)


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


def row_sums(rows: Array) -> Array:
    """Sum each row's 16-bit words, natively. Each row is contiguous."""
    count, width = rows.shape
    if width % 4:
        padded = np.zeros((count, width + -width % 4), np.uint8)
        padded[:, :width] = rows
        rows = padded
    sums: Array = rows.view(np.uint32).sum(axis=1, dtype=np.int64)
    return sums


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
            header[l4 + 13] = 0
            header[l4 + 16 : l4 + 18] = bytes(2)
        else:
            header[l4 + 4 : l4 + 8] = bytes(4)

    @property
    def shape(self) -> tuple[int, int, bool, bool]:
        """Say what is the same of packets whose segments go together."""
        return len(self._header), self._l4, self._ipv4, self._tcp

    def fill(
        self, data: Array, at: int, stride: int, start: int, count: int
    ) -> int:
        """Write segments start..start+count; return the size of each.

        data: bytes; the first goes to data[at], the next is `stride` further
        on. The tail must be asked for by itself.
        """
        self.place(data, at, stride, start, count)
        finish([(self, start, count)], data, at, stride)
        return len(self._header) + self.width(start)

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

    def bases(self, start: int) -> tuple[int, int, int, int, int]:
        """Set the lengths, and give what the fields of segments begin with.

        IP id; sum of the IP header; sequence number; sum of all that is the
        same in TCP or UDP, pseudo header included; TCP flags of them all.
        """
        header, l4 = self._header, self._l4
        size = len(header) + self.width(start)
        ip_sum = 0
        if self._ipv4:
            header[2:4] = size.to_bytes(2)
            ip_sum = _big_sum(header[:l4])
            addresses = header[12:20]
        else:
            header[4:6] = (size - IPV6_HEADER_SIZE).to_bytes(2)
            addresses = header[8:40]
        if not self._tcp:
            header[l4 + 4 : l4 + 6] = (size - l4).to_bytes(2)
        flags = self._flags & ~(TCP_FIN_PSH | TCP_CWR)
        total = _big_sum(addresses) + _big_sum(header[l4:]) + size - l4
        total += flags + (PROTO_TCP if self._tcp else PROTO_UDP)
        return self._ip_id, ip_sum, self._sequence, total, flags

    def edges(self, start: int, count: int) -> tuple[tuple[int, int], ...]:
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

    @property
    def header(self) -> bytearray:
        """The headers, without what differs between segments."""
        return self._header


def finish(
    parts: list[tuple[SuperPacket, int, int]],
    data: Array,
    at: int,
    stride: int,
) -> None:
    """Write the headers of segments that have been placed.

    parts: (packet, its first segment here, how many), of one shape and mss.
    """
    first, start, count = parts[0]
    h, l4, ipv4, tcp = first.shape
    mss, width = first.mss, first.width(start)
    # one number for all segments, or one for each
    bases: Iterable[Any]
    if len(parts) == 1:
        bases = first.bases(start)
        headers = np.frombuffer(first.header, np.uint8)
        numbers = _NUMBERS[start : start + count]
    else:
        rows = np.repeat(
            _NUMBERS[: len(parts)], [count for _, _, count in parts]
        )
        bases = np.array([one.bases(begin) for one, begin, _ in parts])[rows].T
        joined = b"".join(one.header for one, _, _ in parts)
        headers = np.frombuffer(joined, np.uint8).reshape(-1, h)[rows]
        numbers = np.concatenate(
            [_NUMBERS[begin : begin + n] for _, begin, n in parts]
        )
    ip_id, ip_sum, sequence, base, flags = bases
    total = len(numbers)
    sums = row_sums(
        np.ndarray((total, width), np.uint8, data, at + h, (stride, 1))
    )
    out = np.ndarray((total, h), np.uint8, data, at, (stride, 1))
    out[:] = headers
    fields = np.ndarray((total,), _layout(ipv4, tcp, l4), data, at, (stride,))
    if ipv4:
        ids = (numbers + ip_id) & _ONES
        fields["id"] = ids
        fields["ip_sum"] = _ONES - 1 - (ids + (ip_sum - 1)) % _ONES
    # A sum of swapped words is the swapped sum: 256 times it.
    totals = sums * _SWAP + (base - 1)
    if tcp:
        sequences = (numbers * mss + sequence) & _SEQUENCE_MAX
        fields["sequence"] = sequences
        totals += sequences
        out[:, l4 + 13] = flags
        _add_flags(parts, out[:, l4 + 13], totals)
    checks = _ONES - 1 - totals % _ONES
    if not tcp:
        checks[checks == 0] = _ONES
    fields["sum"] = checks


def _add_flags(
    parts: list[tuple[SuperPacket, int, int]], flags: Array, totals: Array
) -> None:
    """Add the flags of first and last segments, to the sums as well."""
    row = 0
    for packet, start, count in parts:
        for index, more in packet.edges(start, count):
            flags[row + index] |= more
            totals[row + index] += more
        row += count


def _big_sum(data: bytearray) -> int:
    """Sum 16-bit words, big-endian; may be of odd length."""
    return int.from_bytes(data + bytes(len(data) % 2)) % _ONES


@functools.cache
def _layout(ipv4: bool, tcp: bool, l4: int) -> np.dtype[np.void]:  # noqa: FBT001
    fields = {"sum": (">u2", l4 + (16 if tcp else 6))}
    if ipv4:
        fields |= {"id": (">u2", 4), "ip_sum": (">u2", 10)}
    if tcp:
        fields["sequence"] = (">u4", l4 + 4)
    return np.dtype(
        {
            "names": list(fields),
            "formats": [each[0] for each in fields.values()],
            "offsets": [each[1] for each in fields.values()],
        }
    )
