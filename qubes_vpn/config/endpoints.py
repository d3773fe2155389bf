"""Where the servers are: remotes, connection blocks and proxies."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from qubes_vpn.config.document import INLINE, Document, Item
from qubes_vpn.config.material import name_and_password
from qubes_vpn.config.model import Proxy, Remote
from qubes_vpn.config.trust import WRAPS, control_wrap
from qubes_vpn.config.tunnel import control_size, mssfix

REMOTES_MAX: Final = 512
PRIVILEGED: Final = 1024
DEFAULT_PORT: Final = 1194
# Before 2.4, servers were tried for 10 s; 120 s is what 2.6 waits.
CONNECT_TIMEOUT: Final = 120
HTTP_AUTH: Final = ("none", "basic", "auto", "auto-nct", "ntlm", "ntlm2")


def remotes(doc: Document) -> tuple[Remote, ...]:
    """Give every server to try, in order; a problem when there is none.

    As in OpenVPN, connection blocks stand instead of `remote` lines.
    """
    found = [
        _remote(inner, item)
        for inner in doc.connections
        for item in inner.all("remote")[-1:]
    ]
    if not found:
        lines = doc.all("remote")
        if len(lines) > REMOTES_MAX:
            doc.complain(f"over {REMOTES_MAX} servers", "QV-112")
        found = [_remote(doc, item) for item in lines[:REMOTES_MAX]]
    elif doc.has("remote"):
        first = doc.all("remote")[0].statement
        doc.note(first, "connection blocks are used instead")
    if not found and not doc.problems:
        doc.complain('names no server: a line "remote HOST PORT" is missing')
    _check_ports(doc)
    return _forced(doc, found)


def _forced(doc: Document, found: list[Remote]) -> tuple[Remote, ...]:
    """Leave out what is not reached by the protocol of proto-force."""
    item = doc.last("proto-force")
    if item is None:
        return tuple(found)
    proto, _ = protocol(doc, item.values[0], item)
    kept = tuple(remote for remote in found if remote.proto == proto)
    if found and not kept:
        message = f"proto-force: no server is reached by {proto}"
        doc.report(item.statement, message, 1)
    return kept


def _check_ports(doc: Document) -> None:
    for scope in (doc, *doc.connections):
        for item in scope.all("lport"):
            if 0 < item.values[0] < PRIVILEGED:
                message = f"lport below {PRIVILEGED} is refused: use nobind"
                doc.report(item.statement, message, 1)
        binding = scope.all("lport") + scope.all("local") + scope.all("bind")
        for item in binding:
            if scope.has("nobind"):
                message = f"{item.row.name} and nobind contradict each other"
                doc.report(item.statement, message, code="QV-108")


def protocol(doc: Document, word: str, item: Item) -> tuple[str, int]:
    """Split udp4, tcp6-client and the like into protocol and family."""
    if word.endswith("-server"):
        message = f"{word} is for a server; write {word[:-7]}"
        doc.report(item.statement, message)
    base = word.split("-", 1)[0]
    return base[:3], int(base[3:] or 0)


def _remote(doc: Document, item: Item) -> Remote:
    host = item.values[0]
    word = item.value(2) or doc.value("proto", "udp")
    proto, family = protocol(doc, word, item)
    if not family and ":" in host:
        family = 6
    port = item.value(1)
    if port is None:
        ported = doc.last("port", "rport")
        port = ported.values[0] if ported else DEFAULT_PORT
    fragment = doc.value("fragment", 0)
    if fragment and proto != "udp":
        doc.report(item.statement, "fragment needs UDP")
    remote = Remote(
        host=host,
        port=port,
        proto=proto,
        family=family,
        connect_timeout=doc.value("connect-timeout", CONNECT_TIMEOUT),
        explicit_exit_notify=_exit_notify(doc, proto),
        lport=doc.value("lport", 0),
        local=_local(doc),
        **mssfix(doc, None),
        max_packet_size=control_size(doc),
        tun_mtu=doc.value("tun-mtu", None),
        fragment=fragment,
    )
    own_wrap = doc.outer and any(doc.all(name) for name in WRAPS)
    return replace(
        remote,
        proxy=_proxy(doc, proto, item),
        control_wrap=control_wrap(doc) if own_wrap else None,
    )


def _exit_notify(doc: Document, proto: str) -> int:
    item = doc.last("explicit-exit-notify")
    if item is None or proto != "udp":
        return 0
    return int(item.value(0, 1))


def _local(doc: Document) -> str:
    item = doc.last("local")
    if item is None or item.values[0] == "*":
        return ""
    try:
        return str(ip_address(item.values[0]))
    except ValueError:
        doc.note(item.statement, "names no address; any address is used")
        return ""


def _proxy(doc: Document, proto: str, at: Item) -> Proxy | None:
    socks = doc.last("socks-proxy")
    http = doc.last("http-proxy")
    if socks and http:
        message = "http-proxy and socks-proxy exclude another"
        doc.report(http.statement, message, code="QV-108")
        return None
    if http:
        return _http_proxy(doc, http, proto, at)
    if not socks:
        return None
    name = password = None
    found = (doc.outer or doc).material("socks-proxy-user-pass")
    if path := socks.value(2):
        found = doc.read(socks.statement, path, 3)
    if found:
        name, password = name_and_password(doc, found)
    return Proxy(
        "socks",
        socks.values[0],
        socks.value(1, 1080),
        "basic" if name else "none",
        name or "",
        password or "",
    )


def _http_proxy(
    doc: Document, item: Item, proto: str, at: Item
) -> Proxy | None:
    if proto != "tcp":
        message = "http-proxy needs TCP: write proto tcp"
        doc.report(at.statement, message)
        return None
    # http-proxy HOST PORT [FILE|auto|auto-nct|none] [METHOD]
    source = item.value(2, "none")
    auth = "none"
    name = password = None
    if source in {"auto", "auto-nct"}:
        auth = source
    elif source != "none":
        auth = item.value(3, "basic")
        found = None
        if source != INLINE:
            found = doc.read(item.statement, source, 3)
        if found:
            name, password = name_and_password(doc, found)
    outer = doc.outer or doc
    if (own := outer.material("http-proxy-user-pass")) is not None:
        name, password = name_and_password(doc, own)
        auth = auth if auth != "none" else "basic"
    if auth not in HTTP_AUTH:
        doc.report(item.statement, "http-proxy: unknown method", 4)
    if auth == "ntlm":
        doc.report(item.statement, "http-proxy: write ntlm2, ntlm is unsafe", 4)
    agent, headers = _http_options(doc)
    return Proxy(
        "http",
        item.values[0],
        item.values[1],
        auth,
        name or "",
        password or "",
        agent,
        headers,
    )


def _http_options(doc: Document) -> tuple[str, tuple[tuple[str, str], ...]]:
    agent = ""
    headers: list[tuple[str, str]] = []
    outer = doc.outer.all("http-proxy-option") if doc.outer else []
    for item in outer + doc.all("http-proxy-option"):
        kind, words = item.values[0], item.values[1:]
        if not all(w.isprintable() for w in words):
            doc.report(item.statement, "http-proxy-option: not printable", 2)
        elif kind == "AGENT" and len(words) == 1:
            agent = words[0]
        elif kind == "CUSTOM-HEADER" and words:
            name, _, rest = words[0].partition(":")
            value = words[1] if len(words) > 1 else rest
            headers.append((name.strip(), value.strip()))
        elif kind != "VERSION" or len(words) != 1:
            message = "http-proxy-option takes AGENT, VERSION, CUSTOM-HEADER"
            doc.report(item.statement, message, 1)
    return agent, tuple(headers)
