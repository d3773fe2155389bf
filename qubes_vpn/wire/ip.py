"""Cheap checks of the headers of inner packets."""

import struct
from typing import Final, NamedTuple

from qubes_vpn.errors import MalformedPacketError

IPV4_HEADER_SIZE: Final = 20
IPV6_HEADER_SIZE: Final = 40


class IpHeader(NamedTuple):
    """version: 4 or 6. length: of the whole packet. src, dst: 4 or 16 bytes."""

    version: int
    length: int
    src: bytes
    dst: bytes


def parse_ip(untrusted: bytes | bytearray | memoryview) -> IpHeader:
    """Check version, header length and total length; return the addresses.

    Bytes after the packet's own length are allowed (padding). Raises
    MalformedPacketError "not-ip", "truncated-ip" or "bad-ip-length".
    """
    if not len(untrusted):
        raise MalformedPacketError("not-ip", 0)
    version = untrusted[0] >> 4
    if version == 4:
        return _parse_ipv4(untrusted)
    if version == 6:
        return _parse_ipv6(untrusted)
    raise MalformedPacketError("not-ip", 0)


def _parse_ipv4(untrusted: bytes | bytearray | memoryview) -> IpHeader:
    """Layout: version and header words, 1; tos, 1; total length, 2; ..."""
    if len(untrusted) < IPV4_HEADER_SIZE:
        raise MalformedPacketError("truncated-ip", len(untrusted))
    first, length = struct.unpack_from("!BxH", untrusted)
    header = (first & 0x0F) * 4
    if header < IPV4_HEADER_SIZE or not header <= length <= len(untrusted):
        raise MalformedPacketError("bad-ip-length", 2)
    src, dst = struct.unpack_from("4s4s", untrusted, 12)
    return IpHeader(4, length, src, dst)


def _parse_ipv6(untrusted: bytes | bytearray | memoryview) -> IpHeader:
    """Layout: version, class, label, 4; payload length, 2; next, hops; ..."""
    if len(untrusted) < IPV6_HEADER_SIZE:
        raise MalformedPacketError("truncated-ip", len(untrusted))
    (payload,) = struct.unpack_from("!H", untrusted, 4)
    length = IPV6_HEADER_SIZE + payload
    if length > len(untrusted):
        raise MalformedPacketError("bad-ip-length", 4)
    src, dst = struct.unpack_from("16s16s", untrusted, 8)
    return IpHeader(6, length, src, dst)
