"""The key files of `openvpn --genkey`, from given random bytes.

Every function is bytes to text; the caller brings the entropy and writes
the file.
"""

import base64
import hmac
import struct
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

STATIC_KEY_SIZE: Final = 256
SERVER_KEY_SIZE: Final = 128
TAG_SIZE: Final = 32
# WKc is at most 1024 bytes: tag, client key, length and the type byte are
# not available to the metadata (OpenVPN 2 tls_crypt.h).
METADATA_MAX: Final = 1024 - TAG_SIZE - STATIC_KEY_SIZE - 2 - 1
METADATA_USER: Final = 0
METADATA_TIMESTAMP: Final = 1

_SERVER_NAME: Final = "OpenVPN tls-crypt-v2 server key"
_CLIENT_NAME: Final = "OpenVPN tls-crypt-v2 client key"
_TOKEN_NAME: Final = "OpenVPN auth-token server key"  # noqa: S105 (a label)


def static_key_file(key: bytes) -> str:
    """Format a 256-byte static key: 16 lines of hexadecimal.

    The same file serves tls-auth, tls-crypt and secret.
    """
    _need(key, STATIC_KEY_SIZE)
    lines = (key[i : i + 16].hex() for i in range(0, STATIC_KEY_SIZE, 16))
    return "\n".join(
        (
            "#",
            "# 2048 bit OpenVPN static key",
            "#",
            "-----BEGIN OpenVPN Static key V1-----",
            *lines,
            "-----END OpenVPN Static key V1-----",
            "",
        )
    )


def server_key_file(key: bytes) -> str:
    """Format a tls-crypt-v2 server key: 128 bytes as PEM."""
    _need(key, SERVER_KEY_SIZE)
    return _pem(_SERVER_NAME, key)


def token_key_file(key: bytes) -> str:
    """Format an auth-gen-token secret: 128 bytes as PEM."""
    _need(key, SERVER_KEY_SIZE)
    return _pem(_TOKEN_NAME, key)


def client_key_file(server_key: bytes, key: bytes, metadata: bytes) -> str:
    """Format a tls-crypt-v2 client key: the key, then the WKc, as PEM.

    metadata: its type byte and its value; see user_metadata and
    timestamp_metadata.
    """
    return _pem(_CLIENT_NAME, key + wrap_client_key(server_key, key, metadata))


def user_metadata(value: bytes) -> bytes:
    """Build metadata of type 0. Raises ValueError when it is too long."""
    if len(value) > METADATA_MAX:
        raise ValueError(f"metadata is longer than {METADATA_MAX} bytes")
    return bytes([METADATA_USER]) + value


def timestamp_metadata(unix: int) -> bytes:
    """Build metadata of type 1: seconds since 1970, int64 big-endian."""
    return struct.pack("!Bq", METADATA_TIMESTAMP, unix)


def wrap_client_key(server_key: bytes, key: bytes, metadata: bytes) -> bytes:
    """Make the WKc that a client shows with its first packet.

    Layout: T (32), AES-256-CTR(Ke, IV = T[:16], Kc || metadata), length
    (uint16 of all three). T = HMAC-SHA256(Ka, length || Kc || metadata).
    Ke and Ka are the first 32 bytes of the halves of the server key.
    Source: openvpn doc/tls-crypt-v2.txt.
    """
    _need(server_key, SERVER_KEY_SIZE)
    _need(key, STATIC_KEY_SIZE)
    plain = key + metadata
    length = struct.pack("!H", TAG_SIZE + len(plain) + 2)
    tag = hmac.digest(server_key[64:96], length + plain, sha256)
    cipher = Cipher(algorithms.AES(server_key[:32]), modes.CTR(tag[:16]))
    return tag + cipher.encryptor().update(plain) + length


def decode_server_key(text: str) -> bytes:
    """Read a tls-crypt-v2 server key file. Raises ValueError."""
    return _unpem(_SERVER_NAME, text, SERVER_KEY_SIZE)


def decode_token_key(text: str) -> bytes:
    """Read an auth-gen-token secret. Raises ValueError."""
    return _unpem(_TOKEN_NAME, text, SERVER_KEY_SIZE)


def _pem(name: str, content: bytes) -> str:
    body = base64.b64encode(content).decode()
    lines = (body[i : i + 64] for i in range(0, len(body), 64))
    return "\n".join(
        (f"-----BEGIN {name}-----", *lines, f"-----END {name}-----", "")
    )


def _unpem(name: str, text: str, size: int) -> bytes:
    _, begin, rest = text.partition(f"-----BEGIN {name}-----")
    body, end, _ = rest.partition(f"-----END {name}-----")
    if not begin or not end:
        raise ValueError(f"this is not an {name}")
    content = base64.b64decode("".join(body.split()), validate=True)
    _need(content, size)
    return content


def _need(key: bytes, size: int) -> None:
    if len(key) != size:
        raise ValueError(f"the key must have {size} bytes, not {len(key)}")
