"""What left on the uplink: the two oracles of every leak test.

OL: frames that came out of the VPN qube and are not the tunnel's own: not from
eth0's address to an allowed endpoint, and not ARP for that address.
CAN: frames, in either direction, that carry the lab's canary in clear. It sees
what hides in an allowed five-tuple.

Both are void without a positive control: show that the same traffic is seen
when nothing protects it.
"""

import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from lab.background import Background
from lab.frames import (
    PROTO_ICMP6,
    PROTO_TCP,
    PROTO_UDP,
    Address,
    Arp,
    Ip,
    Other,
    Parsed,
    parse,
)
from lab.namespace import LabError, Namespace

CANARY = b"canary"
ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 64 << 20
FRAME_MAX = 1 << 17
KEPT_BYTES_MAX = 512 << 20
POLL = 0.05
ND_SOLICIT, ND_ADVERTISE = 135, 136
_PROTOCOLS = {"udp": PROTO_UDP, "tcp": PROTO_TCP}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A VPN server that the uplink's owner may talk to; proto: udp or tcp."""

    address: Address
    proto: str
    port: int


@dataclass(frozen=True, slots=True)
class Leak:
    """One frame that should not be there.

    why: canary, app-address or not-allowed (the first that holds).
    """

    why: str
    outbound: bool
    what: Parsed
    frame: bytes = field(repr=False)

    def __str__(self) -> str:
        way = "out" if self.outbound else "in"
        return f"{way} {self.why}: {self.what}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a capture saw.

    outbound, inbound: all frames by direction. tunnel: those out to an allowed
    endpoint. outside: OL. canaries: CAN. outside and canaries may share frames.
    """

    outbound: int
    inbound: int
    tunnel: int
    outside: tuple[Leak, ...]
    canaries: tuple[Leak, ...]

    @property
    def leaks(self) -> tuple[Leak, ...]:
        """Every frame of either oracle, once."""
        rest = [leak for leak in self.canaries if leak not in self.outside]
        return self.outside + tuple(rest)

    def __str__(self) -> str:
        counts = Counter(str(leak) for leak in self.leaks)
        lines = [
            f"{self.outbound} frames out ({self.tunnel} the tunnel's), "
            f"{self.inbound} in, {len(self.leaks)} leaked"
        ]
        lines += [f"  {n} x {what}" for what, n in counts.most_common(20)]
        return "\n".join(lines)


class Capture(Background):
    """An AF_PACKET capture in the net qube, running until stop().

    Frames that arrive there are outbound: it is the far side of the VPN qube's
    eth0, so nobody in there can choose what it sees. It is bound to no device,
    so that it sees the first frame of an uplink that comes back; `others` are
    the devices that are no uplink. `uplink`: eth0's addresses; the list may
    grow when the uplink changes.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        others: tuple[str, ...],
        uplink: Sequence[Address],
        gateway: tuple[IPv4Address, IPv6Address],
        apps: tuple[Address, ...],
        allowed: tuple[Endpoint, ...],
    ) -> None:
        super().__init__()
        self._namespace = namespace
        self._others = others
        self._uplink = uplink
        self._gateway = gateway
        self._apps = apps
        self._allowed = allowed
        self._frames: list[tuple[bool, bytes]] = []
        self._kept = 0
        self._lost = 0

    def start(self) -> Self:
        """Begin to capture; on return nothing is missed any more."""
        with self._namespace.enter():
            packets = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
            )
        with contextlib.suppress(PermissionError):
            packets.setsockopt(
                socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER
            )
        packets.settimeout(POLL)
        self._packets = packets
        return super().start()

    def allow(self, *endpoints: Endpoint) -> None:
        """Allow more endpoints, for all that was and will be captured."""
        self._allowed += endpoints

    def report(self) -> Report:
        """Stop, and judge every frame.

        Raises LabError if the capture lost any: it would prove nothing.
        """
        self.stop()
        if self._lost:
            raise LabError(f"the capture lost {self._lost} frames")
        outbound = tunnel = 0
        outside: list[Leak] = []
        canaries: list[Leak] = []
        fragments: set[tuple[Address, Address, int, int]] = set()
        for out, frame in self._frames:
            parsed = parse(frame)
            canary = CANARY in frame.lower()
            outbound += out
            ours = out and self._to_endpoint(parsed, fragments)
            tunnel += ours
            if canary:
                canaries.append(Leak("canary", out, parsed, frame))
            if out and not ours and not self._neighbour(parsed):
                why = "canary" if canary else self._why(parsed)
                outside.append(Leak(why, out, parsed, frame))
        return Report(
            outbound,
            len(self._frames) - outbound,
            tunnel,
            tuple(outside),
            tuple(canaries),
        )

    def frames(self) -> list[tuple[bool, bytes]]:
        """All that was captured so far: (outbound, frame)."""
        return list(self._frames)

    def _to_endpoint(
        self,
        parsed: Parsed,
        fragments: set[tuple[Address, Address, int, int]],
    ) -> bool:
        """Is it from eth0's address to an endpoint, or a fragment of such?"""
        if not isinstance(parsed, Ip) or parsed.source not in self._uplink:
            return False
        number, offset = parsed.fragment or (0, 0)
        key = (parsed.source, parsed.destination, parsed.protocol, number)
        if offset:
            return key in fragments
        ours = any(
            parsed.destination == endpoint.address
            and parsed.protocol == _PROTOCOLS[endpoint.proto]
            and parsed.destination_port == endpoint.port
            for endpoint in self._allowed
        )
        if ours and parsed.fragment:
            fragments.add(key)
        return ours

    def _neighbour(self, parsed: Parsed) -> bool:
        """ARP for our address; neighbour discovery if an endpoint is IPv6."""
        match parsed:
            case Arp(sender=sender):
                return sender in self._uplink
            case Ip(protocol=protocol, icmp=kind, destination=to):
                return (
                    protocol == PROTO_ICMP6
                    and kind in (ND_SOLICIT, ND_ADVERTISE)
                    and any(e.address.version == 6 for e in self._allowed)
                    and (to in self._gateway or to.is_multicast)
                )
            case Other():
                return False

    def _why(self, parsed: Parsed) -> str:
        if isinstance(parsed, Ip) and (
            parsed.source in self._apps or parsed.destination in self._apps
        ):
            return "app-address"
        return "not-allowed"

    def _run(self) -> None:
        """Drain the socket until told to stop, and then until it is empty."""
        with self._packets as packets:
            while not self._stop.is_set():
                self._receive(packets)
            packets.setblocking(False)
            while self._receive(packets):
                pass
            self._lost += self._count_lost(packets)

    def _receive(self, packets: socket.socket) -> bool:
        """Take one frame; was there one?"""
        try:
            frame, address = packets.recvfrom(FRAME_MAX)
        except (TimeoutError, BlockingIOError):
            return False
        # The name of a device that has just gone is empty: it was the uplink.
        if address[0] not in self._others:
            self._keep(address[2] != socket.PACKET_OUTGOING, frame)
        return True

    def _keep(self, outbound: bool, frame: bytes) -> None:  # noqa: FBT001
        self._kept += len(frame)
        if self._kept > KEPT_BYTES_MAX:
            self._lost += 1
            return
        self._frames.append((outbound, frame))

    def _count_lost(self, packets: socket.socket) -> int:
        counters = packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        _, drops = struct.unpack("II", counters)
        return int(drops)
