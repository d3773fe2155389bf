"""Control packets: acknowledgements, a message number, a payload."""

import struct
from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.opcode import Opcode

SESSION_ID_SIZE: Final = 8
ACKS_MAX: Final = 8
# opcode and key id, session id: what stands before any control wrap
HEADER_SIZE: Final = 1 + SESSION_ID_SIZE

TLV_EARLY_NEG_FLAGS: Final = 1
EARLY_NEG_FLAG_RESEND_WKC: Final = 1


@dataclass(frozen=True, slots=True)
class ControlPacket:
    """A control packet without its wrap.

    session_id: the sender's, 8 bytes. acks: packet ids of the other side,
    8 at most; peer_session_id: whose they are, None without acks.
    packet_id: the message number, None for P_ACK_V1 (which has no payload).
    """

    opcode: Opcode
    key_id: int
    session_id: bytes
    acks: tuple[int, ...] = ()
    peer_session_id: bytes | None = None
    packet_id: int | None = None
    payload: bytes = field(repr=False, default=b"")


def encode_body(packet: ControlPacket) -> bytes:
    """Return what follows opcode, session id and wrap header.

    Layout: number of acks, 1 byte; 4 bytes big-endian each; if any, the 8
    bytes of the peer's session id; then, unless P_ACK_V1, the packet id in
    4 bytes and the payload.
    """
    acks = packet.acks
    parts = [struct.pack(f"!B{len(acks)}I", len(acks), *acks)]
    if acks:
        assert packet.peer_session_id is not None
        parts.append(packet.peer_session_id)
    if packet.packet_id is not None:
        parts.append(packet.packet_id.to_bytes(4))
        parts.append(packet.payload)
    return b"".join(parts)


def decode_body(
    opcode: Opcode, key_id: int, session_id: bytes, untrusted: bytes
) -> ControlPacket:
    """Decode what follows opcode, session id and wrap header.

    Raises MalformedPacketError "truncated-acks", "too-many-acks",
    "truncated-packet-id" or "trailing-bytes" (a P_ACK_V1 with more than its
    acks), and nothing else for any bytes.
    """
    acks, peer, offset = _decode_acks(untrusted)
    if opcode is Opcode.P_ACK_V1:
        if offset != len(untrusted):
            raise MalformedPacketError("trailing-bytes", offset)
        return ControlPacket(opcode, key_id, session_id, acks, peer)
    end = offset + 4
    if len(untrusted) < end:
        raise MalformedPacketError("truncated-packet-id", offset)
    packet_id = int.from_bytes(untrusted[offset:end])
    payload = untrusted[end:]
    return ControlPacket(
        opcode, key_id, session_id, acks, peer, packet_id, payload
    )


def _decode_acks(
    untrusted: bytes,
) -> tuple[tuple[int, ...], bytes | None, int]:
    if not untrusted:
        raise MalformedPacketError("truncated-acks", 0)
    count = untrusted[0]
    if count > ACKS_MAX:
        raise MalformedPacketError("too-many-acks", 0)
    if count == 0:
        return (), None, 1
    end = 1 + 4 * count + SESSION_ID_SIZE
    if len(untrusted) < end:
        raise MalformedPacketError("truncated-acks", 1)
    acks = struct.unpack_from(f"!{count}I", untrusted, 1)
    return acks, untrusted[end - SESSION_ID_SIZE : end], end


def encode_early_negotiation(*, resend_wkc: bool) -> bytes:
    """Return the payload of a server's reset: TLVs of early negotiation.

    Layout: type and length, 2 bytes each, then the value; empty when
    nothing is asked for. Source: OpenVPN 2 ssl_pkt.c, tls_reset_standalone.
    """
    if not resend_wkc:
        return b""
    return struct.pack(
        "!HHH", TLV_EARLY_NEG_FLAGS, 2, EARLY_NEG_FLAG_RESEND_WKC
    )


def decode_early_negotiation(untrusted: bytes) -> bool:
    """Decode a server's reset payload: is the wrapped client key wanted?

    Unknown types are skipped. Raises MalformedPacketError "truncated-tlv"
    or "bad-tlv-length".
    Source: OpenVPN 2 ssl.c, parse_early_negotiation_tlvs.
    """
    resend_wkc = False
    offset = 0
    while offset < len(untrusted):
        if len(untrusted) - offset < 4:
            raise MalformedPacketError("truncated-tlv", offset)
        kind, length = struct.unpack_from("!HH", untrusted, offset)
        offset += 4
        if len(untrusted) - offset < length:
            raise MalformedPacketError("truncated-tlv", offset)
        if kind == TLV_EARLY_NEG_FLAGS:
            if length != 2:
                raise MalformedPacketError("bad-tlv-length", offset)
            flags = int.from_bytes(untrusted[offset : offset + 2])
            resend_wkc |= bool(flags & EARLY_NEG_FLAG_RESEND_WKC)
        offset += length
    return resend_wkc
