"""Any password is a token of ours for that user in its time, or is none.

No name that a client can give breaks it, and no changed bit is overlooked.
"""

from random import Random

from qubes_vpn.config.server_profile import TokenOptions
from qubes_vpn.engine.auth_token import PREFIX, TokenMint, is_token
from qubes_vpn.engine.events import Now

NOW = Now(1000.0, 1_795_000_000.0)
MINT = TokenMint(
    TokenOptions(lifetime=3600, secret=bytes(range(128))),
    600,
    Random(1).randbytes,
)
SEEDS = (
    b"p" + MINT.make("user", NOW).encode(),
    b"p" + PREFIX.encode() + b"A" * 92,
    b"p" + PREFIX.encode() + b"====",
    # found: one without its first word
    b"p" + MINT.make("user", NOW).removeprefix(PREFIX).encode(),
    b"nuser",
    b"n\xff\xfe",
    b"xuser\0\x20\1",
)


def one_input(data: bytes) -> None:
    """Take a password, or a name, or a change of a good token."""
    kind, rest = data[:1], data[1:]
    if kind == b"p":
        password = rest.decode("utf-8", "surrogateescape")
        good = MINT.check("user", password, NOW)
        assert not good or is_token(password)
        return
    name, _, change = rest.partition(b"\0")
    username = name.decode("utf-8", "surrogateescape")
    token = MINT.make(username, NOW)
    assert is_token(token)
    assert MINT.check(username, token, NOW)
    assert not MINT.check(username + "x", token, NOW)
    assert MINT.check(username, MINT.make(username, NOW, token), NOW)
    if kind == b"x" and len(change) > 1:
        at = len(PREFIX) + change[0] % (len(token) - len(PREFIX))
        other = chr(change[1])
        changed = token[:at] + other + token[at + 1 :]
        assert MINT.check(username, changed, NOW) == (changed == token)
