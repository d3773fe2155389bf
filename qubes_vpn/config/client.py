"""A client's profile from its document, with the checks across fields."""

from collections.abc import Iterable
from typing import Any, Final

from qubes_vpn.config import certificates, endpoints, trust
from qubes_vpn.config.document import Document, Item
from qubes_vpn.config.login import login
from qubes_vpn.config.material import read_key
from qubes_vpn.config.model import ClientProfile
from qubes_vpn.config.tunnel import (
    CONTROL_SIZE,
    TOPOLOGIES,
    DnsOptions,
    cipher_name,
    control_size,
    framing,
    mssfix,
    routes,
    silence,
)
from qubes_vpn.crypto.aead import cipher_spec, digest_name, find_cipher
from qubes_vpn.wire.keyfile import parse_static_key

PASSWORD_DIRECTIVES: Final = ("auth-user-pass", "cert", "pkcs12")
DEFAULT_CIPHERS: Final = "AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305"
DEFAULT_DIGEST: Final = "SHA1"
# OpenVPN knows them, where OpenSSL does.
OTHER_DIGESTS: Final = frozenset(
    {"RIPEMD160", "WHIRLPOOL", "BLAKE2B512", "BLAKE2S256", "MD4", "SM3"}
)
AUTO: Final = -1


def build(doc: Document) -> ClientProfile:
    """Turn a document into a profile; problems stay in the document."""
    _check_mode(doc)
    remotes = endpoints.remotes(doc)
    wrap = trust.control_wrap(doc)
    ciphers, fallback = data_ciphers(doc)
    fields: dict[str, Any] = {}
    for part in (timing, rekeying, _addresses, _sizes, login, _rest):
        fields |= part(doc)
    profile = ClientProfile(
        remotes=remotes,
        server_check=trust.server_check(doc),
        identity=trust.identity(doc),
        control_wrap=wrap,
        tls=trust.tls_options(doc),
        data_ciphers=ciphers,
        data_ciphers_fallback=fallback,
        cipher=cipher_name(doc.value("cipher", "BF-CBC")),
        auth=digest(doc, (*ciphers, *filter(None, (fallback,)))),
        **fields,
        notes=tuple(sorted(doc.notes)),
    )
    if not doc.problems:
        _check_across(doc, profile)
        certificates.check(doc, profile.identity, profile.server_check)
    return profile


# -- checks -------------------------------------------------------------------


def check_tun(doc: Document) -> None:
    """Refuse layer 2."""
    device = doc.last("dev")
    kind = doc.last("dev-type")
    for item in (device, kind):
        if item and item.values[0].startswith("tap"):
            message = (
                "tap (layer 2) is not supported; ask for a profile with dev tun"
            )
            doc.report(item.statement, message, 1, "QV-105")


def _check_mode(doc: Document) -> None:
    check_tun(doc)
    mode = doc.last("mode")
    if mode and mode.values[0] != "p2p":
        message = "mode server is for a server's profile"
        doc.report(mode.statement, message, 1, "QV-104")
    secret = doc.last("secret")
    tls = doc.last("client", "tls-client", "pull")
    if secret and tls:
        message = f"secret and {tls.row.name} exclude another"
        doc.report(secret.statement, message, code="QV-108")


def _check_across(doc: Document, profile: ClientProfile) -> None:
    if profile.secret:
        if not profile.ifconfig and not profile.ifconfig6:
            doc.complain("secret needs ifconfig: nobody pushes addresses")
        return
    if not doc.has("client") and not doc.has("tls-client"):
        doc.complain('the line "client" is missing (or tls-client, or secret)')
        return
    check = profile.server_check
    if not check.ca and not check.fingerprints and not profile.identity.pkcs12:
        message = (
            "would accept any server: ca or peer-fingerprint is missing;"
            " ask the operator for the certificate"
        )
        doc.complain(message, "QV-110")
    if not any(doc.has(name) for name in PASSWORD_DIRECTIVES):
        message = (
            "does not say who you are: cert and key, pkcs12 or"
            " auth-user-pass is missing"
        )
        doc.complain(message)
    login = doc.last("auth-user-pass")
    if login and not profile.pull:
        message = "auth-user-pass needs client, or pull"
        doc.report(login.statement, message, code="QV-109")
    both = ("tun-mtu", "link-mtu")
    doc.conflict(both, " and ".join(both) + " exclude another")


