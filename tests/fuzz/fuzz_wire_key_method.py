"""Any key method 2 message is strings without NUL, or is refused."""

from dataclasses import replace

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.key_method import (
    KeyMethodMessage,
    KeySource,
    decode_key_method,
    encode_key_method,
)

MESSAGE = KeyMethodMessage(
    KeySource.from_entropy(bytes(112)),
    "V4,dev-type tun",
    "user",
    "password",
    "IV_VER=2.6\nIV_PROTO=990\n",
)
SEEDS = (
    b"c" + encode_key_method(MESSAGE),
    b"c" + encode_key_method(MESSAGE)[:140],
    b"s" + bytes(4) + b"\2" + bytes(64) + b"\0\4V4x\0",
    b"s" + bytes(4) + b"\2" + bytes(64) + b"\xff\xffV4\0",
)
REASONS = {
    *("truncated-key-method", "unknown-key-method", "bad-options-string"),
    *("truncated-string", "unterminated-string"),
}


def one_input(data: bytes) -> None:
    """Decode as a client's or a server's; encode what can be."""
    client = data[:1] == b"c"
    try:
        message = decode_key_method(data[1:], from_client=client)
    except MalformedPacketError as error:
        assert error.reason in REASONS
        return
    texts = (
        *(message.options, message.username),
        *(message.password, message.peer_info),
    )
    assert not any("\0" in text for text in texts)
    assert repr(replace(message, password="")) == repr(message)
    message.peer_info_pairs()
    if all(len(text) < 0x4000 for text in texts):
        again = encode_key_method(message)
        assert decode_key_method(again, from_client=client) == message
