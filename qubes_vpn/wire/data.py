"""Data packet headers, in the clear before the ciphertext."""

from typing import Final

from qubes_vpn.wire.opcode import Opcode, first_byte

DATA_V1_HEADER_SIZE: Final = 1
DATA_V2_HEADER_SIZE: Final = 4
PEER_ID_MAX: Final = 0xFFFFFF
# P_DATA_V2 with this peer id: "none was assigned".
PEER_ID_NONE: Final = PEER_ID_MAX


def data_v1_header(key_id: int) -> bytes:
    """Return the header of P_DATA_V1: opcode and key id, 1 byte."""
    return bytes((first_byte(Opcode.P_DATA_V1, key_id),))


def data_v2_header(key_id: int, peer_id: int) -> bytes:
    """Return the header of P_DATA_V2: opcode, key id, peer id, 4 bytes.

    For AEAD ciphers the whole header is additional data.
    """
    first = first_byte(Opcode.P_DATA_V2, key_id)
    return (first << 24 | peer_id).to_bytes(4)