def digest(doc: Document, ciphers: Iterable[str]) -> str:
    """Give the digest of `auth`, as it is written, in capitals.

    One that is not supported does no harm where nothing uses it: with AEAD
    ciphers alone, and without tls-auth.
    """
    item = doc.last("auth")
    if item is None:
        return DEFAULT_DIGEST
    name = str(item.values[0]).upper()
    try:
        digest_name(name)
    except KeyError:
        kinds = {cipher_spec(cipher).kind for cipher in ciphers}
        used = kinds != {"aead"} or doc.has("tls-auth") or doc.has("secret")
        if used or name not in OTHER_DIGESTS:
            message = f"auth: unknown digest {name[:32]}"
            doc.report(item.statement, message, 1)
        else:
            doc.note(item.statement, "is not supported, and nothing uses it")
        return DEFAULT_DIGEST
    return name


# -- parts -------------------------------------------------------------------


def data_ciphers(doc: Document) -> tuple[tuple[str, ...], str]:
    """Give the ciphers to offer, and the one to use without negotiation."""
    item = doc.last("data-ciphers")
    words = (item.values[0] if item else DEFAULT_CIPHERS).split(":")
    if "DEFAULT" in words:
        at = words.index("DEFAULT")
        words[at : at + 1] = DEFAULT_CIPHERS.split(":")
    found: list[str] = []
    for word in words:
        name = cipher_name(word.lstrip("?"))
        if find_cipher(name):
            found.append(name)
        else:
            assert item is not None  # those of the default exist
            doc.note(item.statement, f"{name[:40]} is not offered")
    if item and not found:
        message = f"{item.row.name}: none of these ciphers is supported"
        doc.report(item.statement, message, 1)
    fallback = doc.last("data-ciphers-fallback")
    name = cipher_name(fallback.values[0]) if fallback else ""
    if fallback and not find_cipher(name):
        doc.note(fallback.statement, f"{name[:40]} is not supported")
        name = ""
    old = cipher_name(doc.value("cipher", ""))
    compat = _compat(doc)
    if compat and find_cipher(old):
        if compat < (2, 5):
            found.append(old)
        if compat < (2, 4):
            name = name or old
    return tuple(dict.fromkeys(found)), name


def _compat(doc: Document) -> tuple[int, ...]:
    """Give the version that compat-mode names, as numbers, or nothing."""
    item = doc.last("compat-mode")
    if item is None:
        return ()
    parts = item.values[0].split(".")
    if 2 <= len(parts) <= 3 and all(
        part.isascii() and part.isdigit() for part in parts
    ):
        return tuple(int(part[:4]) for part in parts)
    message = "compat-mode needs a version such as 2.4.0"
    doc.report(item.statement, message, 1)
    return ()


def unlimited(doc: Document, name: str, word: str, other: int) -> int:
    """Read a number, or the word that means there is no limit."""
    item = doc.last(name)
    if item is None:
        return other
    text = item.values[0]
    if text == word:
        return other
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        doc.report(item.statement, f"{name} needs a number or {word}", 1)
        return other
    return int(text)


def timing(doc: Document) -> dict[str, Any]:
    """Read ping and its relatives; keepalive sets both, as it stands."""
    ping = doc.value("ping", 0)
    restart, leave = silence(doc.last("ping-restart", "ping-exit"), 120, 0)
    item = doc.last("keepalive")
    if item:
        for name in ("ping", "ping-restart", "ping-exit"):
            if doc.has(name):
                message = f"keepalive and {name} exclude another"
                doc.report(item.statement, message, code="QV-108")
        ping, restart = item.values
        if not ping or not restart:
            doc.report(item.statement, "keepalive needs numbers over 0", 1)
        elif restart < 2 * ping:
            message = "keepalive: the second is at least twice the first"
            doc.report(item.statement, message, 2)
    retry = doc.last("connect-retry")
    first = retry.values[0] if retry else 1
    return {
        "ping": ping,
        "ping_restart": restart,
        "ping_exit": leave,
        "inactive": doc.value("inactive", 0),
        "inactive_bytes": doc.value("inactive", 0, 1),
        "session_timeout": doc.value("session-timeout", 0),
        "connect_retry": (
            first,
            retry.value(1, max(first, 30)) if retry else 30,
        ),
        "connect_retry_max": unlimited(
            doc, "connect-retry-max", "unlimited", 0
        ),
        "remote_random": doc.has("remote-random"),
    }


