"""Key method 2: what both sides say first inside TLS.

Layout: uint32 0; key method, 1 byte (low 4 bits are 2); pre-master secret,
48 bytes (client only); random1 and random2, 32 bytes each; then strings,
each with a 2 byte length that counts its final NUL: options string,
username, password, peer info. The last three may be absent.
Source: OpenVPN 2 ssl.c, key_method_2_write and key_method_2_read.
"""

from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.errors import MalformedPacketError

KEY_METHOD: Final = 2
PRE_MASTER_SIZE: Final = 48
RANDOM_SIZE: Final = 32
# What entropy a client and a server put into their message, in bytes.
CLIENT_MATERIAL_SIZE: Final = PRE_MASTER_SIZE + 2 * RANDOM_SIZE
SERVER_MATERIAL_SIZE: Final = 2 * RANDOM_SIZE
OPTIONS_MAX: Final = 512
# With the NUL; more is read, and refused later as wrong credentials are.
CREDENTIAL_MAX: Final = 0xFFFF
PEER_INFO_MAX: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class KeySource:
    """One side's random material; a server has no pre-master secret."""

    random1: bytes = field(repr=False)
    random2: bytes = field(repr=False)
    pre_master: bytes = field(repr=False, default=b"")

    @classmethod
    def from_entropy(cls, entropy: bytes) -> "KeySource":
        """Cut fresh entropy: 112 bytes for a client, 64 for a server."""
        assert len(entropy) in {CLIENT_MATERIAL_SIZE, SERVER_MATERIAL_SIZE}
        split = len(entropy) - 2 * RANDOM_SIZE
        middle = split + RANDOM_SIZE
        return cls(entropy[split:middle], entropy[middle:], entropy[:split])


@dataclass(frozen=True, slots=True)
class KeyMethodMessage:
    """A key method 2 message of either side.

    Strings are without their NUL. Undecodable bytes of a peer become
    surrogate escapes, so that nothing is lost.
    """

    source: KeySource = field(repr=False)
    options: str
    username: str = ""
    password: str = field(repr=False, default="")
    peer_info: str = ""

    def peer_info_pairs(self) -> dict[str, str]:
        """Return the peer info's NAME=value lines; the first of a name."""
        pairs: dict[str, str] = {}
        for line in self.peer_info.split("\n"):
            name, equals, value = line.partition("=")
            if equals:
                pairs.setdefault(name, value)
        return pairs


def encode_key_method(message: KeyMethodMessage) -> bytes:
    """Return the message as bytes, with all four strings."""
    source = message.source
    return b"".join(
        (
            bytes(4),
            bytes((KEY_METHOD,)),
            source.pre_master,
            source.random1,
            source.random2,
            _encode_string(message.options, always=True),
            _encode_string(message.username),
            _encode_string(message.password),
            _encode_string(message.peer_info),
        )
    )


def decode_key_method(
    untrusted: bytes, *, from_client: bool
) -> KeyMethodMessage:
    """Decode one side's message; from_client says which layout.

    Bytes after the peer info are ignored, as OpenVPN does. Raises
    MalformedPacketError "truncated-key-method", "unknown-key-method",
    "bad-options-string", "truncated-string" or "unterminated-string".
    """
    size = CLIENT_MATERIAL_SIZE if from_client else SERVER_MATERIAL_SIZE
    start = 5
    end = start + size
    if len(untrusted) < end:
        raise MalformedPacketError("truncated-key-method", len(untrusted))
    if untrusted[4] & 0x0F != KEY_METHOD:
        raise MalformedPacketError("unknown-key-method", 4)
    source = KeySource.from_entropy(untrusted[start:end])
    options, offset = _decode_string(untrusted, end, required=True)
    if len(options) >= OPTIONS_MAX:
        raise MalformedPacketError("bad-options-string", end)
    username, offset = _decode_string(untrusted, offset)
    password, offset = _decode_string(untrusted, offset)
    peer_info, offset = _decode_string(untrusted, offset)
    return KeyMethodMessage(source, options, username, password, peer_info)


def _encode_string(text: str, *, always: bool = False) -> bytes:
    """Encode a string; an empty one is length 0 unless `always`."""
    encoded = text.encode("utf-8", "surrogateescape")
    assert len(encoded) < CREDENTIAL_MAX
    assert b"\0" not in encoded
    if not encoded and not always:
        return bytes(2)
    return (len(encoded) + 1).to_bytes(2) + encoded + b"\0"


def _decode_string(
    untrusted: bytes, offset: int, *, required: bool = False
) -> tuple[str, int]:
    start = offset + 2
    if not required and len(untrusted) == offset:
        return "", offset
    if len(untrusted) < start:
        raise MalformedPacketError("truncated-string", offset)
    length = int.from_bytes(untrusted[offset:start])
    if length == 0:
        if required:
            raise MalformedPacketError("bad-options-string", offset)
        return "", start
    end = start + length
    if len(untrusted) < end:
        raise MalformedPacketError("truncated-string", start)
    if untrusted[start:end].find(b"\0") != length - 1:
        raise MalformedPacketError("unterminated-string", start)
    return untrusted[start : end - 1].decode("utf-8", "surrogateescape"), end
