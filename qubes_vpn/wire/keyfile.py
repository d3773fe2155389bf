"""Key files: OpenVPN static keys, and PEM keys of tls-crypt-v2 and tokens.

All three kinds are text. Errors are ValueError with a sentence for a person
and never show a part of the key: the config layer adds file and line.
Source: OpenVPN 2 crypto.c, tls_crypt.c and auth_token.c.
"""

import base64
import binascii
import re
from typing import Final, NamedTuple

STATIC_KEY_SIZE: Final = 256
SERVER_KEY_SIZE: Final = 128
TLS_CRYPT_V2_SERVER: Final = "OpenVPN tls-crypt-v2 server key"
TLS_CRYPT_V2_CLIENT: Final = "OpenVPN tls-crypt-v2 client key"
AUTH_TOKEN_SERVER: Final = "OpenVPN auth-token server key"  # noqa: S105
# tag, client key, metadata type, length; and what OpenVPN takes at most
WKC_MIN: Final = 32 + STATIC_KEY_SIZE + 2
WKC_MAX: Final = 1024

_STATIC_BEGIN: Final = "-----BEGIN OpenVPN Static key V1-----"
_STATIC_END: Final = "-----END OpenVPN Static key V1-----"
_LINE_BYTES: Final = 16
_PEM_LINE: Final = 64


class ClientKeyV2(NamedTuple):
    """A tls-crypt-v2 client key: 256 bytes, and wrapped for the server."""

    key: bytes
    wkc: bytes

    def __repr__(self) -> str:
        """Say what it is, and nothing of the key."""
        return "ClientKeyV2(...)"


def parse_static_key(text: str) -> bytes:
    """Return the 256 bytes of an OpenVPN Static key V1.

    Lines of hexadecimal digits between the BEGIN and END lines; white
    space there, and anything outside, is ignored.
    """
    _, begin, rest = text.partition(_STATIC_BEGIN)
    body, end, _ = rest.partition(_STATIC_END)
    if not begin or not end:
        raise ValueError("no OpenVPN Static key V1 found")
    digits = "".join(body.split())
    if not re.fullmatch("[0-9a-fA-F]*", digits):
        raise ValueError("the static key has characters that are not hex")
    if len(digits) != 2 * STATIC_KEY_SIZE:
        raise ValueError(
            f"the static key has {len(digits) // 2} bytes, not 256"
        )
    return bytes.fromhex(digits)


def format_static_key(key: bytes) -> str:
    """Return 256 bytes as an OpenVPN Static key V1."""
    assert len(key) == STATIC_KEY_SIZE
    lines = [
        key[start : start + _LINE_BYTES].hex()
        for start in range(0, STATIC_KEY_SIZE, _LINE_BYTES)
    ]
    return "\n".join((_STATIC_BEGIN, *lines, _STATIC_END, ""))


def parse_pem(text: str, name: str) -> bytes:
    """Return the bytes of the first PEM block with this name."""
    _, begin, rest = text.partition(f"-----BEGIN {name}-----")
    body, end, _ = rest.partition(f"-----END {name}-----")
    if not begin or not end:
        raise ValueError(f"no {name} found")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the {name} is not valid base64") from None


def format_pem(content: bytes, name: str) -> str:
    """Return bytes as a PEM block."""
    encoded = base64.b64encode(content).decode()
    lines = [
        encoded[start : start + _PEM_LINE]
        for start in range(0, len(encoded), _PEM_LINE)
    ]
    begin, end = f"-----BEGIN {name}-----", f"-----END {name}-----"
    return "\n".join((begin, *lines, end, ""))


def parse_client_key_v2(text: str) -> ClientKeyV2:
    """Return key and wrapped key of a tls-crypt-v2 client key."""
    content = parse_pem(text, TLS_CRYPT_V2_CLIENT)
    key, wkc = content[:STATIC_KEY_SIZE], content[STATIC_KEY_SIZE:]
    if not WKC_MIN <= len(wkc) <= WKC_MAX:
        raise ValueError("the tls-crypt-v2 client key has a wrong length")
    if int.from_bytes(wkc[-2:]) != len(wkc):
        raise ValueError("the tls-crypt-v2 client key is damaged")
    return ClientKeyV2(key, wkc)


def format_client_key_v2(key: ClientKeyV2) -> str:
    """Return a tls-crypt-v2 client key as PEM."""
    return format_pem(key.key + key.wkc, TLS_CRYPT_V2_CLIENT)


def parse_server_key(text: str, name: str = TLS_CRYPT_V2_SERVER) -> bytes:
    """Return the 128 bytes of a tls-crypt-v2 or auth-token server key."""
    content = parse_pem(text, name)
    if len(content) != SERVER_KEY_SIZE:
        raise ValueError(f"the {name} has {len(content)} bytes, not 128")
    return content
