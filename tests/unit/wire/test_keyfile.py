from pathlib import Path

import pytest

from qubes_vpn.wire.keyfile import (
    AUTH_TOKEN_SERVER,
    TLS_CRYPT_V2_CLIENT,
    TLS_CRYPT_V2_SERVER,
    ClientKeyV2,
    format_client_key_v2,
    format_pem,
    format_static_key,
    parse_client_key_v2,
    parse_server_key,
    parse_static_key,
)

KEYS = Path(__file__).parents[2] / "vectors" / "keys"
STATIC = (KEYS / "static.key").read_text()


def test_openvpns_static_key_round_trips():
    key = parse_static_key(STATIC)
    assert len(key) == 256
    assert STATIC.endswith(format_static_key(key))
    assert parse_static_key(STATIC.replace("\n", "\r\n")) == key
    assert (
        parse_static_key(
            STATIC.upper()
            .replace("OPENVPN", "OpenVPN")
            .replace("STATIC KEY", "Static key")
        )
        == key
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no OpenVPN Static key V1 found"),
        (STATIC.replace("END", "FIN"), "no OpenVPN Static key V1 found"),
        (STATIC.replace("BEGIN", "B"), "no OpenVPN Static key V1 found"),
        (
            format_static_key(bytes(256)).replace("00\n", "0\n", 1),
            "the static key has 255 bytes, not 256",
        ),
        (
            format_static_key(bytes(256)).replace("00\n", "0x\n", 1),
            "the static key has characters that are not hex",
        ),
    ],
)
def test_static_keys_that_are_wrong(text, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        parse_static_key(text)


@pytest.mark.parametrize("name", ["v2-client.key", "v2-client-metadata.key"])
def test_openvpns_client_keys_round_trip(name):
    text = (KEYS / name).read_text()
    key = parse_client_key_v2(text)
    assert len(key.key) == 256
    assert key.wkc[-2:] == len(key.wkc).to_bytes(2)
    assert format_client_key_v2(key) == text
    assert repr(key) == "ClientKeyV2(...)"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (bytes(545), "wrong length"),
        (bytes(256 + 1025), "wrong length"),
        (bytes(256 + 300), "damaged"),
    ],
)
def test_client_keys_that_are_wrong(content, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_client_key_v2(format_pem(content, TLS_CRYPT_V2_CLIENT))


def test_the_shortest_and_the_longest_wrapped_key():
    for size in (290, 1024):
        wkc = bytes(size - 2) + size.to_bytes(2)
        key = ClientKeyV2(bytes(256), wkc)
        assert parse_client_key_v2(format_client_key_v2(key)) == key


def test_openvpns_server_keys_round_trip():
    for file, name in (
        ("v2-server.key", TLS_CRYPT_V2_SERVER),
        ("auth-token.key", AUTH_TOKEN_SERVER),
    ):
        text = (KEYS / file).read_text()
        key = parse_server_key(text, name)
        assert len(key) == 128
        assert format_pem(key, name) == text


def test_server_keys_that_are_wrong():
    with pytest.raises(ValueError, match="has 127 bytes, not 128"):
        parse_server_key(format_pem(bytes(127), TLS_CRYPT_V2_SERVER))
    with pytest.raises(ValueError, match="not valid base64"):
        parse_server_key(
            format_pem(bytes(128), TLS_CRYPT_V2_SERVER).replace("AAAA", "A!A")
        )
    with pytest.raises(ValueError, match="no OpenVPN tls-crypt-v2 server key"):
        parse_server_key((KEYS / "auth-token.key").read_text())
