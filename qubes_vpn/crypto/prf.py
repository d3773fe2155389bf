"""Data channel key derivation: TLS 1.0 PRF, TLS exporter, epoch keys.

Source: OpenVPN 2 ssl.c (generate_key_expansion), crypto_epoch.c; RFC 2246
section 5; RFC 8446 section 7.1 for the form of HKDF-Expand-Label.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.crypto.aead import cipher_spec, digest_size
from qubes_vpn.crypto.keys import DirectionKeys
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.key_method import KeySource

EKM_LABEL: Final = b"EXPORTER-OpenVPN-datakeys"
KEY2_SIZE: Final = 256
EPOCH_SECRET_SIZE: Final = 32
EPOCH_IV_SIZE: Final = 12
IMPLICIT_IV_SIZE: Final = 8

_MASTER_SIZE: Final = 48
_BLOCK_HALF: Final = 64


@dataclass(frozen=True, slots=True)
class KeyBlock:
    """One of the two keys of a key2: 64 bytes of cipher, 64 of HMAC key."""

    cipher: bytes = field(repr=False)
    hmac: bytes = field(repr=False)


def split_key2(key2: bytes) -> tuple[KeyBlock, KeyBlock]:
    """Cut 256 bytes into two key blocks.

    The client encrypts with the first, the server with the second; of a
    static key, direction 0 (or none) encrypts with the first.
    """
    assert len(key2) == KEY2_SIZE
    parts = [
        key2[start : start + _BLOCK_HALF]
        for start in range(0, KEY2_SIZE, _BLOCK_HALF)
    ]
    return KeyBlock(parts[0], parts[1]), KeyBlock(parts[2], parts[3])


def tls1_prf(secret: bytes, seed: bytes, size: int) -> bytes:
    """Return `size` bytes of the TLS 1.0 PRF; the seed begins with the label.

    P_MD5 over the first half of the secret xor P_SHA1 over the second.
    Raises SessionError "prf-unavailable" where the platform forbids MD5.
    """
    half = (len(secret) + 1) // 2
    try:
        left = _p_hash("md5", secret[:half], seed, size)
    except ValueError:
        raise SessionError(
            "prf-unavailable",
            "this system forbids MD5 (FIPS), which the key derivation of"
            " servers before OpenVPN 2.6 needs",
        ) from None
    right = _p_hash("sha1", secret[len(secret) - half :], seed, size)
    return _xor(left, right)


def _p_hash(digest: str, secret: bytes, seed: bytes, size: int) -> bytes:
    """Return P_hash of RFC 2246: HMAC(secret, A(i) + seed), i = 1, 2, ..."""
    output = b""
    chain = seed
    while len(output) < size:
        chain = hmac.digest(secret, chain, digest)
        output += hmac.digest(secret, chain + seed, digest)
    return output[:size]


def _xor(left: bytes, right: bytes) -> bytes:
    number = int.from_bytes(left) ^ int.from_bytes(right)
    return number.to_bytes(len(left))


def key2_from_prf(
    client: KeySource, server: KeySource, client_sid: bytes, server_sid: bytes
) -> bytes:
    """Return the 256 bytes of key2 from both sides' key method 2 entropy."""
    master = tls1_prf(
        client.pre_master,
        b"OpenVPN master secret" + client.random1 + server.random1,
        _MASTER_SIZE,
    )
    seed = b"OpenVPN key expansion" + client.random2 + server.random2
    return tls1_prf(master, seed + client_sid + server_sid, KEY2_SIZE)


def direction_keys(
    key2: bytes, *, is_server: bool, cipher: str, digest: str = ""
) -> tuple[DirectionKeys, DirectionKeys]:
    """Return (encrypt, decrypt) keys for a cipher by OpenVPN's name.

    key2: 256 bytes from key2_from_prf, or of TLS-EKM with EKM_LABEL.
    digest: for CBC ciphers, by OpenVPN's name.
    """
    client, server = split_key2(key2)
    mine, theirs = (server, client) if is_server else (client, server)
    return (
        block_keys(mine, cipher, digest),
        block_keys(theirs, cipher, digest),
    )


def block_keys(block: KeyBlock, cipher: str, digest: str) -> DirectionKeys:
    """Cut one key block to what a cipher and a digest need."""
    spec = cipher_spec(cipher)
    key = block.cipher[: spec.key_size]
    if spec.kind == "aead":
        return DirectionKeys(key, implicit_iv=block.hmac[:IMPLICIT_IV_SIZE])
    return DirectionKeys(key, block.hmac[: digest_size(digest)])


def epoch_secrets(
    key2: bytes, *, is_server: bool
) -> tuple[DirectionKeys, DirectionKeys]:
    """Return the (encrypt, decrypt) secrets of epoch 1, as cipher_key."""
    client, server = split_key2(key2)
    mine, theirs = (server, client) if is_server else (client, server)
    return (
        DirectionKeys(mine.cipher[:EPOCH_SECRET_SIZE]),
        DirectionKeys(theirs.cipher[:EPOCH_SECRET_SIZE]),
    )


def next_epoch(secret: bytes) -> bytes:
    """Return the secret of the next epoch (32 bytes)."""
    return expand_label(secret, b"datakey upd", b"", EPOCH_SECRET_SIZE)


def epoch_keys(secret: bytes, cipher: str) -> DirectionKeys:
    """Return the AEAD keys of one epoch; implicit_iv has 12 bytes here.

    The nonce is implicit_iv xor (packet id, 8 bytes; 4 zero bytes).
    """
    size = cipher_spec(cipher).key_size
    return DirectionKeys(
        expand_label(secret, b"data_key", b"", size),
        implicit_iv=expand_label(secret, b"data_iv", b"", EPOCH_IV_SIZE),
    )


def expand_label(
    secret: bytes, label: bytes, context: bytes, size: int
) -> bytes:
    """Return HKDF-Expand-Label with SHA-256 and the prefix "ovpn "."""
    label = b"ovpn " + label
    info = b"".join(
        (
            size.to_bytes(2),
            bytes((len(label),)),
            label,
            bytes((len(context),)),
            context,
        )
    )
    output = block = b""
    counter = 1
    while len(output) < size:
        content = block + info + bytes((counter,))
        block = hmac.digest(secret, content, hashlib.sha256)
        output += block
        counter += 1
    return output[:size]
