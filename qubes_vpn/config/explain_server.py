"""What a server's profile would do, for a person and for a program."""

from collections.abc import Iterator
from typing import Any, Final

from qubes_vpn.config.explain import Section, not_applied, sections
from qubes_vpn.config.server_model import ServerProfile
from qubes_vpn.crypto.facts import certificate_facts

SCHEMA: Final = 1


def explain_server(profile: ServerProfile) -> tuple[Section, ...]:
    """Say in sections what the profile would do."""
    return sections(
        Section("Listens on", tuple(_listens(profile))),
        Section("A client is let in if", tuple(_clients(profile))),
        Section("Encryption", tuple(_encryption(profile))),
        Section("Clients get", tuple(_gives(profile))),
        Section("Not applied", tuple(not_applied(profile.notes))),
    )


def describe_server(profile: ServerProfile) -> dict[str, Any]:
    """Give the same as one JSON object; docs/protocol.md has its schema."""
    return {
        "v": SCHEMA,
        "kind": "server",
        "ok": True,
        "listens": [
            {
                "address": one.address,
                "port": one.port,
                "proto": one.proto,
                "family": one.family,
            }
            for one in profile.listens
        ],
        "networks": [
            str(one) for one in (profile.network4, profile.network6) if one
        ],
        "topology": profile.topology,
        "push": list(profile.push),
        "verify_client_cert": profile.verify_client_cert,
        "data_ciphers": list(profile.data_ciphers),
        "control_wraps": _wraps(profile),
        "max_clients": profile.max_clients,
        "not_applied": [
            {"line": line, "directive": name, "reason": reason}
            for line, name, reason in profile.notes
        ],
        "warnings": [],
    }


def _wraps(profile: ServerProfile) -> list[str]:
    found = ["tls-crypt-v2"] if profile.tls_crypt_v2 else []
    if profile.control_wrap.kind != "plain" or not found:
        found.append(profile.control_wrap.kind)
    return found


def _listens(profile: ServerProfile) -> Iterator[str]:
    for one in profile.listens:
        where = one.address or "every address"
        family = f", IPv{one.family} only" if one.family else ""
        yield f"{where} port {one.port}, {one.proto.upper()}{family}"


def _clients(profile: ServerProfile) -> Iterator[str]:
    check = profile.client_check
    if profile.verify_client_cert != "none":
        for one in certificate_facts(check.ca):
            yield f"its certificate is signed by {one.subject}"
        if check.fingerprints:
            yield "its certificate has a known fingerprint"
    if profile.verify_client_cert == "optional":
        yield "or it has no certificate"
    if profile.wants_password:
        yield "it knows a user name and password"
    if profile.crl_file or check.crl or check.revoked:
        yield "its certificate is not on the revocation list"
    if profile.ccd_exclusive:
        yield f"there is a file of its name in {profile.client_config_dir}"
    yield f"no more than {profile.max_clients} clients are connected"


def _encryption(profile: ServerProfile) -> Iterator[str]:
    yield f"data: {', '.join(profile.data_ciphers)}"
    yield f"control: {', '.join(_wraps(profile))}"
    yield f"TLS {profile.tls.version_min} or later"


def _gives(profile: ServerProfile) -> Iterator[str]:
    for network in (profile.network4, profile.network6):
        if network:
            yield f"an address of {network}"
    yield from profile.push
