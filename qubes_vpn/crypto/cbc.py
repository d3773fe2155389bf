"""AES-CBC with HMAC: encrypt, then MAC; for old servers and static keys."""

from qubes_vpn.crypto.keys import DirectionKeys


class CbcCipher:
    """A CBC cipher and its HMAC under one direction's keys.

    Layout of what seal returns: HMAC of the rest (absent for digest
    "none"); IV, 16 bytes; ciphertext with PKCS#7 padding.
    """

    def __init__(self, name: str, digest: str, keys: DirectionKeys) -> None:
        """name: one of CIPHERS whose kind is "cbc". digest: OpenVPN's."""
        raise NotImplementedError

    @property
    def overhead(self) -> int:
        """The most that seal adds, in bytes: HMAC, IV, padding."""
        raise NotImplementedError

    def seal(self, plaintext: bytes, iv: bytes) -> bytes:
        """Encrypt. iv: 16 fresh unpredictable bytes."""
        raise NotImplementedError

    def open(self, untrusted: bytes) -> bytes:
        """Check the HMAC, then decrypt.

        Raises AuthenticationError "bad-hmac" for everything that is wrong:
        length, HMAC and padding look the same from outside.
        """
        raise NotImplementedError


def static_key_directions(
    key: bytes, direction: int | None, cipher: str, digest: str
) -> tuple[DirectionKeys, DirectionKeys]:
    """Return (encrypt, decrypt) of an OpenVPN static key, 256 bytes.

    direction: 0 or 1; None uses the first key block both ways.
    """
    raise NotImplementedError
