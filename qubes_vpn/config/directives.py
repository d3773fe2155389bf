"""THE table: every directive of OpenVPN 2.6 and 2.7, and what we do with it.

One row is one name. `usage` gives the arguments by their kinds (values.KINDS),
as in the man page: `[x]` may be left out, `x...` is one or more. A directive
that is not here is an error in a file, and is counted and not applied when a
server pushes it.
Source: OpenVPN's doc/man-sections and options.c (add_option), 2.6 to 2.7.6.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, Flag, auto
from types import MappingProxyType
from typing import Any, Final

from qubes_vpn.config.values import KINDS


class Scope(Flag):
    """Where a directive may stand."""

    CLIENT = auto()
    SERVER = auto()
    CONNECTION = auto()
    PUSHED = auto()
    CCD = auto()
    FILE = CLIENT | SERVER


_SERVER_SIDE: Final = Scope.SERVER | Scope.CCD


class Support(Enum):
    """What becomes of a directive."""

    APPLY = "apply"
    IGNORE = "ignore"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Directive:
    """One row of the table.

    why: for a person, unless the directive is applied. block: may be given
    inline. alias: the row that this name means. deprecated: what the
    directive means today. server: what a server does, if not the same.
    """

    name: str
    usage: str = ""
    scope: Scope = Scope.FILE
    support: Support = Support.APPLY
    why: str = ""
    block: bool = False
    alias: str = ""
    deprecated: str = ""
    server: Support | None = None

    def support_for(self, scope: Scope) -> Support:
        """Say what becomes of the directive where it stands."""
        if self.server is not None and scope in _SERVER_SIDE:
            return self.server
        return self.support

    def read(self, args: tuple[str, ...]) -> tuple[Any, ...]:
        """Turn the arguments into values, by the usage.

        Raises ArgumentError.
        """
        return _SHAPES[self.name].read(self, args)


class ArgumentError(ValueError):
    """An argument is wrong. word: which, from 1; 0 when the number is."""

    def __init__(self, message: str, word: int) -> None:
        super().__init__(message)
        self.word = word


@dataclass(frozen=True, slots=True)
class _Shape:
    """A usage, read once: kinds by position, how many must be there."""

    kinds: tuple[str, ...]
    least: int
    endless: bool

    def read(self, row: Directive, args: tuple[str, ...]) -> tuple[Any, ...]:
        if len(args) < self.least:
            missing = f"needs {row.usage}" if row.usage else "is incomplete"
            raise ArgumentError(f"{row.name} {missing}", 0)
        if len(args) > len(self.kinds) and not self.endless:
            most = len(self.kinds)
            extra = f"takes {row.usage}" if most else "takes no argument"
            raise ArgumentError(f"{row.name} {extra}", most + 1)
        found = []
        for index, word in enumerate(args):
            kind = self.kinds[min(index, len(self.kinds) - 1)]
            try:
                found.append(KINDS[kind](word))
            except ValueError as error:
                message = f"{row.name} {error}"
                raise ArgumentError(message, index + 1) from None
        return tuple(found)


def _shape(usage: str) -> _Shape:
    kinds: list[str] = []
    least = 0
    endless = False
    for token in usage.split():
        endless = "..." in token
        kinds.append(token.strip("[].") if endless else token.strip("[]"))
        assert kinds[-1] in KINDS, usage
        least += not token.startswith("[")
    return _Shape(tuple(kinds), least, endless)


_CLIENT: Final = Scope.CLIENT
_SERVER: Final = Scope.SERVER
_FILE: Final = Scope.FILE
_PUSHED: Final = Scope.PUSHED
_CCD: Final = Scope.CCD
_REMOTE: Final = Scope.FILE | Scope.CONNECTION
_BOTH: Final = Scope.FILE | Scope.PUSHED  # a file's, and pushable
_INSTANCE: Final = Scope.SERVER | Scope.CCD
_APPLY: Final = Support.APPLY
_IGNORE: Final = Support.IGNORE
_REFUSE: Final = Support.REFUSE

_SCRIPT = "no scripts are run"
_SERVICE = "systemd does this"
_LOGS = "messages go to the journal; see --verbose"
_WINDOWS = "for Windows only"
_PERSIST = "keys and the device always persist"
_SECURITY = "the service drops its privileges by itself"
_MANAGEMENT = "there is a status socket of our own"
_SERVERS = "only a server needs it"
_TAP = "only for layer 2 (tap)"
_TOKEN = "keys on a token are not supported; export the key to a file"  # noqa: S105  (prose)
_COMMAND = "is a command of openvpn itself, not part of a profile"
_GONE = "OpenVPN no longer does anything with it"
_TUNING = "sizes itself as needed"
_TUN_MTU = "tun-mtu is the size that counts"
_UNFRAMED = "a server's packets are not framed for compression; take it out, and out of the clients' profiles"
_CLIENTS = "is for clients: push it"
_ROUTING = "routes only ever lead into the tunnel"


def _table(rows: Iterable[Directive]) -> Mapping[str, Directive]:
    table: dict[str, Directive] = {}
    for row in rows:
        assert row.name not in table, row.name
        applied = row.support is _APPLY and row.server in {None, _APPLY}
        assert bool(row.why) != applied or row.alias, row.name
        table[row.name] = row
    assert all(not row.alias or row.alias in table for row in table.values())
    return MappingProxyType(table)


# fmt: off
DIRECTIVES: Final = _table((
    # -- servers and how to reach them ------------------------------------
    Directive("client", "", _CLIENT),
    Directive("pull", "", _CLIENT),
    Directive("tls-client", "", _CLIENT),
    Directive("remote", "host [port] [proto]", _CLIENT | Scope.CONNECTION),
    Directive("connection", "text", _CLIENT, block=True),
    Directive("remote-random", "", _CLIENT),
    Directive("remote-random-hostname", "", _CLIENT, _IGNORE, "names are resolved as they are written"),
    Directive("proto", "proto", _REMOTE),
    Directive("proto-force", "proto", _CLIENT),
    Directive("port", "port", _REMOTE),
    Directive("lport", "size", _REMOTE),
    Directive("rport", "port", _CLIENT | Scope.CONNECTION),
    Directive("local", "text [port] [proto]", _REMOTE),
    Directive("bind", "[text]", _REMOTE),
    Directive("nobind", "", _CLIENT | Scope.CONNECTION),
    Directive("float", "", _REMOTE, _IGNORE, "the lock lets in the server's own address alone", server=_APPLY),
    Directive("resolv-retry", "text", _CLIENT, _IGNORE, "a name is asked for again until it is answered"),
    Directive("connect-retry", "seconds [seconds]", _CLIENT | Scope.CONNECTION),
    Directive("connect-retry-max", "text", _CLIENT | Scope.CONNECTION),
    Directive("connect-timeout", "seconds", _CLIENT | Scope.CONNECTION),
    Directive("server-poll-timeout", "seconds", _CLIENT | Scope.CONNECTION, alias="connect-timeout"),
    Directive("preresolve", "[text]", _FILE, _IGNORE, "names are resolved before the network closes"),
    Directive("ip-remote-hint", "[text]", _FILE, alias="preresolve"),
    Directive("multihome", "[text]", _FILE, _IGNORE, "name the address to use with local"),
    Directive("explicit-exit-notify", "[count]", _REMOTE | _PUSHED),
    Directive("http-proxy", "host port [text] [text]", _CLIENT | Scope.CONNECTION),
    Directive("http-proxy-user-pass", "file", _CLIENT, block=True),
    Directive("http-proxy-option", "text [text] [text]", _CLIENT | Scope.CONNECTION),
    Directive("http-proxy-override", "text text [text]", _CLIENT, _IGNORE, "comes from a management interface; write http-proxy"),
    Directive("http-proxy-retry", "[text...]", _CLIENT | Scope.CONNECTION, _IGNORE, "a proxy is always tried again"),
    Directive("http-proxy-timeout", "[text...]", _CLIENT | Scope.CONNECTION, _IGNORE, "connect-timeout holds for the proxy too"),
    Directive("socks-proxy", "host [port] [file]", _CLIENT | Scope.CONNECTION),
    # Not OpenVPN's: the inline form of the file that socks-proxy names.
    Directive("socks-proxy-user-pass", "file", _CLIENT, block=True),
    Directive("socks-proxy-retry", "[text...]", _CLIENT | Scope.CONNECTION, _IGNORE, "a proxy is always tried again"),
    Directive("tcp-nodelay", "", _BOTH, _IGNORE, "TCP never waits to fill a segment"),
    Directive("socket-flags", "[text...]", _BOTH, _IGNORE, "TCP never waits to fill a segment"),
    Directive("mark", "text", _FILE, _IGNORE, "the mark belongs to the lock, which knows our packets by it"),
    Directive("bind-dev", "text...", _FILE, _IGNORE, "the uplink is the only way out of this qube"),
    Directive("sndbuf", "bytes", _BOTH),
    Directive("rcvbuf", "bytes", _BOTH),
    Directive("passtos", "", _FILE, _IGNORE, "would show what kind of traffic a packet is"),
    Directive("mtu-disc", "text", _REMOTE, _IGNORE, "packets are sized to fit; see mssfix"),
    Directive("mtu-test", "", _FILE, _IGNORE, "there is a probe of our own: qubes-vpn audit"),
    Directive("fast-io", "", _FILE, _IGNORE, "packets are moved in batches anyway"),
    Directive("allow-recursive-routing", "", _CLIENT, _IGNORE, _ROUTING),

    # -- the device and what it carries -----------------------------------
    Directive("dev", "text"),
    Directive("dev-type", "text"),
    Directive("dev-node", "text", _FILE, _IGNORE, "the device is made by the kernel"),
    Directive("disable-dco", "[text...]", _FILE, _IGNORE, "the plane is chosen with --plane"),
    Directive("mode", "text"),
    Directive("topology", "text", _BOTH),
    Directive("tun-ipv6", "", _BOTH, _IGNORE, "the tunnel always carries IPv6"),
    Directive("tun-mtu", "mtu [mtu]", _REMOTE | _PUSHED),
    Directive("tun-mtu-max", "mtu [text]", _REMOTE, why="nobody pushes a server its tun-mtu", server=_IGNORE),
    Directive("tun-mtu-extra", "size", _REMOTE, _IGNORE, "matters only to tap devices"),
    Directive("link-mtu", "mtu", _REMOTE, why=_TUN_MTU, deprecated=_TUN_MTU, server=_IGNORE),
    Directive("udp-mtu", "mtu", _REMOTE, alias="link-mtu"),
    Directive("max-packet-size", "mtu", _REMOTE),
    Directive("mtu-dynamic", "[text...]", _REMOTE, _REFUSE, "was replaced by fragment"),
    Directive("fragment", "size [mtu|fixed]", _REMOTE, why="a server neither cuts packets nor joins them; see mssfix", server=_REFUSE),
    Directive("mssfix", "[size] [mtu|fixed]", _REMOTE),
    Directive("ifconfig", "ipv4 ipv4", _BOTH),
    Directive("ifconfig-ipv6", "ipv6/bits ipv6", _BOTH),
    Directive("ifconfig-noexec", "", _BOTH, _IGNORE, "addresses are set by the keeper"),
    Directive("ifconfig-nowarn", "", _BOTH, _IGNORE, "nothing is warned about"),
    Directive("lladdr", "text", _BOTH, _IGNORE, _TAP),
    Directive("route", "target [netmask] [gateway] [text]", _BOTH),
    Directive("route-ipv6", "ipv6net [gateway] [text]", _BOTH),
    Directive("route-gateway", "dhcp|ipv4", _BOTH, _IGNORE, _ROUTING),
    Directive("route-ipv6-gateway", "ipv6", _BOTH, _IGNORE, _ROUTING),
    Directive("route-metric", "count", _BOTH),
    Directive("route-table", "count", _BOTH, _IGNORE, "routes have a table of our own"),
    Directive("route-delay", "[count] [count]", _BOTH, _IGNORE, "routes are set as soon as the device is up"),
    Directive("route-method", "text", _BOTH, _IGNORE, _WINDOWS),
    Directive("route-noexec", "", _FILE, _IGNORE, "without routes nothing would be carried"),
    Directive("route-nopull", "", _CLIENT),
    Directive("pull-filter", "text text", _CLIENT),
    Directive("allow-pull-fqdn", "", _CLIENT, _IGNORE, "names in pushed routes are never resolved"),
    Directive("redirect-gateway", "[redirect...]", _BOTH, why=_CLIENTS, server=_IGNORE),
    Directive("redirect-private", "[redirect...]", _BOTH, _IGNORE, _ROUTING),
    Directive("block-ipv6", "", _BOTH, why=_CLIENTS, server=_IGNORE),
    Directive("max-routes", "[text]", _FILE, _IGNORE, "1008 routes are taken"),
    Directive("client-nat", "text text text text", _BOTH, _REFUSE, "addresses are not translated inside the tunnel"),
    Directive("dhcp-option", "text [text...]", _BOTH, why=_CLIENTS, server=_IGNORE),
    Directive("dns", "text...", _BOTH, why=_CLIENTS, server=_IGNORE),
    Directive("shaper", "count", _BOTH, _IGNORE, "limit the qube's bandwidth instead"),
    Directive("txqueuelen", "count", _FILE, _IGNORE, _TUNING),
    Directive("iproute", "text", _FILE, _IGNORE, "the kernel is asked directly"),
    Directive("mktun", "", _FILE, _REFUSE, _COMMAND),
    Directive("rmtun", "", _FILE, _REFUSE, _COMMAND),

    # -- the data channel ---------------------------------------------------
    Directive("cipher", "text", _BOTH),
    Directive("data-ciphers", "text"),
    Directive("ncp-ciphers", "text", alias="data-ciphers"),
    Directive("data-ciphers-fallback", "text"),
    Directive("ncp-disable", "", _FILE, _IGNORE, "was removed in OpenVPN 2.6: both sides always negotiate"),
    Directive("keysize", "count", _FILE, _IGNORE, "was removed in OpenVPN 2.6: the cipher has its own size"),
    Directive("auth", "text"),
    Directive("secret", "file [bit]", block=True),
    Directive("allow-deprecated-insecure-static-crypto", "[text...]"),
    Directive("key-direction", "bit", _REMOTE),
    Directive("replay-window", "window [window-time]"),
    Directive("mute-replay-warnings", "", _FILE, _IGNORE, "replays are counted, not logged"),
    Directive("no-replay", "", _FILE, _IGNORE, "replayed packets are always dropped"),
    Directive("no-iv", "", _FILE, _IGNORE, _GONE),
    Directive("replay-persist", "text", _FILE, _IGNORE, "every session has fresh keys"),
    Directive("use-prediction-resistance", "", _FILE, _IGNORE, _GONE),
    Directive("prng", "text [text]", _FILE, _IGNORE, _GONE),
    Directive("engine", "[text]", _FILE, _IGNORE, "OpenSSL's own code is used"),
    Directive("providers", "text...", _FILE, _IGNORE, "OpenSSL's own code is used"),
    Directive("compress", "[text]", _BOTH, why=_UNFRAMED, server=_REFUSE, deprecated="nothing is compressed any more; packets are only framed so"),
    Directive("comp-lzo", "[text]", _BOTH, why=_UNFRAMED, server=_REFUSE, deprecated="nothing is compressed any more; packets are only framed so"),
    Directive("comp-noadapt", "", _BOTH, _IGNORE, "nothing is compressed"),
    Directive("allow-compression", "text", why="nothing is compressed", server=_IGNORE),
    Directive("test-crypto", "", _FILE, _REFUSE, _COMMAND),
    Directive("disable-occ", "", _FILE, _IGNORE, "options are compared only for their cipher"),
    Directive("opt-verify", "", _FILE, _IGNORE, "options are compared only for their cipher"),
    Directive("compat-mode", "text [text]"),

    # -- keep-alive and time ------------------------------------------------
    Directive("ping", "seconds", _BOTH),
    Directive("ping-restart", "seconds", _BOTH),
    Directive("ping-exit", "seconds", _BOTH, why="the network never ends a server", server=_IGNORE),
    Directive("ping-timer-rem", "", _BOTH, _IGNORE, "the server's address is always known"),
    Directive("keepalive", "seconds seconds"),
    Directive("inactive", "seconds [bytes]", _BOTH),
    Directive("session-timeout", "seconds", _BOTH),
    Directive("persist-tun", "", _BOTH, _IGNORE, _PERSIST),
    Directive("persist-key", "", _BOTH, _IGNORE, _PERSIST),
    Directive("persist-local-ip", "", _BOTH, _IGNORE, _PERSIST),
    Directive("persist-remote-ip", "", _BOTH, _IGNORE, "every address of the server is tried"),
    Directive("remap-usr1", "text", _FILE, _IGNORE, _SERVICE),

    # -- TLS ----------------------------------------------------------------
    Directive("tls-server", "", _SERVER),
    Directive("ca", "file", block=True),
    Directive("capath", "file", _FILE, _REFUSE, "a folder of certificates is not read; name one file with ca"),
    Directive("cert", "file", block=True),
    Directive("extra-certs", "file", block=True),
    Directive("key", "file", block=True),
    Directive("pkcs12", "file", block=True),
    Directive("dh", "file", _FILE, _IGNORE, "only a server needs it", block=True, server=_APPLY),
    Directive("askpass", "[file]", block=True),  # the block is not OpenVPN's
    Directive("peer-fingerprint", "hash", block=True),
    Directive("verify-hash", "hash [text]", block=True),
    Directive("verify-x509-name", "text [text]"),
    Directive("tls-remote", "text", _FILE, _REFUSE, "was removed; write: verify-x509-name NAME name"),
    Directive("remote-cert-tls", "text"),
    Directive("remote-cert-ku", "[ku...]"),
    Directive("remote-cert-eku", "text"),
    Directive("ns-cert-type", "text", deprecated="remote-cert-tls is what servers' certificates carry today"),
    Directive("x509-username-field", "text..."),
    Directive("x509-track", "text", _FILE, _IGNORE, _SCRIPT),
    Directive("compat-names", "[text...]", _FILE, _REFUSE, "was removed in OpenVPN 2.5"),
    Directive("no-name-remapping", "", _FILE, _REFUSE, "was removed in OpenVPN 2.5"),
    Directive("crl-verify", "file [text]", block=True),
    Directive("tls-verify", "text...", _FILE, _REFUSE, _SCRIPT + ", and a check of certificates must not be left out"),
    Directive("tls-export-cert", "text", _FILE, _IGNORE, _SCRIPT),
    Directive("tls-auth", "file [bit]", _REMOTE, block=True),
    Directive("tls-crypt", "file [text]", _REMOTE, block=True),
    Directive("tls-crypt-v2", "file [text]", _REMOTE, block=True),
    Directive("tls-version-min", "text [text]"),
    Directive("tls-version-max", "text"),
    Directive("tls-cipher", "text"),
    Directive("tls-ciphersuites", "text"),
    Directive("tls-groups", "text"),
    Directive("ecdh-curve", "text", _FILE, _IGNORE, "OpenVPN 2.6 negotiates the curve; see tls-groups"),
    Directive("tls-cert-profile", "text"),
    Directive("tls-timeout", "seconds"),
    Directive("tls-exit", "", _FILE, _IGNORE, "the network never ends the service"),
    Directive("hand-window", "seconds"),
    Directive("tran-window", "seconds"),
    Directive("reneg-sec", "seconds [seconds]"),
    Directive("reneg-bytes", "bytes"),
    Directive("reneg-pkts", "bytes"),
    Directive("single-session", "", _FILE, _IGNORE, "a session ends when the next begins"),
    Directive("key-method", "text", _FILE, _IGNORE, "method 2 is the only one since OpenVPN 2.5"),
    Directive("keying-material-exporter", "text count [text]", _FILE, _IGNORE, _SCRIPT),
    Directive("force-tls-key-material-export", "[text...]", _SERVER),
    Directive("cryptoapicert", "text", _FILE, _REFUSE, "is a key in Windows' store; export it to a file"),
    Directive("pkcs11-providers", "text...", _FILE, _REFUSE, _TOKEN),
    Directive("pkcs11-protected-authentication", "[text...]", _FILE, _IGNORE, _TOKEN),
    Directive("pkcs11-private-mode", "text...", _FILE, _IGNORE, _TOKEN),
    Directive("pkcs11-cert-private", "[text...]", _FILE, _IGNORE, _TOKEN),
    Directive("pkcs11-pin-cache", "text", _FILE, _IGNORE, _TOKEN),
    Directive("pkcs11-id", "text", _FILE, _REFUSE, _TOKEN),
    Directive("pkcs11-id-management", "", _FILE, _REFUSE, _TOKEN),

    # -- who we are ----------------------------------------------------------
    Directive("auth-user-pass", "[file]", _CLIENT, block=True),
    Directive("auth-retry", "text", _CLIENT),
    Directive("auth-nocache", "", why="a server keeps no passwords", server=_IGNORE),
    Directive("static-challenge", "text text [text]", _CLIENT),
    Directive("push-peer-info", "", _CLIENT),
    Directive("auth-token", "text", _PUSHED),
    Directive("auth-token-user", "text", _PUSHED),
    Directive("setenv", "text [text...]"),
    Directive("setenv-safe", "text [text...]", _BOTH, _IGNORE, _SCRIPT),

    # -- negotiated, pushed only --------------------------------------------
    Directive("peer-id", "count", _PUSHED),
    Directive("key-derivation", "text...", _PUSHED),
    Directive("protocol-flags", "text...", _PUSHED),
    Directive("push-continuation", "count", _PUSHED),

    # -- a server's ------------------------------------------------------------
    Directive("server", "ipv4 netmask [text]", _SERVER),
    Directive("server-ipv6", "ipv6/bits", _SERVER),
    Directive("server-bridge", "[text...]", _SERVER, _REFUSE, _TAP),
    Directive("push", "text", _INSTANCE | _CLIENT, _IGNORE, _SERVERS, server=_APPLY),
    Directive("push-reset", "", _CCD),
    Directive("push-remove", "text", _CCD),
    Directive("ifconfig-pool", "ipv4 ipv4 [netmask]", _SERVER),
    Directive("ifconfig-pool-persist", "text [seconds]", _SERVER),
    Directive("ifconfig-ipv6-pool", "ipv6/bits", _SERVER),
    Directive("ifconfig-push", "text text [text]", _CCD),
    Directive("ifconfig-ipv6-push", "ipv6/bits [ipv6]", _CCD),
    Directive("ifconfig-push-constraint", "ipv4 netmask", _FILE, _IGNORE, _SERVERS, server=_APPLY),
    Directive("iroute", "ipv4 [netmask]", _CCD),
    Directive("iroute-ipv6", "ipv6net", _CCD),
    Directive("disable", "", _CCD),
    Directive("override-username", "text", _CCD),
    Directive("client-to-client", "", _SERVER),
    Directive("duplicate-cn", "", _SERVER),
    Directive("client-config-dir", "file", _SERVER),
    Directive("ccd-exclusive", "", _SERVER),
    Directive("max-clients", "count", _FILE, _IGNORE, _SERVERS, server=_APPLY),
    Directive("max-routes-per-client", "count", _FILE, _IGNORE, _SERVERS, server=_APPLY),
    Directive("connect-freq", "count seconds", _SERVER),
    Directive("connect-freq-initial", "count seconds", _FILE, _IGNORE, _SERVERS, server=_APPLY),
    Directive("hash-size", "count count", _SERVER, _IGNORE, _TUNING),
    Directive("bcast-buffers", "count", _FILE, _IGNORE, _TAP),
    Directive("tcp-queue-limit", "count", _FILE, _IGNORE, _TUNING),
    Directive("stale-routes-check", "seconds [seconds]", _SERVER, _IGNORE, "routes of a client go with it"),
    Directive("learn-address", "text...", _SERVER, _IGNORE, _SCRIPT),
    Directive("client-connect", "text...", _SERVER, _REFUSE, _SCRIPT + ", and it decides who may connect; see client-config-dir"),
    Directive("client-disconnect", "text...", _SERVER, _IGNORE, _SCRIPT),
    Directive("client-crresponse", "text...", _SERVER, _REFUSE, _SCRIPT + ", and it decides who may connect"),
    Directive("auth-user-pass-verify", "text...", _SERVER, _REFUSE, _SCRIPT + "; passwords are checked with --passwords or --pam"),
    Directive("auth-user-pass-optional", "", _SERVER),
    Directive("auth-gen-token", "[text...]", _SERVER),
    Directive("auth-gen-token-secret", "file", _FILE, _IGNORE, _SERVERS, block=True, server=_APPLY),
    Directive("verify-client-cert", "[text]", _FILE, _IGNORE, _SERVERS, server=_APPLY),
    Directive("client-cert-not-required", "", _SERVER, _REFUSE, "was removed in OpenVPN 2.5; write: verify-client-cert none"),
    Directive("username-as-common-name", "", _SERVER),
    Directive("tls-crypt-v2-verify", "text", _FILE, _IGNORE, _SCRIPT + "; see tls-crypt-v2-max-age", server=_REFUSE),
    Directive("tls-crypt-v2-max-age", "count", _SERVER),
    Directive("port-share", "text text [text]", _SERVER, _REFUSE, "let another program share the port"),
    Directive("vlan-tagging", "", _SERVER, _REFUSE, _TAP),
    Directive("vlan-accept", "text", _SERVER, _REFUSE, _TAP),
    Directive("vlan-pvid", "text", _INSTANCE | _CLIENT, _IGNORE, _TAP, server=_REFUSE),
    Directive("tmp-dir", "text", _FILE, _IGNORE, "no temporary files are written"),

    # -- files, messages, processes ---------------------------------------------
    Directive("config", "file"),
    Directive("cd", "text"),
    Directive("ignore-unknown-option", "text..."),
    Directive("echo", "[text...]", _BOTH, _IGNORE, "nobody reads it here"),
    Directive("parameter", "[text...]", _BOTH, alias="echo"),
    Directive("verb", "text", _BOTH, _IGNORE, _LOGS),
    Directive("mute", "text", _BOTH, _IGNORE, _LOGS),
    Directive("errors-to-stderr", "", _BOTH, _IGNORE, _LOGS),
    Directive("log", "text", _FILE, _IGNORE, _LOGS),
    Directive("log-append", "text", _FILE, _IGNORE, _LOGS),
    Directive("syslog", "[text]", _FILE, _IGNORE, _LOGS),
    Directive("suppress-timestamps", "", _FILE, _IGNORE, _LOGS),
    Directive("machine-readable-output", "", _FILE, _IGNORE, _LOGS),
    Directive("status", "text [seconds]", _FILE, _IGNORE, "see: qubes-vpn status", server=_APPLY),
    Directive("status-version", "[text]", _FILE, _IGNORE, "see: qubes-vpn status", server=_APPLY),
    Directive("daemon", "[text]", _FILE, _IGNORE, _SERVICE),
    Directive("writepid", "text", _FILE, _IGNORE, _SERVICE),
    Directive("nice", "integer", _FILE, _IGNORE, _SERVICE),
    Directive("mlock", "", _FILE, _IGNORE, _SERVICE),
    Directive("user", "text", _FILE, _IGNORE, _SECURITY),
    Directive("group", "text", _FILE, _IGNORE, _SECURITY),
    Directive("chroot", "text", _FILE, _IGNORE, _SECURITY),
    Directive("setcon", "text", _FILE, _IGNORE, _SECURITY),
    Directive("script-security", "text", _FILE, _IGNORE, _SCRIPT),
    Directive("up", "text...", _FILE, _IGNORE, _SCRIPT),
    Directive("down", "text...", _FILE, _IGNORE, _SCRIPT),
    Directive("up-delay", "", _FILE, _IGNORE, _SCRIPT),
    Directive("down-pre", "", _FILE, _IGNORE, _SCRIPT),
    Directive("up-restart", "", _FILE, _IGNORE, _SCRIPT),
    Directive("ipchange", "text...", _FILE, _IGNORE, _SCRIPT),
    Directive("route-up", "text...", _FILE, _IGNORE, _SCRIPT),
    Directive("route-pre-down", "text...", _FILE, _IGNORE, _SCRIPT),
    Directive("dns-updown", "text...", _FILE, _IGNORE, "DNS is set without a script"),
    Directive("plugin", "text...", _FILE, _IGNORE, "no plugins are loaded", server=_APPLY),
    Directive("gremlin", "text", _FILE, _IGNORE, "no packets are broken on purpose"),
    Directive("memstats", "text", _FILE, _IGNORE, "see: qubes-vpn status"),

    # -- management interface -------------------------------------------------
    Directive("management", "text text [text]", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-client", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-client-user", "text", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-client-group", "text", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-client-auth", "", _FILE, _IGNORE, _MANAGEMENT, server=_REFUSE),
    Directive("management-client-pf", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-query-passwords", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-query-remote", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-query-proxy", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-hold", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-signal", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-forget-disconnect", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-up-down", "", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-log-cache", "text", _FILE, _IGNORE, _MANAGEMENT),
    Directive("management-external-key", "[text...]", _FILE, _REFUSE, "the key must be in the profile"),
    Directive("management-external-cert", "text", _FILE, _REFUSE, "the certificate must be in the profile"),

    # -- other systems -----------------------------------------------------------
    Directive("windows-driver", "text", _FILE, _IGNORE, _WINDOWS),
    Directive("win-sys", "text", _FILE, _IGNORE, _WINDOWS),
    Directive("ip-win32", "text [text] [text]", _BOTH, _IGNORE, _WINDOWS),
    Directive("msg-channel", "text...", _FILE, _IGNORE, _WINDOWS),
    Directive("tap-sleep", "text", _BOTH, _IGNORE, _WINDOWS),
    Directive("dhcp-renew", "", _BOTH, _IGNORE, _WINDOWS),
    Directive("dhcp-release", "", _BOTH, _IGNORE, _WINDOWS),
    Directive("dhcp-pre-release", "", _BOTH, _IGNORE, _WINDOWS),
    Directive("dhcp-internal", "text", _FILE, _IGNORE, _WINDOWS),
    Directive("rdns-internal", "", _FILE, _IGNORE, _WINDOWS),
    Directive("register-dns", "", _BOTH, _IGNORE, _WINDOWS),
    Directive("block-outside-dns", "", _BOTH, _IGNORE, "DNS never leaves outside the tunnel"),
    Directive("service", "text [text]", _FILE, _IGNORE, _WINDOWS),
    Directive("pause-exit", "", _FILE, _IGNORE, _WINDOWS),
    Directive("allow-nonadmin", "[text]", _FILE, _IGNORE, _WINDOWS),
    Directive("show-net-up", "", _BOTH, _IGNORE, _WINDOWS),

    # -- commands of openvpn, not directives -------------------------------------
    *(Directive(name, "[text...]", _FILE, _REFUSE, _COMMAND) for name in (
        "help", "version", "genkey", "show-ciphers", "show-digests", "show-engines", "show-tls", "show-curves", "show-groups",
        "show-gateway", "show-pkcs11-ids", "show-adapters", "show-net", "show-valid-subnets",
    )),
))
# fmt: on

_SHAPES: Final = {row.name: _shape(row.usage) for row in DIRECTIVES.values()}


def nearest(name: str) -> str:
    """Return the known name that is most like `name`, or nothing."""
    found = get_close_matches(name[:64].lower(), DIRECTIVES, n=1, cutoff=0.75)
    return found[0] if found else ""
