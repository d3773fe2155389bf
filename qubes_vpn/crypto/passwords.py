"""Hashes of passwords: scrypt (RFC 7914), in one line of text.

`$scrypt$ln=15,r=8,p=1$SALT$HASH`, base64 without padding. Only scrypt: it
is in every Python, where argon2 is not.
"""

import base64
import binascii
import hashlib
import hmac
import re
from typing import Final

SALT_SIZE: Final = 16
_HASH_SIZE: Final = 32
_LOG_N: Final = 15
_R: Final = 8
_P: Final = 1
# A file must not be able to ask for more memory than this (128 * r * N).
_MEMORY_MAX: Final = 256 * 1024 * 1024
_FORM: Final = re.compile(
    r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})"
    r"\$([A-Za-z0-9+/]{8,88})\$([A-Za-z0-9+/]{22,88})"
)


def hash_password(password: str, salt: bytes) -> str:
    """Hash for the password file. salt: SALT_SIZE random bytes."""
    if len(salt) != SALT_SIZE:
        raise ValueError(f"the salt must have {SALT_SIZE} bytes")
    value = _scrypt(password, salt, _LOG_N, _R, _P, _HASH_SIZE)
    parameters = f"ln={_LOG_N},r={_R},p={_P}"
    return f"$scrypt${parameters}${_encode(salt)}${_encode(value)}"


# What a name that nobody has is compared with: it takes as long.
NOBODY: Final = (
    "$scrypt$ln=15,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA"
    "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)


def is_hash(text: str) -> bool:
    """Tell whether this is a line that verify_password can use."""
    return _parse(text) is not None


def verify_password(password: str, stored: str) -> bool:
    """Compare in constant time. A stored value of another form is False."""
    parsed = _parse(stored)
    if parsed is None:
        return False
    log_n, r, p, salt, expected = parsed
    value = _scrypt(password, salt, log_n, r, p, len(expected))
    return hmac.compare_digest(value, expected)


def _parse(text: str) -> tuple[int, int, int, bytes, bytes] | None:
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    log_n, r, p = (int(match[i]) for i in (1, 2, 3))
    if not (r >= 1 and 1 <= p <= 16 and 1 <= log_n <= 24):
        return None
    if 128 * r * (1 << log_n) > _MEMORY_MAX:
        return None
    try:
        return log_n, r, p, _decode(match[4]), _decode(match[5])
    except binascii.Error:
        return None


def _scrypt(
    password: str, salt: bytes, log_n: int, r: int, p: int, size: int
) -> bytes:
    return hashlib.scrypt(
        password.encode(),
        salt=salt,
        n=1 << log_n,
        r=r,
        p=p,
        maxmem=2 * _MEMORY_MAX,
        dklen=size,
    )


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
