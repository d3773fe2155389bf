"""Packets and super-packets made one by one, with nothing but struct.

What the fast paths are compared with: `cut` does what the kernel does with a
super-packet (tcp_gso_segment, __udp_gso_segment, inet_gso_segment), slowly.
"""

import struct
from dataclasses import dataclass, replace

VNET = struct.Struct("=BBHHHH")
TCP, UDP = 6, 17
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
V4, V6 = (
    (b"\x0a\x08\x00\x01", b"\x0a\x08\x00\x02"),
    (
        bytes.fromhex("fd00") + b"\x01" * 14,
        bytes.fromhex("fd00") + b"\x02" * 14,
    ),
)


def fold(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet, or a super-packet when mss is not 0."""

    payload: bytes
    ipv6: bool = False
    proto: int = TCP
    ports: tuple[int, int] = (5201, 40000)
    ident: int = 7
    sequence: int = 1000
    ack: int = 5
    flags: int = ACK
    options: bytes = b""
    window: int = 500
    ttl: int = 64
    tos: int = 0
    fragment: int = 0x4000
    mss: int = 0
    between: tuple[bytes, bytes] | None = None

    @property
    def l4(self) -> int:
        return 40 if self.ipv6 else 20

    def ends(self) -> tuple[bytes, bytes]:
        return self.between or (V6 if self.ipv6 else V4)

    def pseudo(self, size: int) -> bytes:
        return b"".join(self.ends()) + struct.pack("!II", size, self.proto)

    def transport(self, check: int = 0) -> bytes:
        if self.proto == UDP:
            size = len(self.payload) + 8
            return struct.pack("!HHHH", *self.ports, size, check)
        words = 5 + len(self.options) // 4
        return (
            struct.pack(
                "!HHIIBBHHH",
                *self.ports,
                self.sequence,
                self.ack,
                words << 4,
                self.flags,
                self.window,
                check,
                0,
            )
            + self.options
        )

    def header(self, size: int) -> bytes:
        if self.ipv6:
            first = struct.pack(
                "!IHBB", 6 << 28 | self.tos << 20, size, self.proto, self.ttl
            )
            return first + b"".join(self.ends())
        first = struct.pack(
            "!BBHHHBBH",
            0x45,
            self.tos,
            size + 20,
            self.ident,
            self.fragment,
            self.ttl,
            self.proto,
            0,
        ) + b"".join(self.ends())
        check = 0xFFFF - fold(first)
        return first[:10] + check.to_bytes(2) + first[12:]

    def build(self, *, partial: bool = False) -> bytes:
        """The bytes; partial: with the pseudo header's sum alone."""
        blank = self.transport() + self.payload
        pseudo = self.pseudo(len(blank))
        check = fold(pseudo) if partial else 0xFFFF - fold(pseudo + blank)
        if self.proto == UDP and check == 0:
            check = 0xFFFF
        return self.header(len(blank)) + self.transport(check) + self.payload

    def read(self) -> bytes:
        """What a read of the tun gives, virtio-net header included."""
        if self.mss and len(self.payload) > self.mss:
            kind = 5 if self.proto == UDP else 4 if self.ipv6 else 1
            hint = 0
        else:
            kind, hint = 0, 0
        offset = 6 if self.proto == UDP else 16
        head = VNET.pack(
            1, kind, hint, self.mss if kind else 0, self.l4, offset
        )
        return head + self.build(partial=True)

    def cut(self) -> list[bytes]:
        """What comes of it on the wire."""
        if not self.mss or len(self.payload) <= self.mss:
            return [self.build()]
        starts = range(0, len(self.payload), self.mss)
        parts = []
        for number, start in enumerate(starts):
            flags = self.flags
            if number:
                flags &= ~CWR
            if number < len(starts) - 1:
                flags &= ~(FIN | PSH)
            part = replace(
                self,
                payload=self.payload[start : start + self.mss],
                ident=(self.ident + number) & 0xFFFF,
                sequence=(self.sequence + start) & 0xFFFFFFFF,
                flags=flags,
                mss=0,
            )
            parts.append(part.build())
        return parts


def cut_written(written: bytes) -> list[bytes]:
    """Cut what was written to the tun, by its virtio-net header."""
    flags, kind, header, mss, start, offset = VNET.unpack_from(written)
    packet = written[VNET.size :]
    if not kind:
        assert flags == 0
        return [packet]
    ipv6 = packet[0] >> 4 == 6
    proto = UDP if kind == 5 else TCP
    assert flags == 1
    assert kind == (5 if proto == UDP else 4 if ipv6 else 1)
    assert start == (40 if ipv6 else 20)
    assert offset == (6 if proto == UDP else 16)
    assert len(packet) - start <= 0xFFFF
    l4 = packet[start:]
    size = 8 if proto == UDP else (l4[12] >> 4) * 4
    assert header == start + size
    head = packet[:start]
    big = Packet(
        l4[size:],
        ipv6,
        proto,
        struct.unpack_from("!HH", l4),
        0 if ipv6 else int.from_bytes(head[4:6]),
        mss=mss,
        ttl=head[7] if ipv6 else head[8],
        tos=(int.from_bytes(head[:2]) >> 4) & 0xFF if ipv6 else head[1],
        fragment=0 if ipv6 else int.from_bytes(head[6:8]),
        between=(head[8:24], head[24:40]) if ipv6 else (head[12:16], head[16:]),
    )
    if proto == TCP:
        seq, ack, _, tcp_flags, window = struct.unpack_from("!IIBBH", l4, 4)
        big = replace(
            big,
            sequence=seq,
            ack=ack,
            flags=tcp_flags,
            window=window,
            options=l4[20:size],
        )
    # The kernel looks at these before it cuts.
    assert packet == big.build(partial=True)
    return big.cut()
