import pytest

from qubes_vpn.crypto import aead
from qubes_vpn.crypto.aead import (
    CIPHERS,
    AeadCipher,
    InvalidTag,
    cipher_spec,
    digest_name,
    digest_size,
    find_cipher,
)
from qubes_vpn.crypto.keys import DirectionKeys

AEAD = [name for name, spec in CIPHERS.items() if spec.kind == "aead"]


def cipher(name, byte=7):
    key = bytes((byte,)) * cipher_spec(name).key_size
    return AeadCipher(name, DirectionKeys(key, implicit_iv=b"i" * 8))


class WithoutInto:
    """An AEAD of cryptography before 47."""

    def __init__(self, key):
        whole = self.kind(key)
        self.encrypt, self.decrypt = whole.encrypt, whole.decrypt


@pytest.fixture(params=["into", "copying"])
def both_ways(request, monkeypatch):
    if request.param == "copying":
        for name in ("AESGCM", "ChaCha20Poly1305"):
            kind = type(name, (WithoutInto,), {"kind": getattr(aead, name)})
            monkeypatch.setattr(aead, name, kind)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", AEAD)
def test_seal_and_open_are_inverse(name):
    one = cipher(name)
    out = bytearray(16 + 100)
    assert one.seal(b"n" * 12, b"p" * 100, b"aad", out) == 116
    assert b"pppp" not in out
    back = memoryview(bytearray(100))
    assert one.open(b"n" * 12, memoryview(out), b"aad", back) == 100
    assert bytes(back) == b"p" * 100


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", AEAD)
def test_nothing_that_is_not_authentic_opens(name):
    one = cipher(name)
    out = bytearray(20)
    one.seal(b"n" * 12, b"text", b"aad", out)
    good = (b"n" * 12, bytes(out), b"aad")
    for index in range(3):
        bad = list(good)
        bad[index] = bytes((bad[index][0] ^ 1,)) + bad[index][1:]
        with pytest.raises(InvalidTag):
            one.open(*bad, bytearray(4))
    with pytest.raises(InvalidTag):
        one.open(good[0], b"short", b"", bytearray(0))
    with pytest.raises(InvalidTag):
        cipher(name, 8).open(*good, bytearray(4))


@pytest.mark.usefixtures("both_ways")
def test_a_buffer_of_another_size_is_refused():
    one = cipher("AES-128-GCM")
    for size in (19, 21):
        with pytest.raises(ValueError, match="buffer must be 20 bytes"):
            one.seal(b"n" * 12, b"text", b"", bytearray(size))


def test_a_known_answer():
    # McGrew and Viega, The Galois/Counter Mode of Operation, test case 14
    one = AeadCipher("AES-256-GCM", DirectionKeys(bytes(32)))
    out = bytearray(32)
    one.seal(bytes(12), bytes(16), None, out)
    assert out.hex() == (
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    )


def test_ciphers_are_found_in_any_case():
    assert find_cipher("chacha20-Poly1305").name == "CHACHA20-POLY1305"
    assert find_cipher("BF-CBC") is None
    assert find_cipher("none") is None


@pytest.mark.parametrize(
    ("name", "hashlib_name", "size"),
    [
        ("SHA1", "sha1", 20),
        ("sha256", "sha256", 32),
        ("SHA-512", "sha512", 64),
        ("RSA-SHA384", "sha384", 48),
        ("SHA2-256", "sha256", 32),
        ("SHA3-256", "sha3_256", 32),
        ("none", "", 0),
        ("", "", 0),
    ],
)
def test_digests_are_found(name, hashlib_name, size):
    assert digest_name(name) == hashlib_name
    assert digest_size(name) == size


def test_an_unknown_digest_is_a_key_error():
    with pytest.raises(KeyError):
        digest_name("WHIRLPOOL")
