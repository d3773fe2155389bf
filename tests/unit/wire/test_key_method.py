import pytest

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.key_method import (
    KeyMethodMessage,
    KeySource,
    decode_key_method,
    encode_key_method,
)

ENTROPY = bytes(range(112))
CLIENT = KeyMethodMessage(
    KeySource.from_entropy(ENTROPY),
    "V4,dev-type tun",
    "user",
    "päss",
    "IV_VER=2.6\nIV_PROTO=990\n",
)
HEAD = bytes(4) + b"\x02"


def test_entropy_is_cut_as_openvpn_writes_it():
    source = KeySource.from_entropy(ENTROPY)
    assert source.pre_master == ENTROPY[:48]
    assert source.random1 == ENTROPY[48:80]
    assert source.random2 == ENTROPY[80:]
    assert KeySource.from_entropy(ENTROPY[:64]).pre_master == b""


def test_a_client_message_has_openvpns_layout():
    wire = encode_key_method(CLIENT)
    assert wire == HEAD + ENTROPY + (
        b"\0\x10V4,dev-type tun\0"
        b"\0\5user\0"
        b"\0\6p\xc3\xa4ss\0"
        b"\0\x19IV_VER=2.6\nIV_PROTO=990\n\0"
    )
    assert decode_key_method(wire, from_client=True) == CLIENT


def test_a_server_message_has_no_pre_master_secret():
    server = KeyMethodMessage(KeySource.from_entropy(ENTROPY[:64]), "V4")
    wire = encode_key_method(server)
    assert wire == HEAD + ENTROPY[:64] + b"\0\3V4\0" + bytes(6)
    assert decode_key_method(wire, from_client=False) == server


def test_an_empty_options_string_is_still_a_string():
    server = KeyMethodMessage(KeySource.from_entropy(ENTROPY[:64]), "")
    wire = encode_key_method(server)
    assert wire[69:72] == b"\0\1\0"
    assert decode_key_method(wire, from_client=False) == server


def test_old_servers_end_after_the_options():
    wire = HEAD + ENTROPY[:64] + b"\0\3V4\0"
    decoded = decode_key_method(wire, from_client=False)
    assert (decoded.options, decoded.peer_info) == ("V4", "")


def test_bytes_after_the_peer_info_are_ignored():
    wire = encode_key_method(CLIENT) + b"more"
    assert decode_key_method(wire, from_client=True) == CLIENT


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", "truncated-key-method"),
        (HEAD + bytes(111), "truncated-key-method"),
        (bytes(5) + bytes(112), "unknown-key-method"),
        (bytes(4) + b"\x01" + bytes(112), "unknown-key-method"),
        (HEAD + bytes(112), "truncated-string"),
        (HEAD + bytes(112) + b"\0\0", "bad-options-string"),
        (HEAD + bytes(112) + b"\0\3V4", "truncated-string"),
        (HEAD + bytes(112) + b"\0\3V44", "unterminated-string"),
        (HEAD + bytes(112) + b"\0\3\0\0\0", "unterminated-string"),
        (
            HEAD + bytes(112) + b"\2\x01" + b"x" * 512 + b"\0",
            "bad-options-string",
        ),
        (HEAD + bytes(112) + b"\0\3V4\0\0", "truncated-string"),
        (HEAD + bytes(112) + b"\0\3V4\0\xff\xffuser\0", "truncated-string"),
    ],
)
def test_messages_that_are_malformed(wire, reason):
    with pytest.raises(MalformedPacketError) as caught:
        decode_key_method(wire, from_client=True)
    assert caught.value.reason == reason


def test_peer_info_is_pairs_and_the_first_of_a_name_counts():
    info = "IV_VER=2.6\nIV_VER=9\nnonsense\nUV_X=a=b\n"
    message = KeyMethodMessage(CLIENT.source, "", peer_info=info)
    assert message.peer_info_pairs() == {"IV_VER": "2.6", "UV_X": "a=b"}


def test_no_secret_is_in_the_repr():
    assert "päss" not in repr(CLIENT)
    assert repr(ENTROPY[:8])[2:10] not in repr(CLIENT)
