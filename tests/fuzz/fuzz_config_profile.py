"""Any text is a profile or a ConfigError; a profile prints to its equal."""

import contextlib
from dataclasses import replace

from qubes_vpn.config.explain import describe, explain
from qubes_vpn.config.explain_server import explain_server
from qubes_vpn.config.lexer import decode_text
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.server_profile import (
    parse_client_config,
    parse_server_profile,
)
from qubes_vpn.config.write import write_profile
from qubes_vpn.errors import ConfigError

NOW = 1_795_000_000.0
STATIC = (
    "-----BEGIN OpenVPN Static key V1-----\n"
    + "00" * 256
    + "\n-----END OpenVPN Static key V1-----\n"
)
FILES = {"k": STATIC.encode(), "u": b"name\npassword\n", "c": b"config c\n"}
FINGERPRINT = ":".join(["0A"] * 32)
SEEDS = (
    f"-client\nremote h\nauth-user-pass u\npeer-fingerprint {FINGERPRINT}\n".encode(),
    b"-remote h 1 tcp\nsecret k 1\nifconfig 10.0.0.1 10.0.0.2\nroute 10.0.0.0\n",
    b"-client\n<connection>\nremote a\nproto tcp\nhttp-proxy p 1 u\n</connection>\n",
    b"sserver 10.8.0.0 255.255.255.0\nserver-ipv6 fd00::/64\ntls-auth k 0\n",
    b'iifconfig-push 10.0.0.9 255.0.0.0\niroute 10.0.0.0\npush "ping 1"\n',
    b"-dns server 1 address [fd00::1]:53\ndhcp-option DNS 9.9.9.9\nconfig c\n",
)


def read_file(name: str) -> bytes:
    """Give one of a few files."""
    if name not in FILES:
        raise FileNotFoundError(2, "no such file")
    return FILES[name]


def one_input(data: bytes) -> None:
    """Parse as what the first byte says: a client's, most of all."""
    kind, text = data[:1], decode_text(data[1:])
    with contextlib.suppress(ConfigError):
        if kind == b"s":
            explain_server(parse_server_profile(text, "s", read_file))
        elif kind == b"i":
            parse_client_config(text, "c")
        else:
            check_client(text)


def check_client(text: str) -> None:
    """Parse, explain, print, and parse again."""
    profile = parse_client_profile(text, "p", read_file)
    explain(profile, NOW)
    describe(profile, NOW)
    try:
        again = parse_client_profile(write_profile(profile), "q", read_file)
    except ConfigError as error:
        raise AssertionError("what was written is not read") from error
    assert replace(again, notes=()) == replace(profile, notes=())
