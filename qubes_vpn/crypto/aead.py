"""Data channel ciphers by OpenVPN's names; the AEAD ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import (
    AESGCM,
    ChaCha20Poly1305,
)

from qubes_vpn.crypto.keys import DirectionKeys

__all__ = [
    "CIPHERS",
    "DIGESTS",
    "NONCE_SIZE",
    "TAG_SIZE",
    "AeadCipher",
    "AeadFunction",
    "CipherSpec",
    "InvalidTag",
    "cipher_spec",
    "copying",
    "digest_name",
    "digest_size",
    "find_cipher",
    "usage_limit",
]

TAG_SIZE: Final = 16
NONCE_SIZE: Final = 12

Readable: TypeAlias = bytes | bytearray | memoryview
Writable: TypeAlias = bytearray | memoryview
# (nonce, content, additional data, out) -> bytes written to out
AeadFunction: TypeAlias = Callable[
    [Readable, Readable, Readable | None, Writable], int
]


@dataclass(frozen=True, slots=True)
class CipherSpec:
    """A data channel cipher. kind: "aead" or "cbc"; sizes in bytes."""

    name: str
    key_size: int
    kind: str
    block_size: int


CIPHERS: Final = {
    spec.name: spec
    for spec in (
        CipherSpec("AES-128-GCM", 16, "aead", 16),
        CipherSpec("AES-192-GCM", 24, "aead", 16),
        CipherSpec("AES-256-GCM", 32, "aead", 16),
        CipherSpec("CHACHA20-POLY1305", 32, "aead", 64),
        CipherSpec("AES-128-CBC", 16, "cbc", 16),
        CipherSpec("AES-192-CBC", 24, "cbc", 16),
        CipherSpec("AES-256-CBC", 32, "cbc", 16),
    )
}

# OpenVPN's digest names (in capitals) -> hashlib's name and size in bytes.
DIGESTS: Final = {
    "MD5": ("md5", 16),
    "SHA1": ("sha1", 20),
    "SHA224": ("sha224", 28),
    "SHA256": ("sha256", 32),
    "SHA384": ("sha384", 48),
    "SHA512": ("sha512", 64),
    "SHA3-224": ("sha3_224", 28),
    "SHA3-256": ("sha3_256", 32),
    "SHA3-384": ("sha3_384", 48),
    "SHA3-512": ("sha3_512", 64),
}


def usage_limit(name: str) -> int:
    """Say how many blocks and packets one key may see; 0: any number.

    7/8 of 2^36 - 1. Source: OpenVPN 2 crypto.c, cipher_get_aead_limits.
    """
    return ((1 << 36) - 1) // 8 * 7 if name.upper().endswith("-GCM") else 0


def find_cipher(name: str) -> CipherSpec | None:
    """Look up a cipher, in any case; "none" and unknown names give None."""
    return CIPHERS.get(name.upper())


def cipher_spec(name: str) -> CipherSpec:
    """Look up a cipher that is known to exist (KeyError otherwise)."""
    return CIPHERS[name.upper()]


def digest_name(name: str) -> str:
    """Return hashlib's name of a digest; "none" and "" give "".

    OpenSSL's spellings "SHA-256" and "RSA-SHA256" are known too. Raises
    KeyError for a digest that is not supported.
    """
    return _digest(name)[0]


def digest_size(name: str) -> int:
    """Return the size of a digest in bytes; "none" and "" give 0."""
    return _digest(name)[1]


def _digest(name: str) -> tuple[str, int]:
    plain = name.upper().removeprefix("RSA-")
    if plain in {"", "NONE"}:
        return "", 0
    if plain not in DIGESTS:
        plain = plain.replace("SHA-", "SHA").replace("SHA2-", "SHA")
    return DIGESTS[plain]


class AeadCipher:
    """An AEAD cipher under one direction's key.

    seal(nonce, plaintext, aad, out) writes ciphertext and tag, open(nonce,
    ciphertext and tag, aad, out) writes plaintext; both return how many
    bytes. out has exactly that size, and overlaps no other argument. open
    raises InvalidTag, of this module, for anything that is not authentic;
    what out holds then is undefined.

    Where cryptography has encrypt_into (47 and newer) both are its own
    methods: nothing is copied.
    """

    __slots__ = ("implicit_iv", "open", "seal")

    seal: AeadFunction
    open: AeadFunction

    def __init__(self, name: str, keys: DirectionKeys) -> None:
        """name: one of CIPHERS whose kind is "aead"."""
        spec = cipher_spec(name)
        assert spec.kind == "aead"
        assert len(keys.cipher_key) == spec.key_size
        self.implicit_iv = keys.implicit_iv
        aead: Any
        if spec.name == "CHACHA20-POLY1305":
            aead = ChaCha20Poly1305(keys.cipher_key)
        else:
            aead = AESGCM(keys.cipher_key)
        if hasattr(aead, "encrypt_into"):
            self.seal, self.open = aead.encrypt_into, aead.decrypt_into
        else:
            self.seal = copying(aead.encrypt)
            self.open = copying(aead.decrypt)


def copying(function: Callable[..., bytes]) -> AeadFunction:
    """Turn a function that returns bytes into one that writes to out."""

    def into(
        nonce: Readable, content: Readable, aad: Readable | None, out: Writable
    ) -> int:
        result = function(nonce, content, aad)
        if len(result) != len(out):
            raise ValueError(f"buffer must be {len(result)} bytes")
        out[:] = result
        return len(result)

    return into
