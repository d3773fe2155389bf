"""The three phases that the network can be in.

`runtime` maps the engine's states to these; `policy.firewall` and
`policy.routes` turn one into a transaction. There is no fourth phase, and the
absence of every process of ours means Blocked.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface


class Transport(StrEnum):
    """The outer protocol, by nftables' names."""

    UDP = "udp"
    TCP = "tcp"


class Plane(StrEnum):
    """Who moves the packets: our process, or the `ovpn` driver."""

    USERSPACE = "userspace"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a VPN server, or of the proxy before it.

    relays: a SOCKS proxy that is to carry UDP: besides, one UDP port of the
    same address, which the proxy chooses later, may be used.
    """

    address: Address
    transport: Transport
    port: int
    relays: bool = False


@dataclass(frozen=True, slots=True)
class Blocked:
    """Nothing leaves, nothing is forwarded.

    final: the state will not pass by itself, so qubes get an
    admin-prohibited answer instead of silence.
    """

    final: bool = False


@dataclass(frozen=True, slots=True)
class Connecting:
    """Our own link socket may reach this endpoint, and nothing else.

    relay: and this UDP port of its address, where the endpoint relays.
    """

    endpoint: Endpoint
    plane: Plane = Plane.USERSPACE
    relay: int = 0


@dataclass(frozen=True, slots=True)
class Connected:
    """Qubes' packets go into the tunnel device.

    dns: the resolvers inside the tunnel that port 53 of every vif goes to.
    dns_passthrough: queries go where the qube sent them, in the tunnel.
    mss4, mss6: the numeric TCP MSS clamps, in bytes, both ways. relay: as in
    Connecting.
    """

    endpoint: Endpoint
    device: str
    dns: tuple[Address, ...] = ()
    mss4: int = 1360
    mss6: int = 1340
    ipv4: bool = True
    ipv6: bool = False
    plane: Plane = Plane.USERSPACE
    block_dot: bool = field(default=False)
    dns_passthrough: bool = False
    relay: int = 0


Phase: TypeAlias = Blocked | Connecting | Connected
