"""The first byte of every packet: opcode and key id."""

from enum import IntEnum

from qubes_vpn.errors import MalformedPacketError


class Opcode(IntEnum):
    """OpenVPN's packet opcodes that are still legal (3..11).

    Source: OpenVPN 2 ssl_pkt.h; 1 and 2 belong to the removed key method 1.
    """

    P_CONTROL_SOFT_RESET_V1 = 3
    P_CONTROL_V1 = 4
    P_ACK_V1 = 5
    P_DATA_V1 = 6
    P_CONTROL_HARD_RESET_CLIENT_V2 = 7
    P_CONTROL_HARD_RESET_SERVER_V2 = 8
    P_DATA_V2 = 9
    P_CONTROL_HARD_RESET_CLIENT_V3 = 10
    P_CONTROL_WKC_V1 = 11


DATA_OPCODES = frozenset({Opcode.P_DATA_V1, Opcode.P_DATA_V2})

_BY_NUMBER = {int(opcode): opcode for opcode in Opcode}


def first_byte(opcode: Opcode, key_id: int) -> int:
    """Return opcode (high 5 bits) and key id (low 3 bits) as one byte."""
    return opcode << 3 | key_id


def split_first_byte(untrusted: int) -> tuple[Opcode, int]:
    """Split a first byte into opcode and key id.

    Raises MalformedPacketError "unknown-opcode" for 0..2 and 12..31.
    """
    opcode = _BY_NUMBER.get(untrusted >> 3)
    if opcode is None:
        raise MalformedPacketError("unknown-opcode", 0)
    return opcode, untrusted & 7
