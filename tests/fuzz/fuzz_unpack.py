"""Any LZO or LZ4 block unpacks as with its own library, or is dropped.

What both unpack is the same, and what comes out is bounded. LZO's library
refuses bytes after the end, LZ4's a match close to it; it copies from a
distance of 0, which its format forbids. We do neither.
"""

import ctypes

from qubes_vpn.engine.unpack import UNPACKED_MAX, unpack_lz4, unpack_lzo
from qubes_vpn.errors import UntrustedInputError

LZO = ctypes.CDLL("liblzo2.so.2")
LZ4 = ctypes.CDLL("liblz4.so.1")
OUT = ctypes.create_string_buffer(UNPACKED_MAX)
SEEDS = (
    b"o\x15abcd\x11\0\0",
    b"o\x12a\x20\x3f\0\0\x11\0\0",
    b"o\0\x05" + bytes(23) + b"\x40\x01\x11\0\0",
    b"o\x16abcde\xa4\x00\x2c\x04\x00xyz\x11\0\0",
    b"4\x40abcd",
    b"4\x4fabcd\x02\0\xff\x10\x50vwxyz",
    b"4\xf0\x02" + bytes(17),
    b"4\x13a\x01\0\x10b",
)


def theirs(lzo: bool, packed: bytes) -> bytes | None:
    """Unpack with the library."""
    if not lzo:
        size = LZ4.LZ4_decompress_safe(packed, OUT, len(packed), UNPACKED_MAX)
        return OUT.raw[:size] if size >= 0 else None
    size = ctypes.c_ulong(UNPACKED_MAX)
    result = LZO.lzo1x_decompress_safe(
        packed, ctypes.c_ulong(len(packed)), OUT, ctypes.byref(size), None
    )
    return None if result else OUT.raw[: size.value]


def one_input(data: bytes) -> None:
    """Unpack as what the first byte says."""
    lzo, packed = data[:1] != b"4", data[1:]
    try:
        ours = (unpack_lzo if lzo else unpack_lz4)(packed)
    except UntrustedInputError as error:
        assert error.reason == "bad-compression"
        assert not lzo or theirs(lzo, packed) is None
        return
    assert len(ours) <= UNPACKED_MAX
    assert theirs(lzo, packed) in {None, ours}
