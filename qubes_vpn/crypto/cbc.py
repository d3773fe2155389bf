"""AES-CBC with HMAC: encrypt, then MAC; for old servers and static keys."""

import hmac
from typing import Final

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qubes_vpn.crypto.aead import cipher_spec, digest_name, digest_size
from qubes_vpn.crypto.keys import DirectionKeys
from qubes_vpn.crypto.prf import block_keys, split_key2
from qubes_vpn.errors import AuthenticationError

BLOCK_SIZE: Final = 16


class CbcCipher:
    """A CBC cipher and its HMAC under one direction's keys.

    Layout of what seal returns: HMAC of the rest (absent for digest
    "none"); IV, 16 bytes; ciphertext with PKCS#7 padding.
    """

    __slots__ = ("_aes", "_digest", "_hmac_key", "_hmac_size")

    def __init__(self, name: str, digest: str, keys: DirectionKeys) -> None:
        """name: one of CIPHERS whose kind is "cbc". digest: OpenVPN's."""
        spec = cipher_spec(name)
        assert spec.kind == "cbc"
        assert len(keys.cipher_key) == spec.key_size
        self._aes = algorithms.AES(keys.cipher_key)
        self._digest = digest_name(digest)
        self._hmac_size = digest_size(digest)
        self._hmac_key = keys.hmac_key

    @property
    def overhead(self) -> int:
        """The most that seal adds, in bytes: HMAC, IV, padding."""
        return self._hmac_size + 2 * BLOCK_SIZE

    def seal(self, plaintext: bytes, iv: bytes) -> bytes:
        """Encrypt. iv: 16 fresh unpredictable bytes."""
        padder = padding.PKCS7(8 * BLOCK_SIZE).padder()
        padded = padder.update(plaintext) + padder.finalize()
        encryptor = Cipher(self._aes, modes.CBC(iv)).encryptor()
        content = iv + encryptor.update(padded) + encryptor.finalize()
        return self._mac(content) + content

    def open(self, untrusted: bytes) -> bytes:
        """Check the HMAC, then decrypt.

        Raises AuthenticationError "bad-hmac" for everything that is wrong:
        length, HMAC and padding look the same from outside.
        """
        tag, content = (
            untrusted[: self._hmac_size],
            untrusted[self._hmac_size :],
        )
        if not hmac.compare_digest(tag, self._mac(content)):
            raise AuthenticationError("bad-hmac")
        if len(content) < 2 * BLOCK_SIZE or len(content) % BLOCK_SIZE:
            raise AuthenticationError("bad-hmac")
        mode = modes.CBC(content[:BLOCK_SIZE])
        decryptor = Cipher(self._aes, mode).decryptor()
        padded = decryptor.update(content[BLOCK_SIZE:]) + decryptor.finalize()
        unpadder = padding.PKCS7(8 * BLOCK_SIZE).unpadder()
        try:
            return unpadder.update(padded) + unpadder.finalize()
        except ValueError:
            raise AuthenticationError("bad-hmac") from None

    def _mac(self, content: bytes) -> bytes:
        if not self._digest:
            return b""
        return hmac.digest(self._hmac_key, content, self._digest)


def static_key_directions(
    key: bytes, direction: int | None, cipher: str, digest: str
) -> tuple[DirectionKeys, DirectionKeys]:
    """Return (encrypt, decrypt) of an OpenVPN static key, 256 bytes.

    direction: 0 or 1; None uses the first key block both ways.
    """
    first, second = split_key2(key)
    ours, theirs = {
        0: (first, second),
        1: (second, first),
        None: (first, first),
    }[direction]
    return (
        block_keys(ours, cipher, digest),
        block_keys(theirs, cipher, digest),
    )
