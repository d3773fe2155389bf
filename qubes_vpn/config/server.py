"""A server's profile from its document, with the checks across fields."""

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Any, Final

from qubes_vpn.config import certificates, client, trust
from qubes_vpn.config.client_config import pushed
from qubes_vpn.config.document import Document, Item
from qubes_vpn.config.endpoints import DEFAULT_PORT
from qubes_vpn.config.material import read_key
from qubes_vpn.config.server_model import (
    Listen,
    ServerProfile,
    TokenOptions,
)
from qubes_vpn.config.tunnel import (
    CONTROL_SIZE,
    TOPOLOGIES,
    control_size,
    mssfix,
    routes,
)
from qubes_vpn.config.values import netmask
from qubes_vpn.wire.keyfile import AUTH_TOKEN_SERVER, parse_server_key

LISTENS_MAX: Final = 64
POOL_PREFIX_MAX: Final = 29  # OpenVPN: a subnet of /29 or larger
POOL_PREFIX_MIN: Final = 8
PREFIX6: Final = (64, 124)
RENEWAL_FACTOR: Final = 2


def build(doc: Document) -> ServerProfile:
    """Turn a document into a profile; problems stay in the document."""
    _check_mode(doc)
    ciphers, fallback = client.data_ciphers(doc)
    fields: dict[str, Any] = {}
    for part in (
        _who,
        _network,
        _clients,
        _login,
        _rekeying,
        _timing,
        _files,
    ):
        fields |= part(doc)
    profile = ServerProfile(
        listens=_listens(doc),
        identity=trust.identity(doc),
        tls=trust.tls_options(doc),
        data_ciphers=ciphers,
        data_ciphers_fallback=fallback,
        auth=client.digest(doc, ciphers),
        dev=doc.value("dev", "tun"),
        tun_mtu=doc.value("tun-mtu", 1500),
        **mssfix(doc, client.AUTO),
        max_packet_size=control_size(doc) or CONTROL_SIZE,
        sndbuf=doc.value("sndbuf", 0),
        rcvbuf=doc.value("rcvbuf", 0),
        **fields,
        notes=tuple(sorted(doc.notes)),
    )
    if not doc.problems:
        _check_across(doc, profile)
        certificates.check(doc, profile.identity, profile.client_check)
    return profile


# -- checks --------------------------------------------------------------------


def _check_mode(doc: Document) -> None:
    client.check_tun(doc)
    mode = doc.last("mode")
    if mode and mode.values[0] != "server":
        doc.report(mode.statement, "mode p2p is not for a server", 1)
    secret = doc.last("secret")
    if secret:
        message = "secret is for two peers; a server needs ca, cert and key"
        doc.report(secret.statement, message)
    dh = doc.last("dh")
    if dh and dh.value(0) != "none":
        doc.note(dh.statement, "keys are agreed on over elliptic curves")
    for item in doc.all("plugin"):
        if "auth-pam" not in item.values[0]:
            message = f"plugin is refused: {item.row.why}"
            doc.report(item.statement, message, code="QV-105")


def _check_across(doc: Document, profile: ServerProfile) -> None:
    ours, check = profile.identity, profile.client_check
    if not ours.pkcs12 and not ours.certificate:
        doc.complain("a server needs cert and key, or pkcs12")
    if profile.verify_client_cert != "none" and not (
        check.ca or check.fingerprints or ours.pkcs12
    ):
        message = "would accept any client: ca or peer-fingerprint is missing"
        doc.complain(message, "QV-110")
    if profile.network4 is None and profile.network6 is None:
        message = 'gives clients no addresses: "server NETWORK NETMASK"'
        doc.complain(f"{message} is missing")
    token = profile.auth_gen_token
    if (
        token
        and token.renewal
        and (token.renewal < RENEWAL_FACTOR * profile.hand_window)
    ):
        doc.complain("auth-gen-token: renewal is below twice hand-window")
    if profile.ccd_exclusive and not profile.client_config_dir:
        doc.complain("ccd-exclusive needs client-config-dir")


# -- parts ---------------------------------------------------------------------


