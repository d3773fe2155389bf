"""Key derivation against values of OpenVPN's unit tests and of OpenSSL."""

import pytest

from qubes_vpn.crypto import prf
from qubes_vpn.crypto.keys import DirectionKeys
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.key_method import KeySource

# OpenVPN 2 tests/unit_tests/openvpn/test_crypto.c
LOREM = (
    b"Lorem ipsum dolor sit amet, consectetur adipisici elit, sed eiusmod"
    b" tempor incidunt ut labore et dolore magna aliqua."
)
SEED = b"Quis aute iure reprehenderit in voluptate velit esse cillum dolore"
PRF = "d98c8518c85e946927916acfc2d592fbb1567e4b4b1459e6a904ac2ddab72d67"
SECRET = "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
LABEL = "185eaa1c7f228ab8eb29773214d92046"
EPOCH_KEY = "ed8533db1c28ace418e9006ab29c17417d60ebe6cd90bf0a"
EPOCH_IV = "86890aabf032cb59f4cfa34e"

OPENSSL_ODD = "f0648395c0226e558b376df56a31609a"

KEY2 = bytes(range(256))


def test_the_tls_prf_gives_openvpns_value():
    assert prf.tls1_prf(LOREM, SEED, 32).hex() == PRF


def test_the_tls_prf_halves_overlap_for_an_odd_secret():
    # openssl kdf -keylen 16 -kdfopt digest:MD5-SHA1 -kdfopt secret:abcde
    #   -kdfopt seed:label TLS1-PRF
    assert prf.tls1_prf(b"abcde", b"label", 16).hex() == OPENSSL_ODD


def test_a_system_without_md5_is_named(monkeypatch):
    def refuse(key, content, digest):
        raise ValueError("unsupported")

    monkeypatch.setattr(prf.hmac, "digest", refuse)
    with pytest.raises(SessionError) as caught:
        prf.tls1_prf(LOREM, SEED, 32)
    assert caught.value.reason == "prf-unavailable"


def test_key2_is_made_of_both_sides_entropy():
    client = KeySource.from_entropy(bytes(range(112)))
    server = KeySource.from_entropy(bytes(range(64)))
    key2 = prf.key2_from_prf(client, server, b"C" * 8, b"S" * 8)
    master = prf.tls1_prf(
        bytes(range(48)),
        b"OpenVPN master secret" + bytes(range(48, 80)) + bytes(range(32)),
        48,
    )
    assert key2 == prf.tls1_prf(
        master,
        b"OpenVPN key expansion"
        + bytes(range(80, 112))
        + bytes(range(32, 64))
        + b"CCCCCCCCSSSSSSSS",
        256,
    )


def test_expand_label_gives_openvpns_value():
    secret = bytes.fromhex(SECRET)
    assert prf.expand_label(secret, b"unit test", b"", 16).hex() == LABEL


def test_expand_label_has_a_context():
    secret = bytes.fromhex(SECRET)
    assert prf.expand_label(secret, b"unit test", b"x", 16).hex() != LABEL


def test_epoch_keys_are_openvpns():
    keys = prf.epoch_keys(bytes((19, 12)) + bytes(30), "AES-192-GCM")
    assert keys.cipher_key.hex() == EPOCH_KEY
    assert keys.implicit_iv.hex() == EPOCH_IV


def test_the_next_epoch_has_its_own_secret():
    first = bytes(32)
    assert prf.next_epoch(first) == prf.expand_label(
        first, b"datakey upd", b"", 32
    )
    assert len({first, prf.next_epoch(first)}) == 2


@pytest.mark.parametrize(
    ("cipher", "digest", "keys"),
    [
        (
            "aes-128-gcm",
            "",
            DirectionKeys(KEY2[:16], implicit_iv=KEY2[64:72]),
        ),
        (
            "CHACHA20-POLY1305",
            "",
            DirectionKeys(KEY2[:32], implicit_iv=KEY2[64:72]),
        ),
        ("AES-192-CBC", "SHA256", DirectionKeys(KEY2[:24], KEY2[64:96])),
        ("AES-256-CBC", "none", DirectionKeys(KEY2[:32], b"")),
    ],
)
def test_key2_is_cut_to_the_cipher(cipher, digest, keys):
    client, _ = prf.direction_keys(
        KEY2, is_server=False, cipher=cipher, digest=digest
    )
    assert client == keys


def test_client_and_server_have_opposite_directions():
    client = prf.direction_keys(KEY2, is_server=False, cipher="AES-256-GCM")
    server = prf.direction_keys(KEY2, is_server=True, cipher="AES-256-GCM")
    assert client == server[::-1]
    assert client[1].cipher_key == KEY2[128:160]
    assert prf.epoch_secrets(KEY2, is_server=False) == (
        DirectionKeys(KEY2[:32]),
        DirectionKeys(KEY2[128:160]),
    )
    assert prf.epoch_secrets(KEY2, is_server=True) == (
        DirectionKeys(KEY2[128:160]),
        DirectionKeys(KEY2[:32]),
    )
