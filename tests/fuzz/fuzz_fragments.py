"""Any pieces make the packet that they are of, or a drop, and never pile up.

A program of bytes: pieces as they come, pieces of packets cut by rule, and
seconds that pass. What is whole is what was cut, and little is kept.
"""

from qubes_vpn.engine.fragments import PACKETS_MAX, PATIENCE, WHOLE, Fragments
from qubes_vpn.errors import UntrustedInputError

PIECES = 32
PIECE_MAX = 64


def header(kind, sequence, number, size):
    """Make the four bytes before a piece."""
    return (kind | sequence << 2 | number << 10 | size >> 2 << 15).to_bytes(4)


def cut(content, sequence, size):
    """Cut as a peer does that follows the rule."""
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    last = len(parts) - 1
    return [
        header(2 if number == last else 1, sequence, number, size * (n == last))
        + part
        for n, (number, part) in enumerate(enumerate(parts))
    ]


SEEDS = (
    b"\0\x08" + WHOLE + b"abcd",
    b"\1\x10\x03" + bytes(range(16)),
    b"".join(b"\0\x08" + one for one in cut(b"abcdefgh", 7, 4)),
    b"\0\x08" + header(2, 1, 31, 4) + b"abcd",
    b"\0\x08" + header(1, 3, 0, 0) + b"abcd\2\x0b" + b"\1\x09\x03" + bytes(9),
)


def one_input(data: bytes) -> None:
    """Commands: 0 a piece as it is, 1 a packet cut by rule, 2 time."""
    fragments, now, at = Fragments(), 0.0, 0
    while at + 2 <= len(data):
        command, size = data[at] % 3, data[at + 1] % PIECE_MAX
        content = data[at + 2 : at + 2 + size]
        at += 2 + size * (command < 2)
        if command == 2:
            now += size
        elif command == 1 and len(content) > 1:
            whole(fragments, content[1:], content[0], now)
        else:
            offer(fragments, content, now)
        kept = fragments._packets.values()
        assert len(kept) <= PACKETS_MAX
        assert all(len(one.known) <= PIECES for one in kept)
        held = sum(len(part) for one in kept for part in one.known.values())
        assert held <= PACKETS_MAX * PIECES * PIECE_MAX


def offer(fragments, content, now):
    """Give one piece, and what comes of it."""
    try:
        return fragments.take(memoryview(content), now)
    except UntrustedInputError as error:
        assert error.reason == "bad-fragment"
        return None


def whole(fragments, content, chance, now):
    """Cut by rule, after all that came: only the last piece makes it whole."""
    size = 4 * (chance % 4 + 1)
    if len(content) <= size or len(content) > size * PIECES:
        return
    # whatever was begun under this number is too old by now
    pieces = cut(content, chance, size)
    now += PATIENCE + 1
    results = [offer(fragments, one, now) for one in pieces]
    assert results[:-1] == [None] * (len(pieces) - 1)
    assert bytes(results[-1]) == content