def _listens(doc: Document) -> tuple[Listen, ...]:
    """Read where the server listens: every `local`, or everywhere."""
    word = doc.value("proto", "udp")
    at = doc.last("proto")
    ported = doc.last("port", "lport")
    port = ported.values[0] if ported else DEFAULT_PORT
    found = []
    for item in doc.all("local"):
        proto, family = _protocol(doc, item.value(2) or word, item)
        address = item.values[0] if item.values[0] != "*" else ""
        if address:
            try:
                family = ip_address(address).version
            except ValueError:
                doc.report(item.statement, "local needs an IP address", 1)
        found.append(Listen(address, item.value(1, port), proto, family))
    if not found:
        proto, family = _protocol(doc, word, at)
        found = [Listen("", port, proto, family)]
    if len(found) > LISTENS_MAX:
        doc.complain(f"over {LISTENS_MAX} addresses to listen on")
    return tuple(dict.fromkeys(found))


def _protocol(doc: Document, word: str, item: Item | None) -> tuple[str, int]:
    if word.endswith("-client") and item:
        message = f"{word} is for a client; write {word[:-7]}-server"
        doc.report(item.statement, message)
    base = word.split("-", 1)[0]
    family = 6 if doc.value("bind") == "ipv6only" else 0
    return base[:3], int(base[3:] or family)


def _who(doc: Document) -> dict[str, Any]:
    v2 = doc.last("tls-crypt-v2")
    key = b""
    found = doc.material("tls-crypt-v2")
    if found:
        key = read_key(doc, found, parse_server_key, b"")
    cookie = v2.value(1, "allow-noncookie") if v2 else "allow-noncookie"
    if v2 and cookie not in {"force-cookie", "allow-noncookie"}:
        message = "tls-crypt-v2 takes force-cookie or allow-noncookie"
        doc.report(v2.statement, message, 2)
    item = doc.last("verify-client-cert")
    verify = item.value(0, "require") if item else "require"
    if item and verify not in {"none", "optional", "require"}:
        message = "verify-client-cert takes none, optional or require"
        doc.report(item.statement, message, 1)
    check = trust.server_check(doc, with_crl=False)
    return {
        "client_check": check,
        "crl_file": check.crl_path,
        "verify_client_cert": verify,
        "control_wrap": trust.control_wrap(doc, ("tls-auth", "tls-crypt")),
        "tls_crypt_v2": key,
        "force_cookie": cookie == "force-cookie",
        "tls_crypt_v2_max_age": doc.value("tls-crypt-v2-max-age", 0),
        "force_tls_key_material_export": doc.has(
            "force-tls-key-material-export"
        ),
    }


def _path(doc: Document, item: Item) -> str:
    return doc.resolve(item.values[0])


def _network(doc: Document) -> dict[str, Any]:
    def refuse(item: Item, reason: str) -> None:
        doc.note(item.statement, reason)

    topology = trust.one_of(doc, "topology", TOPOLOGIES, "subnet")
    return {
        "topology": topology,
        "network4": _network4(doc),
        "network6": _network6(doc),
        "pool4": _pool4(doc),
        "pool6": _pool6(doc),
        "routes": routes(
            doc.all("route"),
            doc.all("route-ipv6"),
            doc.value("route-metric", 0),
            refuse,
        ),
    }


def _network4(doc: Document) -> IPv4Network | None:
    item = doc.last("server")
    if item is None:
        return _network_of_ifconfig(doc)
    address, prefix = item.values[:2]
    if item.value(2, "nopool") != "nopool":
        doc.report(item.statement, "server takes nothing else but nopool", 3)
    if item.value(2) is None and doc.has("ifconfig-pool"):
        message = "server has a pool of its own; ifconfig-pool is too much"
        doc.report(item.statement, message)
    if not POOL_PREFIX_MIN <= prefix <= POOL_PREFIX_MAX:
        message = f"server needs a network of /{POOL_PREFIX_MIN} to"
        doc.report(item.statement, f"{message} /{POOL_PREFIX_MAX}", 2)
    try:
        return IPv4Network((address, prefix))
    except ValueError:
        message = "server needs a network's address, without host bits"
        doc.report(item.statement, message, 1)
        return None


def _network_of_ifconfig(doc: Document) -> IPv4Network | None:
    item = doc.last("ifconfig")
    if item is None:
        return None
    try:
        prefix = netmask(item.values[1])
        return IPv4Interface((item.values[0], prefix)).network
    except ValueError:
        doc.report(item.statement, "ifconfig needs ADDRESS NETMASK", 1)
        return None


def _network6(doc: Document) -> IPv6Network | None:
    item = doc.last("server-ipv6") or doc.last("ifconfig-ipv6")
    if item is None:
        return None
    network: IPv6Network = item.values[0].network
    if not PREFIX6[0] <= network.prefixlen <= PREFIX6[1]:
        message = f"{item.row.name} needs /{PREFIX6[0]} to /{PREFIX6[1]}"
        doc.report(item.statement, message, 1)
    return network