def rekeying(doc: Document) -> dict[str, Any]:
    """Read when keys are renewed, and the replay window."""
    reneg = doc.last("reneg-sec")
    return {
        "hand_window": doc.value("hand-window", 60),
        "tran_window": doc.value("tran-window", 3600),
        "tls_timeout": doc.value("tls-timeout", 2),
        "reneg_sec": reneg.values[0] if reneg else 3600,
        "reneg_sec_min": reneg.value(1, 0) if reneg else 0,
        "reneg_bytes": doc.value("reneg-bytes", AUTO),
        "reneg_pkts": doc.value("reneg-pkts", 0),
        "replay_window": doc.value("replay-window", 64),
        "replay_time": doc.value("replay-window", 15, 1),
    }


def _addresses(doc: Document) -> dict[str, Any]:
    def refuse(item: Item, reason: str) -> None:
        doc.note(item.statement, reason)

    def wrong(item: Item, reason: str) -> None:
        if item.row.name == "dns":
            doc.report(item.statement, f"dns: {reason}", 1)
        else:  # OpenVPN hands dhcp-option to a script, unseen
            doc.note(item.statement, reason)

    dns = DnsOptions(refuse, wrong)
    for item in doc.all("dhcp-option") + doc.all("dns"):
        dns.add(item)
    ifconfig = doc.last("ifconfig")
    ifconfig6 = doc.last("ifconfig-ipv6")
    redirect = doc.last("redirect-gateway")
    if ifconfig and ifconfig.values[0] == ifconfig.values[1]:
        doc.report(ifconfig.statement, "ifconfig needs two addresses", 2)
    return {
        "ifconfig": tuple(map(str, ifconfig.values)) if ifconfig else None,
        "ifconfig6": tuple(map(str, ifconfig6.values)) if ifconfig6 else None,
        "topology": trust.one_of(doc, "topology", TOPOLOGIES, ""),
        "routes": routes(
            doc.all("route"),
            doc.all("route-ipv6"),
            doc.value("route-metric", 0),
            refuse,
        ),
        "redirect_gateway": redirect.values if redirect else None,
        "dns": tuple(map(str, dns.resolvers)),
        "search": dns.search,
        "block_ipv6": doc.has("block-ipv6"),
        "route_nopull": doc.has("route-nopull"),
        "pull_filters": _pull_filters(doc),
    }


def _pull_filters(doc: Document) -> tuple[tuple[str, str], ...]:
    found = []
    for item in doc.all("pull-filter"):
        action, prefix = item.values
        if action not in {"accept", "ignore", "reject"}:
            message = "pull-filter needs accept, ignore or reject"
            doc.report(item.statement, message, 1)
        found.append((action, prefix))
    return tuple(found)


def _sizes(doc: Document) -> dict[str, Any]:
    mtu = doc.value("tun-mtu", 1500)
    framed = doc.all("compress") + doc.all("comp-lzo")
    allowed = trust.one_of(
        doc,
        "allow-compression",
        ("no", "asym", "yes"),
        "asym" if framed else "no",
    )
    compression = ""
    for item in sorted(framed, key=lambda item: item.order):
        try:
            compression = framing(item)
        except ValueError as error:
            doc.report(item.statement, str(error), 1)
    return {
        "tun_mtu": mtu,
        "tun_mtu_max": max(mtu, doc.value("tun-mtu-max", 1600)),
        "link_mtu": doc.value("link-mtu", 0),
        **mssfix(doc, AUTO),
        "fragment": doc.value("fragment", 0),
        "max_packet_size": control_size(doc) or CONTROL_SIZE,
        "sndbuf": doc.value("sndbuf", 0),
        "rcvbuf": doc.value("rcvbuf", 0),
        "compression": compression,
        "allow_compression": allowed,
    }


def _secret(doc: Document) -> tuple[bytes, int | None] | None:
    found = doc.material("secret")
    if found is None:
        return None
    key = read_key(doc, found, parse_static_key, b"")
    return key, trust.key_direction(doc, "secret")


def _rest(doc: Document) -> dict[str, Any]:
    return {
        "secret": _secret(doc),
        "pull": doc.has("client") or doc.has("pull"),
        "dev": doc.value("dev", "tun"),
    }
