"""Tokens that stand for a password once it was checked (auth-gen-token).

SESS_ID_AT_, then base64 of: session id, 12 bytes; unix seconds when the
session began, and when the token was made, 8 bytes each; HMAC-SHA256, 32
bytes, over the user name and those. Source: OpenVPN 2 auth_token.c.
"""

import base64
import binascii
import hmac
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from qubes_vpn.config.server_profile import TokenOptions
from qubes_vpn.engine.events import Now

PREFIX: Final = "SESS_ID_AT_"
_SESSION_ID_SIZE: Final = 12
_BODY: Final = struct.Struct("!12sqq")
_TAG_SIZE: Final = 32
_TEXT_SIZE: Final = len(PREFIX) + (_BODY.size + _TAG_SIZE) // 3 * 4
# Where the HMAC key is in a secret of 128 bytes.
_KEY: Final = slice(64, 96)


def is_token(password: str) -> bool:
    """Tell whether this looks like a token of ours; no more than that."""
    return len(password) == _TEXT_SIZE and password.startswith(PREFIX)


class TokenMint:
    """Makes and checks tokens; keeps nothing about who has one."""

    def __init__(
        self,
        options: TokenOptions,
        renewal: int,
        entropy: Callable[[int], bytes],
    ) -> None:
        """renewal: seconds after which a token must have been replaced."""
        secret = options.secret or entropy(128)
        self._key = secret[_KEY]
        self._lifetime = options.lifetime
        self._renewal = renewal
        self._entropy = entropy
        self.external = options.external_auth

    def make(self, username: str, now: Now, old: str = "") -> str:
        """Make a token; after a valid `old` one, of the same session."""
        session, began = self._entropy(_SESSION_ID_SIZE), int(now.unix)
        if old:
            session, began, _ = _BODY.unpack(_decode(old)[: _BODY.size])
        body = _BODY.pack(session, began, int(now.unix))
        tag = hmac.digest(self._key, _name(username) + body, sha256)
        return PREFIX + base64.b64encode(body + tag).decode()

    def check(self, username: str, untrusted: str, now: Now) -> bool:
        """Tell whether we made this for that user, and not too long ago."""
        content = _decode(untrusted) if is_token(untrusted) else b""
        if len(content) != _BODY.size + _TAG_SIZE:
            return False
        body, tag = content[: _BODY.size], content[_BODY.size :]
        expected = hmac.digest(self._key, _name(username) + body, sha256)
        if not hmac.compare_digest(tag, expected):
            return False
        _, began, made = _BODY.unpack(body)
        if not began <= made <= now.unix + 1:
            return False
        if now.unix >= made + 2 * self._renewal:
            return False
        return not self._lifetime or now.unix <= began + self._lifetime


def _name(username: str) -> bytes:
    """Give the bytes that the client sent: they need not be UTF-8."""
    return username.encode("utf-8", "surrogateescape")


def _decode(token: str) -> bytes:
    try:
        return base64.b64decode(token.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""
