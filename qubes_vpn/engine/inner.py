"""What is inside a data packet once it is decrypted.

Compression is never used for sending; some servers still push its framing,
one or two bytes that say "not compressed". Source: OpenVPN 2 comp.h, lzo.c,
comp-lz4.c, ping.c, occ.c.
"""

from typing import Final

from qubes_vpn.engine.fragments import WHOLE
from qubes_vpn.engine.unpack import unpack_lz4, unpack_lzo
from qubes_vpn.errors import UntrustedInputError

PING: Final = bytes.fromhex("2a187bf3641eb4cb07ed2d0a981fc748")
OCC_MAGIC: Final = bytes.fromhex("287f346bd4ef7a812d56b8d3afc5459c")
OCC_EXIT: Final = 6

_NOT_COMPRESSED: Final = 0xFA
_NOT_COMPRESSED_SWAP: Final = 0xFB
_V2_INDICATOR: Final = 0x50
_V2_NOT_COMPRESSED: Final = b"\x50\x00"
_V2_LZ4: Final = b"\x50\x01"
_LZO: Final = 0x66
_LZ4: Final = 0x69

_PREFIX: Final = "prefix"
_SWAP: Final = "swap"
_V2: Final = "v2"
# After a style: what comes compressed is unpacked.
_PACKED: Final = "+"
# DataKeys.compression -> how a packet that is not compressed looks.
STYLES: Final = {
    "": "",
    "stub": _PREFIX,
    "lzo-rx": _PREFIX + _PACKED,
    "swap": _SWAP,
    "lz4-rx": _SWAP + _PACKED,
    "stub-v2": _V2,
    "lz4-v2-rx": _V2 + _PACKED,
}


# What has the same framing, and unpacks nothing.
STUB_OF: Final = {"lzo-rx": "stub", "lz4-rx": "swap", "lz4-v2-rx": "stub-v2"}
# Before a style: all is in pieces, or says that it is whole.
FRAGMENT: Final = "/"


def style_of(compression: str, *, fragment: bool) -> str:
    """Return the style of a key: of its framing and of `fragment`."""
    return (FRAGMENT if fragment else "") + STYLES[compression]


def wrap(style: str, payload: bytes) -> bytes:
    """Put the framing of `style` around a payload of at least 1 byte.

    prefix: 0xFA before it. swap: 0xFB in the place of the first byte, which
    goes to the end. v2: nothing, but for payloads that begin with 0x50.
    """
    if style.startswith(FRAGMENT):
        return WHOLE + wrap(style[1:], payload)
    style = style.removesuffix(_PACKED)
    if style == _PREFIX:
        return b"\xfa" + payload
    if style == _SWAP:
        return b"\xfb" + payload[1:] + payload[:1]
    if style == _V2 and payload[0] == _V2_INDICATOR:
        return _V2_NOT_COMPRESSED + payload
    return payload


def unwrap(style: str, plain: memoryview) -> memoryview:
    """Take the framing of `style` off; may write to `plain`.

    Raises UntrustedInputError "compressed" when the content is compressed
    and that is not allowed, or is not framed at all, "bad-compression" when
    it cannot be unpacked, and "empty" when nothing is inside.
    """
    if not plain:
        raise UntrustedInputError("empty")
    if not style:
        return plain
    packed = style.endswith(_PACKED)
    style = style.removesuffix(_PACKED)
    if packed and (unpacked := _unpacked(style, plain)) is not None:
        return unpacked
    first = plain[0]
    if style == _V2:
        if first != _V2_INDICATOR:
            return plain
        if bytes(plain[:2]) != _V2_NOT_COMPRESSED:
            raise UntrustedInputError("compressed")
        return plain[2:]
    if first == _NOT_COMPRESSED and style == _PREFIX:
        return plain[1:]
    if first == _NOT_COMPRESSED_SWAP and style == _SWAP:
        plain[0] = plain[-1]
        return plain[:-1]
    raise UntrustedInputError("compressed")


def _unpacked(style: str, plain: memoryview) -> memoryview | None:
    """Unpack what is compressed; None: it is not."""
    first = plain[0]
    if style == _PREFIX and first == _LZO:
        whole = unpack_lzo(bytes(plain[1:]))
    elif style == _SWAP and first == _LZ4:
        whole = unpack_lz4(bytes(plain[-1:]) + bytes(plain[1:-1]))
    elif style == _V2 and bytes(plain[:2]) == _V2_LZ4:
        whole = unpack_lz4(bytes(plain[2:]))
    else:
        return None
    return memoryview(bytearray(whole))


def check_ip(packet: memoryview) -> None:
    """Let nothing but a whole IP packet into the tunnel device.

    Raises UntrustedInputError "not-ip" or "bad-ip-length". A length beyond
    the packet is refused; bytes after it are the kernel's to ignore.
    """
    size = len(packet)
    version = packet[0] >> 4 if size else 0
    if version == 4:
        header = (packet[0] & 15) * 4
        length = packet[2] << 8 | packet[3] if size >= 20 else 0
        if not 20 <= header <= length <= size:
            raise UntrustedInputError("bad-ip-length")
    elif version == 6:
        if size < 40 or (packet[4] << 8 | packet[5]) + 40 > size:
            raise UntrustedInputError("bad-ip-length")
    else:
        raise UntrustedInputError("not-ip")


def source_of(packet: memoryview) -> bytes:
    """Return the packed source address of a packet that check_ip passed."""
    if packet[0] >> 4 == 4:
        return bytes(packet[12:16])
    return bytes(packet[8:24])
