"""One direction of an AEAD data key, for one packet or for many at a time."""

from typing import Final

from qubes_vpn.crypto.aead import NONCE_SIZE, AeadCipher
from qubes_vpn.crypto.keys import DirectionKeys
from qubes_vpn.crypto.replay import ReplayWindow

_BLOCK_SIZE: Final = 16


class AeadHalf:
    """The cipher of one direction, for as long as its key lasts.

    seal, open: the cipher's own calls. iv: 12 bytes; the nonce of a packet
    is its wire id, followed by zeros, xor this. blocks: of 16 bytes, that
    the cipher has done, where that is counted.
    """

    __slots__ = ("blocks", "iv", "open", "seal")

    def __init__(self, cipher: str, keys: DirectionKeys) -> None:
        aead = AeadCipher(cipher, keys)
        self.seal = aead.seal
        self.open = aead.open
        self.iv = keys.implicit_iv.rjust(NONCE_SIZE, b"\0")
        self.blocks = 0

    def count(self, size: int, packets: int = 1) -> None:
        """Count packets with `size` bytes of content each."""
        self.blocks += packets * blocks_of(size)


class Incoming:
    """What the peer seals with, and the packet ids that came under it."""

    __slots__ = ("half", "window")

    def __init__(self, half: AeadHalf, window: ReplayWindow) -> None:
        self.half = half
        self.window = window


def blocks_of(size: int) -> int:
    """Say how many blocks so many bytes are, the last one filled up."""
    return (size + _BLOCK_SIZE - 1) // _BLOCK_SIZE
