"""The `fragment` directive: packets that a peer has cut are put together.

Each content begins with 4 bytes: type 2 bits (0 whole, 1 not the last, 2 the
last), sequence number 8, number of the piece 5, and in the last one the size
of the others divided by 4, 14; from the lowest bit on. We cut nothing: the
tunnel's MTU is so small that all of ours are whole. Source: OpenVPN 2
fragment.c, fragment.h.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.errors import UntrustedInputError

HEADER_SIZE: Final = 4
WHOLE: Final = bytes(HEADER_SIZE)
# Packets that may be incomplete at once, and seconds that one may be so.
PACKETS_MAX: Final = 25
PATIENCE: Final = 10.0
_WHOLE, _NOT_LAST, _LAST = 0, 1, 2


@dataclass(slots=True)
class _Pieces:
    since: float
    size: int
    count: int = 0
    known: dict[int, bytes] = field(default_factory=dict)


class Fragments:
    """The packets of one session that are not complete yet."""

    def __init__(self) -> None:
        self._packets: OrderedDict[int, _Pieces] = OrderedDict()

    def take(self, content: memoryview, now: float) -> memoryview | None:
        """Take a content; return the packet that is whole now, or None.

        now: mono seconds. Raises UntrustedInputError "bad-fragment".
        """
        if len(content) <= HEADER_SIZE:
            raise UntrustedInputError("bad-fragment")
        flags, rest = int.from_bytes(content[:HEADER_SIZE]), content[4:]
        kind, sequence = flags & 3, flags >> 2 & 0xFF
        number = flags >> 10 & 0x1F
        if kind == _WHOLE and not (sequence or number):
            return rest
        if kind not in (_NOT_LAST, _LAST):
            raise UntrustedInputError("bad-fragment")
        size = (flags >> 15 & 0x3FFF) << 2 if kind == _LAST else len(rest)
        if not size or size % 4 or len(rest) > size:
            raise UntrustedInputError("bad-fragment")
        pieces = self._of(sequence, size, now)
        pieces.known[number] = bytes(rest)
        if kind == _LAST:
            pieces.count = number + 1
        numbers = range(pieces.count)
        if not pieces.count or not pieces.known.keys() >= set(numbers):
            return None
        del self._packets[sequence]
        whole = b"".join(pieces.known[each] for each in numbers)
        return memoryview(bytearray(whole))

    def _of(self, sequence: int, size: int, now: float) -> _Pieces:
        """Give the packet of this number; numbers come again."""
        pieces = self._packets.pop(sequence, None)
        if (
            pieces is None
            or pieces.size != size
            or now - pieces.since > PATIENCE
        ):
            pieces = _Pieces(now, size)
        self._packets[sequence] = pieces
        while len(self._packets) > PACKETS_MAX:
            self._packets.popitem(last=False)
        return pieces