def _pool4(doc: Document) -> tuple[IPv4Address, IPv4Address] | None:
    item = doc.last("ifconfig-pool")
    if item is None:
        return None
    first, last = item.values[:2]
    if first > last:
        doc.report(item.statement, "ifconfig-pool ends before it begins", 2)
    return first, last


def _pool6(doc: Document) -> tuple[IPv6Address, IPv6Address] | None:
    item = doc.last("ifconfig-ipv6-pool")
    if item is None:
        return None
    interface = item.values[0]
    return interface.ip, interface.network[-1]


def _push_constraint(doc: Document) -> IPv4Network | None:
    item = doc.last("ifconfig-push-constraint")
    return IPv4Network(item.values, strict=False) if item else None


def _clients(doc: Document) -> dict[str, Any]:
    keepalive = doc.last("keepalive")
    return {
        "duplicate_cn": doc.has("duplicate-cn"),
        "max_clients": max(1, doc.value("max-clients", 1024)),
        "max_routes_per_client": doc.value("max-routes-per-client", 256),
        "client_to_client": doc.has("client-to-client"),
        "ccd_exclusive": doc.has("ccd-exclusive"),
        "push": pushed(doc),
        "push_constraint": _push_constraint(doc),
        "connect_freq": _pair(doc, "connect-freq", (0, 0)),
        "connect_freq_initial": _pair(doc, "connect-freq-initial", (100, 10)),
        "keepalive": keepalive.values if keepalive else (0, 0),
    }


def _pair(
    doc: Document, name: str, default: tuple[int, int]
) -> tuple[int, int]:
    item = doc.last(name)
    return (item.values[0], item.values[1]) if item else default


def _login(doc: Document) -> dict[str, Any]:
    pam = next(iter(doc.all("plugin")), None)
    return {
        "username_as_common_name": doc.has("username-as-common-name"),
        "auth_user_pass_optional": doc.has("auth-user-pass-optional"),
        "auth_gen_token": _token(doc),
        "pam_service": pam.value(1, "openvpn") if pam else "",
    }


def _token(doc: Document) -> TokenOptions | None:
    item = doc.last("auth-gen-token")
    if item is None:
        return None
    words = list(item.values)
    external = words[-1:] == ["external-auth"]
    numbers = []
    for word in words[:-1] if external else words:
        if not word.isascii() or not word.isdigit() or len(word) > 9:
            message = "auth-gen-token takes LIFETIME RENEWAL external-auth"
            doc.report(item.statement, message, 1)
            return None
        numbers.append(int(word))
    secret = b""
    if found := doc.material("auth-gen-token-secret"):
        secret = read_key(
            doc, found, lambda t: parse_server_key(t, AUTH_TOKEN_SERVER), b""
        )
    lifetime, renewal = [*numbers, 0, 0][:2]
    return TokenOptions(lifetime, renewal, external, secret)


def _rekeying(doc: Document) -> dict[str, Any]:
    """Spread renewals: as in OpenVPN, a tenth of the time is up to chance."""
    values = client.rekeying(doc)
    if doc.value("reneg-sec", -1, 1) < 0:
        values["reneg_sec_min"] = (
            values["reneg_sec"] - values["reneg_sec"] // 10
        )
    return values


def _timing(doc: Document) -> dict[str, Any]:
    values = client.timing(doc)
    if doc.has("keepalive"):
        values["ping_restart"] *= 2  # as OpenVPN: the client gives up first
    elif not doc.has("ping-restart"):
        values["ping_restart"] = 0
    notify = doc.last("explicit-exit-notify")
    kept = (
        "ping",
        "ping_restart",
        "inactive",
        "inactive_bytes",
        "session_timeout",
    )
    return {name: values[name] for name in kept} | {
        "explicit_exit_notify": notify.value(0, 1) if notify else 0
    }


def _files(doc: Document) -> dict[str, Any]:
    def name_of(directive: str) -> str:
        item = doc.last(directive)
        return _path(doc, item) if item else ""

    version = trust.one_of(doc, "status-version", ("1", "2", "3"), "1")
    return {
        "persist_file": name_of("ifconfig-pool-persist"),
        "persist_seconds": doc.value("ifconfig-pool-persist", 600, 1),
        "client_config_dir": name_of("client-config-dir"),
        "status_file": name_of("status"),
        "status_seconds": doc.value("status", 60, 1),
        "status_version": int(version),
    }
