import hmac
import json
import subprocess
from pathlib import Path

import pytest

from qubes_vpn.crypto.cbc import CbcCipher, static_key_directions
from qubes_vpn.crypto.keys import DirectionKeys
from qubes_vpn.errors import AuthenticationError
from qubes_vpn.wire.keyfile import parse_static_key

VECTORS = Path(__file__).parents[2] / "vectors"
PINGS = json.loads((VECTORS / "static-pings.json").read_text())
IV = bytes(range(16))
SIZES = {"AES-128-CBC": 16, "AES-192-CBC": 24, "AES-256-CBC": 32}


def cipher(name="AES-256-CBC", digest="SHA1"):
    return CbcCipher(name, digest, DirectionKeys(b"k" * SIZES[name], b"m" * 20))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("digest", ["SHA1", "SHA256", "SHA512", "none"])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1400])
def test_seal_and_open_are_inverse(name, digest, size):
    one = cipher(name, digest)
    sealed = one.seal(b"p" * size, IV)
    assert one.open(sealed) == b"p" * size
    assert 0 < len(sealed) - size <= one.overhead


def test_the_layout_is_hmac_iv_ciphertext():
    sealed = cipher().seal(b"text", IV)
    assert sealed[:20] == hmac.digest(b"m" * 20, sealed[20:], "sha1")
    assert sealed[20:36] == IV
    decrypt = ["openssl", "enc", "-d", "-aes-256-cbc", "-iv", IV.hex()]
    shown = subprocess.run(
        [*decrypt, "-K", (b"k" * 32).hex()],
        input=sealed[36:],
        capture_output=True,
        check=True,
    )
    assert shown.stdout == b"text"


def test_nothing_that_is_not_authentic_opens():
    sealed = cipher().seal(b"text", IV)
    for place in range(len(sealed)):
        bad = bytearray(sealed)
        bad[place] ^= 1
        with pytest.raises(AuthenticationError) as caught:
            cipher().open(bytes(bad))
        assert caught.value.reason == "bad-hmac"
    for size in range(len(sealed)):
        with pytest.raises(AuthenticationError):
            cipher().open(sealed[:size])


def test_without_a_digest_wrong_padding_and_length_look_alike():
    one = cipher(digest="none")
    for content in (b"", IV, IV + b"x" * 15, IV + b"x" * 16, b"x" * 17):
        with pytest.raises(AuthenticationError) as caught:
            one.open(content)
        assert caught.value.reason == "bad-hmac"


# OpenVPN 2 ping.c
PING = bytes.fromhex("2a187bf3641eb4cb07ed2d0a981fc748")


@pytest.mark.parametrize("name", PINGS)
def test_openvpns_static_key_packets_open(name):
    _, direction, rest = name.split("-", 2)
    cipher_name, digest = rest.rsplit("-", 1)
    # The sender's direction: we have the other one.
    ours = {"": None, "0": 1, "1": 0}[direction]
    key = parse_static_key((VECTORS / "keys/static.key").read_text())
    _, decrypt = static_key_directions(key, ours, cipher_name, digest)
    opened = CbcCipher(cipher_name, digest, decrypt).open(
        bytes.fromhex(PINGS[name])
    )
    # packet id and time, 4 bytes each
    assert opened[:4] == b"\0\0\0\1"
    assert opened[8:] == PING


def test_static_keys_have_directions():
    key = bytes(range(256))
    zero = static_key_directions(key, 0, "AES-256-CBC", "SHA1")
    one = static_key_directions(key, 1, "AES-256-CBC", "SHA1")
    both = static_key_directions(key, None, "AES-256-CBC", "SHA1")
    assert zero == (
        DirectionKeys(key[:32], key[64:84]),
        DirectionKeys(key[128:160], key[192:212]),
    )
    assert one == zero[::-1]
    assert both == (zero[0], zero[0])
