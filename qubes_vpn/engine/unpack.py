"""LZO1X and LZ4 blocks, unpacked: what some servers still send.

Only authenticated bytes come here, and only where the profile allows it.
Nothing is ever packed. Sources: the LZO stream format as documented with
Linux (Documentation/staging/lzo.rst); LZ4's block format description.
"""

from typing import Final

from qubes_vpn.errors import UntrustedInputError

# The largest inner packet there can be, in bytes.
UNPACKED_MAX: Final = 65_535
_LAST_LITERALS: Final = 4


class _Output:
    """Bytes so far; everything is bounded. Reads `packed` from the start."""

    def __init__(self, untrusted: bytes) -> None:
        self.packed = untrusted
        self.at = 0
        self.out = bytearray()

    def byte(self) -> int:
        """Take the next byte."""
        self.at += 1
        if self.at > len(self.packed):
            raise UntrustedInputError("bad-compression")
        return self.packed[self.at - 1]

    def pair(self) -> int:
        """Take 16 bits, the lower byte first."""
        return self.byte() | self.byte() << 8

    def long(self, count: int, more: int, step: int) -> int:
        """Take the rest of a length: bytes of `step` go on, another ends."""
        while (each := self.byte()) == step:
            count += 255
            self._check(count)
        return count + more + each

    def literals(self, count: int) -> None:
        """Copy bytes of the input."""
        end = self.at + count
        if end > len(self.packed):
            raise UntrustedInputError("bad-compression")
        self.out += self.packed[self.at : end]
        self.at = end
        self._check(len(self.out))

    def match(self, distance: int, count: int) -> None:
        """Copy bytes of the output, which may overlap what is copied."""
        begin = len(self.out) - distance
        if begin < 0 or distance < 1:
            raise UntrustedInputError("bad-compression")
        self._check(len(self.out) + count)
        pattern = self.out[begin : begin + count]
        repeated = pattern * (count // len(pattern) + 1)
        self.out += repeated[:count]

    def _check(self, size: int) -> None:
        if size > UNPACKED_MAX:
            raise UntrustedInputError("bad-compression")


def unpack_lzo(untrusted: bytes) -> bytes:
    """Unpack an LZO1X stream.

    Raises UntrustedInputError "bad-compression", and nothing else.
    """
    data = _Output(untrusted)
    state = 0
    if untrusted[:1] > b"\x11":
        count = data.byte() - 17
        data.literals(count)
        state = min(count, _LAST_LITERALS)
    while True:
        code = data.byte()
        if code < 16 and state == 0:
            count = data.long(0, 15, 0) if code == 0 else code
            data.literals(count + 3)
            state = _LAST_LITERALS
            continue
        distance, count, state = _lzo_match(data, code, state)
        if not distance:
            return bytes(data.out)
        data.match(distance, count)
        data.literals(state)


def _lzo_match(data: _Output, code: int, state: int) -> tuple[int, int, int]:
    """Read a match: its distance (0: the end), length, literals after it."""
    if code < 16:
        far, count = (2049, 3) if state == _LAST_LITERALS else (1, 2)
        return far + (code >> 2) + (data.byte() << 2), count, code & 3
    if code >= 64:
        distance = 1 + (code >> 2 & 7) + (data.byte() << 3)
        return distance, (code >> 5) + 1, code & 3
    if code >= 32:
        count = code & 31 or data.long(0, 31, 0)
        following = data.pair()
        return 1 + (following >> 2), count + 2, following & 3
    count = code & 7 or data.long(0, 7, 0)
    following = data.pair()
    distance = ((code & 8) << 11) + (following >> 2)
    return distance and distance + 0x4000, count + 2, following & 3


def unpack_lz4(untrusted: bytes) -> bytes:
    """Unpack an LZ4 block.

    Raises UntrustedInputError "bad-compression", and nothing else.
    """
    data = _Output(untrusted)
    while True:
        token = data.byte()
        data.literals(_lz4_length(data, token >> 4))
        if data.at == len(untrusted):
            return bytes(data.out)
        distance = data.pair()
        data.match(distance, _lz4_length(data, token & 15) + 4)


def _lz4_length(data: _Output, nibble: int) -> int:
    return data.long(0, 15, 255) if nibble == 15 else nibble
