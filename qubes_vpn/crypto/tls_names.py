"""TLS ciphers, groups and levels: OpenVPN's words to OpenSSL's."""

import re
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from qubes_vpn.crypto.identity import refuse

# Source: OpenVPN 2 ssl_openssl.c, tls_ctx_restrict_ciphers.
DEFAULT_CIPHERS: Final = (
    "DEFAULT:!EXP:!LOW:!MEDIUM:!kDH:!kECDH:!DSS:!PSK:!SRP:!kRSA"
)
# Whatever a profile asks for, these are out.
_NEVER: Final = "!aNULL:!eNULL"

SECURITY_LEVELS: Final = {
    "insecure": 0,
    "legacy": 1,
    "preferred": 2,
    "suiteb": 3,
}

# Groups that pyOpenSSL can set: one, and of these curves only.
_GROUPS: Final[dict[str, type[ec.EllipticCurve]]] = {
    "secp256r1": ec.SECP256R1,
    "prime256v1": ec.SECP256R1,
    "p-256": ec.SECP256R1,
    "secp384r1": ec.SECP384R1,
    "p-384": ec.SECP384R1,
    "secp521r1": ec.SECP521R1,
    "p-521": ec.SECP521R1,
}

# Groups that OpenSSL offers by itself, from the version on that knows them.
_OFFERED: Final = frozenset(
    {"x25519mlkem768", "x25519", "x448", "ffdhe2048", "ffdhe3072"}
)

# Source: RFC 8446, B.4
_SUITES: Final = frozenset(
    {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_CCM_SHA256",
        "TLS_AES_128_CCM_8_SHA256",
    }
)

_BULK: Final = re.compile(
    r"(AES|CAMELLIA|ARIA)-(128|256)-(CBC|GCM|CCM-8|CCM)(?:-(.*))?"
)


def cipher_list(cipher: str, profile: str) -> bytes:
    """Return OpenSSL's cipher string for tls-cipher and tls-cert-profile."""
    if profile not in SECURITY_LEVELS:
        refuse("tls-cert-profile", f"{profile!r} is no certificate profile")
    if profile == "suiteb":
        chosen = "SUITEB128"
    elif cipher:
        names = [openssl_cipher(name) for name in cipher.split(":") if name]
        chosen = ":".join((*names, _NEVER))
    else:
        chosen = DEFAULT_CIPHERS
    return f"{chosen}:@SECLEVEL={SECURITY_LEVELS[profile]}".encode()


def openssl_cipher(name: str) -> str:
    """Translate one IANA name with dashes; others are returned as they are.

    "TLS-ECDHE-RSA-WITH-AES-256-GCM-SHA384" is ECDHE-RSA-AES256-GCM-SHA384.
    """
    prefix, dash, rest = name.replace("_", "-").partition("TLS-")
    exchange, middle, bulk = rest.partition("-WITH-")
    if prefix or not dash or not middle:
        return name
    exchange = {
        "RSA": "",
        "DH-ANON": "ADH",
        "ECDH-ANON": "AECDH",
        "PSK": "PSK",
    }.get(exchange.upper(), exchange)
    return "-".join(filter(None, (exchange, _openssl_bulk(bulk))))


def _openssl_bulk(bulk: str) -> str:
    if bulk.startswith("CHACHA20-POLY1305"):
        return "CHACHA20-POLY1305"
    if bulk == "3DES-EDE-CBC-SHA":
        return "DES-CBC3-SHA"
    found = _BULK.fullmatch(bulk)
    if not found:
        return bulk
    family, bits, mode, digest = found.groups()
    parts = [f"{family}{bits}"]
    if mode != "CBC":
        parts.append(mode.replace("CCM-8", "CCM8"))
    if digest:
        parts.append(digest)
    return "-".join(parts)


def ciphersuites(names: str) -> tuple[str, ...]:
    """Return the suites of tls-ciphersuites (TLS 1.3) by OpenSSL's names."""
    suites = tuple(names.replace("-", "_").upper().split(":"))
    unknown = [suite for suite in suites if suite not in _SUITES]
    if unknown:
        refuse("tls-ciphersuites", f"{unknown[0]!r} is no TLS 1.3 suite")
    return suites


def group_names(groups: str) -> tuple[str, ...]:
    """Return the groups of tls-groups, in small letters."""
    return tuple(name.strip().lower() for name in groups.split(":"))


def pick_group(groups: str, *, is_server: bool) -> ec.EllipticCurve | None:
    """Return the group to set for tls-groups; None: look at the outcome.

    pyOpenSSL sets one NIST curve, not a list. Using one group of the list
    keeps the promise of the directive, at the cost that a peer must know
    that one. A client without any in its list offers what OpenSSL does, and
    ends a session with another group; a server would end most of them.
    """
    names = group_names(groups)
    for name in names:
        curve = _GROUPS.get(name)
        if curve:
            return curve()
    if is_server or not _OFFERED.intersection(names):
        refuse(
            "tls-groups",
            "only secp256r1, secp384r1 and secp521r1 can be set here, and"
            f" {groups!r} has none of them",
        )
    return None
