"""What a profile would do, for a person and for a program.

Nothing secret is in either form: no key, no password, no user name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from qubes_vpn.config.model import ClientProfile, Identity, Remote, ServerCheck
from qubes_vpn.config.routing import covers_all
from qubes_vpn.crypto.aead import cipher_spec
from qubes_vpn.crypto.facts import CertificateFacts, certificate_facts
from qubes_vpn.errors import printable

SCHEMA: Final = 1
DAY: Final = 86_400
SOON_DAYS: Final = 30
RSA_MIN: Final = 2048
WEAK_DIGESTS: Final = frozenset({"md5", "sha1"})
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
WEAK_TLS: Final = frozenset({"1.0", "1.1"})
LISTED_MAX: Final = 16  # entries of a list that are shown


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its lines."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caution:
    """Something that works and that a person should know. code: REASONS."""

    code: str
    text: str


def explain(profile: ClientProfile, now: float) -> tuple[Section, ...]:
    """Say in sections what the profile would do. now: seconds since 1970."""
    found = warnings(profile, now)
    return sections(
        Section("Servers", tuple(_servers(profile))),
        Section("The server is the right one if", tuple(_right(profile))),
        Section("Who you are", tuple(_who(profile))),
        Section("Encryption", tuple(_encryption(profile))),
        Section("Addresses and routes", tuple(_routes(profile))),
        Section("DNS", tuple(_dns(profile))),
        Section("Not applied", tuple(not_applied(profile.notes))),
        Section("Warnings", tuple(f"{w.code}: {w.text}" for w in found)),
    )


def sections(*given: Section) -> tuple[Section, ...]:
    """Leave out empty sections, and what a terminal would not show."""
    return tuple(
        Section(one.title, tuple(printable(line) for line in one.lines))
        for one in given
        if one.lines
    )


def describe(profile: ClientProfile, now: float) -> dict[str, Any]:
    """Give the same as one JSON object; docs/protocol.md has its schema."""
    check = profile.server_check
    return {
        "v": SCHEMA,
        "kind": "client",
        "ok": True,
        "servers": [_server_object(one) for one in profile.remotes],
        "identity": {
            "ca": [_object(one) for one in certificate_facts(check.ca)],
            "fingerprints": [one.hex(":") for one in check.fingerprints],
            "name": check.name,
            "name_type": check.name_type,
            "usage": check.eku or check.ns_cert_type,
        },
        "authentication": {
            "certificate": [
                _object(one)
                for one in certificate_facts(profile.identity.certificate)
            ],
            "pkcs12": bool(profile.identity.pkcs12),
            "password": profile.auth_user_pass is not None,
            "static_key": profile.secret is not None,
        },
        "encryption": {
            "data_ciphers": list(profile.data_ciphers),
            "data_ciphers_fallback": profile.data_ciphers_fallback,
            "auth": profile.auth,
            "control_wrap": profile.control_wrap.kind,
            "tls_version_min": profile.tls.version_min,
        },
        "routes": {
            "everything": carries_everything(profile),
            "carried": [str(one) for one, _, _ in profile.routes],
        },
        "dns": list(profile.dns),
        "search": list(profile.search),
        "not_applied": [
            {"line": line, "directive": name, "reason": reason}
            for line, name, reason in profile.notes
        ],
        "warnings": [
            {"code": one.code, "text": one.text}
            for one in warnings(profile, now)
        ],
    }


def carries_everything(profile: ClientProfile) -> bool | None:
    """Say whether all traffic is carried; None: the server will say."""
    if profile.redirect_gateway is not None:
        return True
    networks = [one for one, _, _ in profile.routes]
    if covers_all([one for one in networks if one.version == 4]):
        return True
    if networks and (profile.route_nopull or not profile.pull):
        return False
    return None


def not_applied(notes: tuple[tuple[int, str, str], ...]) -> Iterator[str]:
    """Say which directives are not applied, and why."""
    for line, name, reason in notes:
        yield f"line {line}, {name}: {reason}"


# -- sections ------------------------------------------------------------------


def _limited(words: list[str]) -> Iterator[str]:
    yield from words[:LISTED_MAX]
    if len(words) > LISTED_MAX:
        yield f"and {len(words) - LISTED_MAX} more"


def _servers(profile: ClientProfile) -> Iterator[str]:
    lines = []
    for one in profile.remotes:
        family = f" over IPv{one.family}" if one.family else ""
        via = ""
        if one.proxy:
            kind = one.proxy.kind.upper()
            via = f", through the {kind} proxy"
            via += f" {one.proxy.host}:{one.proxy.port}"
        proto = one.proto.upper()
        lines.append(f"{one.host} port {one.port}, {proto}{family}{via}")
    yield from _limited(lines)
    if len(profile.remotes) > 1:
        order = "in random order" if profile.remote_random else "in this order"
        yield f"tried {order}"


def _right(profile: ClientProfile) -> Iterator[str]:
    check = profile.server_check
    if profile.secret:
        yield "it has the same static key"
        return
    if check.ca:
        names = [one.subject for one in certificate_facts(check.ca)]
        yield from _limited(
            [f"its certificate is signed by {n}" for n in names]
        )
    elif profile.identity.pkcs12:
        yield "its certificate is signed by an authority of the PKCS#12 file"
    if check.fingerprints:
        count = len(check.fingerprints)
        yield f"its certificate has one of {count} known fingerprints"
    if check.verify_hash:
        yield f"an authority has the {check.verify_hash[0]} hash of the profile"
    if check.name:
        kind = {
            "subject": "its subject is",
            "name": "its name is",
            "name-prefix": "its name begins with",
        }[check.name_type]
        yield f"{kind} {check.name}"
    if check.eku:
        yield f"its certificate is for {check.eku}"
    if check.ns_cert_type:
        yield f"its Netscape type is {check.ns_cert_type}"
    if check.crl or check.crl_path or check.revoked:
        yield "it is not on the profile's revocation list"


def _who(profile: ClientProfile) -> Iterator[str]:
    ours = profile.identity
    for one in certificate_facts(ours.certificate)[:1]:
        yield f"certificate {one.subject}, {one.key}, until {_day(one)}"
    if ours.pkcs12:
        yield "a certificate in a PKCS#12 file"
    login = profile.auth_user_pass
    if login is not None:
        known = login.username is not None and login.password is not None
        where = "of the profile" if known else "that you are asked for"
        yield f"a user name and password {where}"
    if profile.static_challenge:
        yield "an answer to a challenge that you are asked for"
    if profile.secret:
        yield "the static key"


def _encryption(profile: ClientProfile) -> Iterator[str]:
    wrap = profile.control_wrap.kind
    if profile.secret:
        yield f"{profile.cipher} with {profile.auth}, one key for ever"
        return
    yield f"data: {', '.join(profile.data_ciphers)}, as the server chooses"
    if profile.data_ciphers_fallback:
        yield f"data, if it cannot choose: {profile.data_ciphers_fallback}"
    kinds = {cipher_spec(name).kind for name in profile.data_ciphers}
    if "cbc" in kinds or profile.data_ciphers_fallback:
        yield f"data, with a CBC cipher: authenticated by {profile.auth}"
    about = {
        "plain": "TLS, without a key of its own",
        "tls-auth": "TLS, authenticated (tls-auth)",
    }
    kind = about.get(wrap, f"TLS, encrypted ({wrap})")
    yield f"control: {kind}; TLS {profile.tls.version_min} or later"


def _routes(profile: ClientProfile) -> Iterator[str]:
    if profile.ifconfig:
        yield f"own address {profile.ifconfig[0]}"
    if profile.ifconfig6:
        yield f"own address {profile.ifconfig6[0]}"
    if not (profile.ifconfig or profile.ifconfig6):
        yield "own addresses come from the server"
    everything = carries_everything(profile)
    if everything:
        yield "everything goes into the tunnel"
        return
    carried = [str(network) for network, _, _ in profile.routes]
    if carried:
        yield "carries: " + ", ".join(_limited(carried))
    if everything is None:
        yield "carries what the server says; if it says nothing, everything"
    yield "what is not carried is blocked, never sent past the tunnel"


def _dns(profile: ClientProfile) -> Iterator[str]:
    if profile.dns:
        yield "resolvers: " + ", ".join(profile.dns)
    if profile.search:
        yield "domains: " + ", ".join(_limited(list(profile.search)))
    if profile.route_nopull and not profile.dns:
        yield "none: route-nopull leaves out what the server says"
    elif profile.pull and not profile.dns:
        yield "resolvers come from the server"
    yield "every query of a qube goes into the tunnel"


def _day(one: CertificateFacts) -> str:
    return f"{datetime.fromtimestamp(one.not_after, UTC):%Y-%m-%d}"


# -- warnings ------------------------------------------------------------------


def warnings(profile: ClientProfile, now: float) -> tuple[Caution, ...]:
    """Find what works and is weak, or ends soon. now: since 1970."""
    found = (
        *_expiry(profile.identity, profile.server_check, now),
        *_weak_identity(profile),
        *_weak_crypto(profile),
        *_local_program(profile),
    )
    partly = carries_everything(profile) is False
    if partly:
        names = ", ".join(_limited([str(n) for n, _, _ in profile.routes]))
        text = f"carries only {names}; the rest is blocked: use another qube"
        return (*found, Caution("QV-124", f"{text} for it"))
    return tuple(found)


def _expiry(
    ours: Identity, theirs: ServerCheck, now: float
) -> Iterator[Caution]:
    for owner, pem in (("your", ours.certificate), ("the CA", theirs.ca)):
        for one in certificate_facts(pem):
            left = (one.not_after - now) / DAY
            what = f"{owner} certificate {one.subject}"
            if left < 0:
                yield Caution("QV-120", f"{what} expired on {_day(one)}")
            elif left < SOON_DAYS:
                yield Caution("QV-121", f"{what} expires on {_day(one)}")
            elif one.not_before > now:
                yield Caution("QV-120", f"{what} is not valid yet")


def _weak_identity(profile: ClientProfile) -> Iterator[Caution]:
    check = profile.server_check
    usage = check.eku or check.ku or check.ns_cert_type
    named = check.name or check.fingerprints or usage or profile.secret
    if not named:
        text = (
            "nothing tells a server's certificate from a client's of the"
            " same authority (remote-cert-tls, verify-x509-name)"
        )
        yield Caution("QV-122", text)
    if profile.control_wrap.kind == "plain" and not profile.secret:
        yield Caution("QV-126", "no tls-crypt and no tls-auth")
    for one in certificate_facts(check.ca + profile.identity.certificate):
        if 0 < one.bits < RSA_MIN:
            text = f"{one.subject} has an RSA key of only {one.bits} bits"
            yield Caution("QV-123", text)
        if one.digest in WEAK_DIGESTS and one.subject != one.issuer:
            yield Caution(
                "QV-123", f"{one.subject} is signed with {one.digest}"
            )


def _local_program(profile: ClientProfile) -> Iterator[Caution]:
    """Warn of servers that are a program in this qube, such as stunnel."""
    local = [r.host for r in profile.remotes if r.host in LOOPBACK]
    if local:
        text = f"{local[0]} is this qube itself: it needs another program"
        yield Caution("QV-127", f"{text}, such as stunnel, to run here")


def _weak_crypto(profile: ClientProfile) -> Iterator[Caution]:
    if profile.secret:
        text = "a static key has no forward secrecy; OpenVPN 2.8 removes it"
        yield Caution("QV-123", text)
        return
    cbc = [n for n in profile.data_ciphers if cipher_spec(n).kind == "cbc"]
    if cbc:
        yield Caution("QV-123", f"offers {', '.join(cbc)}, without AEAD")
    if profile.tls.version_min in WEAK_TLS:
        text = f"permits TLS {profile.tls.version_min}"
        yield Caution("QV-123", text)
    if profile.tls.cert_profile == "insecure":
        yield Caution("QV-123", "tls-cert-profile insecure permits weak keys")
    if profile.compression:
        text = "compression can show what is inside encrypted traffic"
        yield Caution("QV-125", text)


# -- objects -------------------------------------------------------------------


def _server_object(one: Remote) -> dict[str, Any]:
    proxy = one.proxy
    return {
        "host": one.host,
        "port": one.port,
        "proto": one.proto,
        "family": one.family,
        "proxy": (
            {"kind": proxy.kind, "host": proxy.host, "port": proxy.port}
            if proxy
            else None
        ),
    }


def _object(one: CertificateFacts) -> dict[str, Any]:
    return {
        "subject": one.subject,
        "issuer": one.issuer,
        "not_before": one.not_before,
        "not_after": one.not_after,
        "key": one.key,
        "fingerprint": one.fingerprint,
    }
