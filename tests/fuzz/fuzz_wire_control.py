"""Any datagram is a control packet that encodes to its bytes, or is dropped.

Before unwrapping (as it came, with every wrap) and after it (sealed with the
right key, so that the parser behind the wrap sees the bytes).
"""

import hmac

from qubes_vpn.crypto.control_wrap import (
    METADATA_USER,
    PlainWrap,
    TlsAuthWrap,
    TlsCryptV2ServerWrap,
    TlsCryptWrap,
    wrap_client_key,
)
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.control import (
    HEADER_SIZE,
    decode_early_negotiation,
    encode_body,
)
from qubes_vpn.wire.opcode import first_byte

NOW = 1_795_000_000.0
KEY = bytes(range(256))
WKC = wrap_client_key(bytes(range(128)), KEY, bytes([METADATA_USER]))
HEADER = bytes([0x20, 1, 2, 3, 4, 5, 6, 7, 8])
SEEDS = (
    b"\x00\x38" + HEADER[1:] + b"\0\0\0\0\0",
    b"\x00\x40" + HEADER[1:] + b"\1\0\0\0\0abcdefgh\0\0\0\0\0\1\0\2\0\1",
    b"\x00\x28" + HEADER[1:] + b"\2\0\0\0\0\0\0\0\1abcdefgh",
    b"\x01\x20" + HEADER[1:] + bytes(28) + b"\0\0\0\0\1x",
    b"\x02\x20" + HEADER[1:] + bytes(40) + b"\0\0\0\0\1x",
    b"\x03\x50" + HEADER[1:] + bytes(40) + WKC,
    b"\x05\x20" + HEADER[1:] + b"\1\0\0\0\0abcdefgh\0\0\0\1\x16\3\1\0\5",
    b"\x06\x20" + HEADER[1:] + b"\0\0\0\0\1\x16\3\1",
)


def wraps():
    """Give one of each, with nothing received yet."""
    return (
        PlainWrap(),
        TlsAuthWrap(KEY, 0),
        TlsCryptWrap(KEY, is_server=True),
        TlsCryptV2ServerWrap(KEY),
    )


def sealed(kind: int, header: bytes, body: bytes) -> bytes:
    """Wrap as a client with the key does, whatever the body is."""
    packet_id = (1).to_bytes(4) + int(NOW).to_bytes(4)
    if kind == 1:
        key = KEY[192:212]
        tag = hmac.digest(key, packet_id + header + body, "sha1")
        return header + tag + packet_id + body
    from qubes_vpn.crypto.control_wrap import _TlsCryptKey
    from qubes_vpn.crypto.prf import split_key2

    tag, secret = _TlsCryptKey(split_key2(KEY)[1]).seal(
        header + packet_id, body
    )
    return header + packet_id + tag + secret


def one_input(data: bytes) -> None:
    """Unwrap; the first byte says with what, and if it is sealed first."""
    if not data:
        return
    kind, datagram = data[0] % 4, data[1:]
    known = data[0] & 4 and kind in (1, 2) and len(datagram) >= HEADER_SIZE
    if known:
        header, body = datagram[:HEADER_SIZE], datagram[HEADER_SIZE:]
        datagram = sealed(kind, header, body)
    try:
        packet = wraps()[kind].unwrap(datagram, NOW)
    except UntrustedInputError as error:
        assert error.reason
        assert not known or error.reason not in {"bad-hmac", "replay"}
        return
    assert len(packet.session_id) == HEADER_SIZE - 1
    assert len(packet.acks) <= 8
    if not kind:
        first = bytes([first_byte(packet.opcode, packet.key_id)])
        assert first + packet.session_id + encode_body(packet) == datagram
    try:
        assert decode_early_negotiation(packet.payload) in (True, False)
    except UntrustedInputError as error:
        assert error.reason in {"truncated-tlv", "bad-tlv-length"}
