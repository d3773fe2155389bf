"""The words of a directive as values: one function per kind of argument.

Each takes the word and returns a value, or raises ValueError with what was
expected, in words that fit after the directive's name.
"""

import re
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import Any, Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_DIGITS: Final = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253})", re.ASCII)
_DOMAIN: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?",
    re.ASCII,
)
_HEX_PAIRS: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})*", re.ASCII)
# What /etc/services calls the ports that people run servers on.
_SERVICES: Final = {
    "openvpn": 1194,
    "https": 443,
    "http": 80,
    "domain": 53,
    "ntp": 123,
}
ADDRESS_BITS: Final = 32
_REDIRECT_FLAGS: Final = (
    "def1",
    "local",
    "autolocal",
    "bypass-dhcp",
    "bypass-dns",
    "block-local",
    "ipv6",
    "!ipv4",
)
_SPECIAL_ROUTES: Final = ("vpn_gateway", "net_gateway", "remote_host")


def text(word: str) -> str:
    """Any word."""
    return word


def number(low: int, high: int) -> Callable[[str], int]:
    """Make a reader of whole numbers from `low` to `high`."""

    def read(word: str) -> int:
        if not _DIGITS.fullmatch(word) or not low <= int(word) <= high:
            message = f"needs a whole number from {low} to {high}"
            raise ValueError(message)
        return int(word)

    return read


def choice(*names: str, fold: bool = False) -> Callable[[str], str]:
    """Make a reader of one of `names`; fold: in any case of letters."""

    def read(word: str) -> str:
        found = word.lower() if fold else word
        if found not in names:
            raise ValueError("needs one of: " + ", ".join(names))
        return found

    return read


def port(word: str) -> int:
    """A port number, or one of a few service names."""
    if word in _SERVICES:
        return _SERVICES[word]
    if not _DIGITS.fullmatch(word) or not 0 < int(word) <= 65535:
        message = "needs a port from 1 to 65535"
        raise ValueError(message)
    return int(word)


def host(word: str) -> str:
    """A host name or an address."""
    bare = word.strip("[]") if ":" in word else word
    try:
        ip_address(_unscoped(bare))
    except ValueError:
        if not _HOST.fullmatch(word):
            message = "needs a host name or an address"
            raise ValueError(message) from None
        return word
    return bare


def ipv4(word: str) -> IPv4Address:
    """An IPv4 address."""
    try:
        return IPv4Address(word)
    except ValueError:
        message = "needs an IPv4 address"
        raise ValueError(message) from None


def netmask(word: str) -> int:
    """An IPv4 netmask, as its prefix length."""
    if word == "default":
        return ADDRESS_BITS
    try:
        bits = int(IPv4Address(word))
    except ValueError:
        bits = 1
    inverse = bits ^ 0xFFFFFFFF
    if inverse & (inverse + 1):
        message = "needs a netmask such as 255.255.255.0"
        raise ValueError(message)
    return ADDRESS_BITS - inverse.bit_length()


def ipv6(word: str) -> IPv6Address:
    """An IPv6 address; a prefix length behind it is dropped."""
    try:
        return IPv6Address(_unscoped(word.split("/", 1)[0]))
    except ValueError:
        message = "needs an IPv6 address"
        raise ValueError(message) from None


def ipv6_interface(word: str) -> IPv6Interface:
    """An IPv6 address with its prefix length; /64 when there is none."""
    try:
        return IPv6Interface(
            _unscoped(word if "/" in word else f"{word}/64"),
        )
    except ValueError:
        message = "needs an IPv6 address with its prefix, such as fd00::2/64"
        raise ValueError(message) from None


def ipv6_network(word: str) -> IPv6Network:
    """An IPv6 destination; host bits are cut off, as OpenVPN does."""
    try:
        return IPv6Network(_unscoped(word), strict=False)
    except ValueError:
        message = "needs an IPv6 network such as 2001:db8::/32"
        raise ValueError(message) from None


def _unscoped(word: str) -> str:
    if "%" in word:
        raise ValueError
    return word


def route_target(word: str) -> str:
    """The first argument of `route`: an address, a name or a special word."""
    return word if word in _SPECIAL_ROUTES else host(word)


def gateway(word: str) -> str:
    """The gateway of a route: an address, a special word, or `default`."""
    return word if word == "default" else route_target(word)


def domain(word: str) -> str:
    """A DNS domain of letters, digits, hyphens and dots."""
    if len(word) > 253 or not _DOMAIN.fullmatch(word):
        message = "needs a domain name"
        raise ValueError(message)
    return word


def hex_pairs(word: str) -> bytes:
    """Bytes as hexadecimal pairs with colons between them."""
    if not _HEX_PAIRS.fullmatch(word):
        message = "needs a hash as hexadecimal pairs, such as AB:CD:..."
        raise ValueError(message)
    return bytes.fromhex(word.replace(":", ""))


def key_usage(word: str) -> int:
    """A key usage mask in hexadecimal."""
    try:
        return int(word, 16) & 0xFFFF
    except ValueError:
        message = "needs hexadecimal key usage masks, such as a0"
        raise ValueError(message) from None


_SECONDS = number(0, 2_147_483_647)
_PROTOCOLS: Final = tuple(
    f"{base}{family}{role}"
    for base, roles in (("udp", ("",)), ("tcp", ("", "-client", "-server")))
    for family in ("", "4", "6")
    for role in roles
)
_FLAG = choice("0", "1")

# The words that the table's usage strings are made of.
KINDS: Final[dict[str, Callable[[str], Any]]] = {
    "text": text,
    "file": text,
    "host": host,
    "port": port,
    "proto": choice(*_PROTOCOLS, fold=True),
    "seconds": _SECONDS,
    "window": number(0, 65536),
    "window-time": number(0, 600),
    "redirect": choice(*_REDIRECT_FLAGS),
    "mtu|fixed": choice("mtu", "fixed"),
    "dhcp|ipv4": lambda word: word if word == "dhcp" else str(ipv4(word)),
    "count": _SECONDS,
    "bytes": number(0, 2**63 - 1),
    "integer": number(-2_147_483_648, 2_147_483_647),
    "mtu": number(68, 65535),
    "size": number(0, 65535),
    "bit": lambda word: int(_FLAG(word)),
    "ipv4": ipv4,
    "netmask": netmask,
    "ipv6": ipv6,
    "ipv6/bits": ipv6_interface,
    "ipv6net": ipv6_network,
    "target": route_target,
    "gateway": gateway,
    "domain": domain,
    "hash": hex_pairs,
    "ku": key_usage,
}
