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
    """Sum each row's 16-bit words, natively. Rows: contiguous."""
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

    def fill(
        self, data: Array, at: int, stride: int, start: int, count: int
    ) -> int:
        """Write segments start..start+count; return the size of each.

        data: bytes; the first goes to data[at], the next is `stride` further
        on. The tail must be asked for by itself.
        """
        header, h = self._header, len(self._header)
        width = self.mss if start < self.whole else self.tail
        out = np.ndarray((count, h + width), np.uint8, data, at, (stride, 1))
        begin = start * self.mss
        payload = self._payload[begin : begin + count * width]
        payload = payload.reshape(count, width)
        self._set_lengths(h + width)
        out[:, :h] = np.frombuffer(header, np.uint8)
        out[:, h:] = payload
        layout = _layout(self._ipv4, self._tcp, self._l4)
        fields = np.ndarray((count,), layout, data, at, (stride,))
        numbers = _NUMBERS[start : start + count]
        if self._ipv4:
            ids = numbers + self._ip_id
            if ids[-1] > _ONES:
                ids &= _ONES
            fields["id"] = ids
            ids += _big_sum(header[: self._l4]) - 1
            fields["ip_sum"] = _ONES - 1 - ids % _ONES
        self._fill_l4(out, fields, numbers, row_sums(payload))
        return h + width

    def _set_lengths(self, size: int) -> None:
        header, l4 = self._header, self._l4
        if self._ipv4:
            header[2:4] = size.to_bytes(2)
        else:
            header[4:6] = (size - IPV6_HEADER_SIZE).to_bytes(2)
        if not self._tcp:
            header[l4 + 4 : l4 + 6] = (size - l4).to_bytes(2)

    def _fill_l4(
        self, out: Array, fields: Array, numbers: Array, totals: Array
    ) -> None:
        """Set what differs in TCP or UDP. totals: of the payloads."""
        header, l4 = self._header, self._l4
        # A sum of swapped words is the swapped sum: 256 times it.
        totals *= _SWAP
        base = _big_sum(header[12:20] if self._ipv4 else header[8:40])
        base += _big_sum(header[l4:]) + out.shape[1] - l4
        if not self._tcp:
            totals += base + PROTO_UDP - 1
            sums = _ONES - 1 - totals % _ONES
            sums[sums == 0] = _ONES
            fields["sum"] = sums
            return
        totals += base + PROTO_TCP - 1
        sequences = numbers * self.mss + self._sequence
        if sequences[-1] > _SEQUENCE_MAX:
            sequences &= _SEQUENCE_MAX
        fields["sequence"] = sequences
        totals += sequences
        self._fill_flags(out, numbers, totals)
        fields["sum"] = _ONES - 1 - totals % _ONES

    def _fill_flags(self, out: Array, numbers: Array, totals: Array) -> None:
        """CWR stays on the first segment, FIN and PSH on the last."""
        at, flags = self._l4 + 13, self._flags
        plain = flags & ~(TCP_FIN_PSH | TCP_CWR)
        out[:, at] = plain
        totals += plain
        if flags == plain:
            return
        if numbers[0] == 0 and flags & TCP_CWR:
            out[0, at] |= TCP_CWR
            totals[0] += TCP_CWR
        if numbers[-1] == self.count - 1 and flags & TCP_FIN_PSH:
            out[-1, at] |= flags & TCP_FIN_PSH
            totals[-1] += flags & TCP_FIN_PSH


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
