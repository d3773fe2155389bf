"""Just enough of Ethernet, ARP, IP, UDP and TCP to judge a captured frame."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

ETHERNET = 14
ETHERTYPE_IP4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IP6 = 0x86DD
PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMP6 = 1, 6, 17, 58
PROTO_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_ARP_SENDER = slice(28, 32)
_ARP_LENGTH = 42


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP frame: whose IPv4 address it speaks for."""

    sender: IPv4Address


@dataclass(frozen=True, slots=True)
class Ip:
    """An IP packet: addresses, protocol, and ports where they are known.

    fragment: (id, offset) of an IPv4 fragment; ports are 0 in later ones.
    icmp: the ICMP type where the protocol is ICMP, else -1.
    """

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp: int = -1
    fragment: tuple[int, int] | None = None

    def __str__(self) -> str:
        name = PROTO_NAMES.get(self.protocol, f"protocol {self.protocol}")
        kind = f" type {self.icmp}" if self.icmp >= 0 else ""
        ports = self.source_port or self.destination_port
        source = f"{self.source}.{self.source_port}" if ports else self.source
        to = self.destination
        target = f"{to}.{self.destination_port}" if ports else to
        return f"{name}{kind} {source} > {target}"


@dataclass(frozen=True, slots=True)
class Other:
    """Anything else, and what was cut short."""

    ethertype: int


Parsed: TypeAlias = Arp | Ip | Other


def parse(frame: bytes) -> Parsed:
    """Parse an Ethernet frame; what makes no sense is Other, never an error."""
    if len(frame) < ETHERNET:
        return Other(0)
    (ethertype,) = struct.unpack_from(">H", frame, 12)
    try:
        if ethertype == ETHERTYPE_ARP and len(frame) >= _ARP_LENGTH:
            return Arp(IPv4Address(frame[_ARP_SENDER]))
        if ethertype == ETHERTYPE_IP4:
            return _ip4(frame[ETHERNET:])
        if ethertype == ETHERTYPE_IP6:
            return _ip6(frame[ETHERNET:])
    except (struct.error, IndexError, ValueError):
        pass
    return Other(ethertype)


def _ip4(packet: bytes) -> Ip:
    length = (packet[0] & 15) * 4
    number, flags = struct.unpack_from(">HH", packet, 4)
    offset, more = flags & 0x1FFF, flags & 0x2000
    protocol = packet[9]
    source = IPv4Address(packet[12:16])
    destination = IPv4Address(packet[16:20])
    fragment = (number, offset) if offset or more else None
    if offset:
        return Ip(source, destination, protocol, fragment=fragment)
    ports = _ports(protocol, packet[length:])
    return Ip(source, destination, protocol, *ports, fragment=fragment)


def _ip6(packet: bytes) -> Ip:
    """Without extension headers: with one, the protocol is that header's."""
    source = IPv6Address(packet[8:24])
    destination = IPv6Address(packet[24:40])
    return Ip(source, destination, packet[6], *_ports(packet[6], packet[40:]))


def _ports(protocol: int, transport: bytes) -> tuple[int, int, int]:
    """Source port, destination port, ICMP type."""
    if protocol in (PROTO_TCP, PROTO_UDP):
        source, destination = struct.unpack_from(">HH", transport)
        return source, destination, -1
    if protocol in (PROTO_ICMP, PROTO_ICMP6):
        return 0, 0, transport[0]
    return 0, 0, -1
