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


def plain_sum(*parts: bytes | bytearray | memoryview) -> int:
    """Sum 16-bit words; each part of even length, but for the last.

    The sum is folded: 0 only if all words are 0, else 1..65535.
    """
    total = sum(int.from_bytes(part, sys.byteorder) for part in parts)
    return (total - 1) % _ONES + 1 if total else 0


def checksum(total: int) -> int:
    """Turn a sum that is not zero into a checksum, native byte order."""
    return _ONES - 1 - (total - 1) % _ONES


def checksums(totals: Array) -> Array:
    """Do `checksum` for an array of sums."""
    folded = np.uint64(_ONES - 1) - (totals - np.uint64(1)) % np.uint64(_ONES)
    return folded.astype(np.uint16)


def native(number: int, size: int = 2) -> int:
    """Give the value that a big-endian field has when read natively."""
    return int.from_bytes(number.to_bytes(size), sys.byteorder)


def columns(values: Array) -> Array:
    """Show an array of n integers as n rows of bytes."""
    return values.view(np.uint8).reshape(len(values), -1)


def row_sums(rows: Array) -> Array:
    """Sum each row's 16-bit words. Rows of any width, contiguous."""
    count, width = rows.shape
    if width % 4:
        padded = np.zeros((count, width + -width % 4), np.uint8)
        padded[:, :width] = rows
        rows = padded
    sums: Array = rows.view(np.uint32).sum(axis=1, dtype=np.uint64)
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
            or l4 + 20 > len(packet)
        ):
            raise UntrustedInputError("tun-offload")
        size = l4 + ((packet[l4 + 12] >> 4) * 4 if self._tcp else 8)
        if size >= len(packet):
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

    def fill(self, out: Array, start: int) -> None:
        """Write segments from number `start` on into the rows of `out`.

        out: a row for each, as wide as an IP packet: full segments, or one
        row for the tail.
        """
        count, h = len(out), len(self._header)
        width = out.shape[1] - h
        begin = start * self.mss
        payload = self._payload[begin : begin + count * width]
        payload = payload.reshape(count, width)
        self._set_lengths(h + width)
        out[:, :h] = np.frombuffer(self._header, np.uint8)
        out[:, h:] = payload
        numbers = np.arange(start, start + count, dtype=np.uint64)
        if self._ipv4:
            self._patch_ip(out, numbers)
        self._patch_l4(out, numbers, row_sums(payload))

    def _set_lengths(self, size: int) -> None:
        header, l4 = self._header, self._l4
        if self._ipv4:
            header[2:4] = size.to_bytes(2)
        else:
            header[4:6] = (size - IPV6_HEADER_SIZE).to_bytes(2)
        if not self._tcp:
            header[l4 + 4 : l4 + 6] = (size - l4).to_bytes(2)

    def _patch_ip(self, out: Array, numbers: Array) -> None:
        ids = (numbers + np.uint64(self._ip_id)).astype(">u2")
        out[:, 4:6] = columns(ids)
        base = np.uint64(plain_sum(self._header[: self._l4]))
        totals = ids.view(np.uint16).astype(np.uint64) + base
        out[:, 10:12] = columns(checksums(totals))

    def _patch_l4(self, out: Array, numbers: Array, totals: Array) -> None:
        header, l4 = self._header, self._l4
        size = out.shape[1] - l4
        addresses = header[12:20] if self._ipv4 else header[8:40]
        proto = PROTO_TCP if self._tcp else PROTO_UDP
        base = (plain_sum(addresses, header[l4:]) + native(proto)) % _ONES
        totals = totals + np.uint64(base + native(size))
        if not self._tcp:
            sums = checksums(totals)
            sums[sums == 0] = _ONES
            out[:, l4 + 6 : l4 + 8] = columns(sums)
            return
        sequences = numbers * np.uint64(self.mss) + np.uint64(self._sequence)
        wire = sequences.astype(">u4")
        out[:, l4 + 4 : l4 + 8] = columns(wire)
        flags = self._row_flags(numbers)
        out[:, l4 + 13] = flags
        totals += wire.view(np.uint32)
        totals += flags.astype(np.uint64) * np.uint64(native(1))
        out[:, l4 + 16 : l4 + 18] = columns(checksums(totals))

    def _row_flags(self, numbers: Array) -> Array:
        """CWR stays on the first segment, FIN and PSH on the last."""
        plain = self._flags & ~(TCP_FIN_PSH | TCP_CWR)
        flags = np.full(len(numbers), plain, np.uint8)
        if numbers[0] == 0:
            flags[0] |= self._flags & TCP_CWR
        if numbers[-1] == self.count - 1:
            flags[-1] |= self._flags & TCP_FIN_PSH
        return flags
