"""A profile as text again: one file that holds everything.

What is written parses to the same value, but for `notes`: directives that
are not applied are not written. Connection blocks come first, because what
stands after a block does not hold inside it.
"""

import base64
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from qubes_vpn.config.model import (
    ClientProfile,
    ControlWrapKey,
    Identity,
    Proxy,
    Remote,
    ServerCheck,
    TlsOptions,
)
from qubes_vpn.config.trust import ANY_USAGE
from qubes_vpn.wire.keyfile import (
    ClientKeyV2,
    format_client_key_v2,
    format_static_key,
)

REDACTED: Final = "[redacted]"
_LINE: Final = 64
_DEFAULT: Final = {
    one.name: one.default for one in fields(ClientProfile) if one.default
}
_COMPRESS: Final = {
    "swap": "compress",
    "stub-v2": "compress stub-v2",
    "lzo-rx": "compress lzo",
    "lz4-rx": "compress lz4",
    "lz4-v2-rx": "compress lz4-v2",
}
# Directives whose one argument is a field of ClientProfile.
_NUMBERS: Final = (
    ("ping", "ping"),
    ("ping-restart", "ping_restart"),
    ("ping-exit", "ping_exit"),
    ("hand-window", "hand_window"),
    ("tran-window", "tran_window"),
    ("tls-timeout", "tls_timeout"),
    ("session-timeout", "session_timeout"),
    ("reneg-bytes", "reneg_bytes"),
    ("reneg-pkts", "reneg_pkts"),
    ("link-mtu", "link_mtu"),
    ("fragment", "fragment"),
    ("max-packet-size", "max_packet_size"),
    ("sndbuf", "sndbuf"),
    ("rcvbuf", "rcvbuf"),
    ("connect-retry-max", "connect_retry_max"),
)
_FLAGS: Final = (
    ("remote-random", "remote_random"),
    ("auth-nocache", "auth_nocache"),
    ("route-nopull", "route_nopull"),
    ("block-ipv6", "block_ipv6"),
    ("push-peer-info", "push_peer_info"),
)


def write_profile(profile: ClientProfile, *, redact: bool = False) -> str:
    """Give the text of a profile, all files inlined.

    redact: keys and passwords are left out; it does not parse then.
    """
    writer = _Writer(redact=redact)
    parts = (
        writer.remotes(profile),
        writer.basics(profile),
        writer.times(profile),
        writer.network(profile),
        writer.trust(profile.server_check),
        writer.tls(profile.tls),
        writer.identity(profile.identity),
        writer.login(profile),
        writer.wrap(profile.control_wrap),
        writer.secret(profile),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def quoted(word: str) -> str:
    """Write one word so that the lexer reads it back."""
    plain = word.replace("-", "").replace(".", "").replace("_", "")
    if plain.isalnum() and plain.isascii():
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _line(*words: object) -> str:
    return " ".join(quoted(str(word)) for word in words)


def _mssfix(of: Remote | ClientProfile) -> Iterator[str]:
    size = of.mssfix
    if size is not None:
        words = [size, *filter(None, [of.mssfix_of])] if size >= 0 else []
        yield _line("mssfix", *words)


class _Writer:
    """Writes the parts of a profile as lines."""

    def __init__(self, *, redact: bool) -> None:
        self._redact = redact

    def _block(
        self, name: str, content: str, *, is_secret: bool = False
    ) -> Iterator[str]:
        yield f"<{name}>"
        if is_secret and self._redact:
            yield REDACTED
        else:
            yield content.removesuffix("\n")
        yield f"</{name}>"

    # -- servers -------------------------------------------------------------

    def remotes(self, profile: ClientProfile) -> Iterator[str]:
        """Write a connection block for every server."""
        proxies = [one.proxy for one in profile.remotes if one.proxy]
        for kind in ("http", "socks"):
            for proxy in [p for p in proxies if p.kind == kind][:1]:
                if proxy.username or proxy.password:
                    login = f"{proxy.username}\n{proxy.password}\n"
                    name = f"{kind}-proxy-user-pass"
                    yield from self._block(name, login, is_secret=True)
        for remote in profile.remotes:
            yield "<connection>"
            yield from self._remote(remote)
            yield "</connection>"

    def _remote(self, remote: Remote) -> Iterator[str]:
        proto = f"{remote.proto}{remote.family or ''}"
        yield _line("remote", remote.host, remote.port, proto)
        yield _line("connect-timeout", remote.connect_timeout)
        for name, value in (
            ("explicit-exit-notify", remote.explicit_exit_notify or None),
            ("lport", remote.lport or None),
            ("local", remote.local or None),
            ("max-packet-size", remote.max_packet_size),
            ("tun-mtu", remote.tun_mtu),
            ("fragment", remote.fragment or None),
        ):
            if value is not None:
                yield _line(name, value)
        yield from _mssfix(remote)
        if remote.proxy:
            yield from self._proxy(remote.proxy)
        if remote.control_wrap:
            yield from self.wrap(remote.control_wrap)

    def _proxy(self, proxy: Proxy) -> Iterator[str]:
        if proxy.kind == "socks":
            yield _line("socks-proxy", proxy.host, proxy.port)
            return
        if proxy.auth in {"auto", "auto-nct", "none"}:
            yield _line("http-proxy", proxy.host, proxy.port, proxy.auth)
        else:
            yield _line(
                "http-proxy", proxy.host, proxy.port, "[inline]", proxy.auth
            )
        if proxy.user_agent:
            yield _line("http-proxy-option", "AGENT", proxy.user_agent)
        for name, value in proxy.headers:
            yield _line("http-proxy-option", "CUSTOM-HEADER", name, value)

    # -- the rest ------------------------------------------------------------

    def basics(self, profile: ClientProfile) -> Iterator[str]:
        """Write what a profile begins with, and the data channel."""
        if not profile.secret:
            yield "client" if profile.pull else "tls-client"
        yield _line("dev", profile.dev)
        yield _line("data-ciphers", ":".join(profile.data_ciphers))
        if profile.data_ciphers_fallback:
            yield _line("data-ciphers-fallback", profile.data_ciphers_fallback)
        yield _line("cipher", profile.cipher)
        yield _line("auth", profile.auth)
        yield _line("allow-compression", profile.allow_compression)
        if profile.compression:
            yield _COMPRESS[profile.compression]
        for name, flag in _FLAGS:
            if getattr(profile, flag):
                yield name
        for action, prefix in profile.pull_filters:
            yield _line("pull-filter", action, prefix)
        for key, value in profile.peer_info:
            yield _line("setenv", key, value)

    def times(self, profile: ClientProfile) -> Iterator[str]:
        """Write everything that is a number."""
        for name, attribute in _NUMBERS:
            value: Any = getattr(profile, attribute)
            is_default = value == _DEFAULT.get(attribute, 0)
            if not is_default or name == "ping-restart":
                yield _line(name, value)
        yield _line("connect-retry", *profile.connect_retry)
        # a 0 would mean any time up to it
        least = [profile.reneg_sec_min] * bool(profile.reneg_sec_min)
        yield _line("reneg-sec", profile.reneg_sec, *least)
        yield _line("inactive", profile.inactive, profile.inactive_bytes)
        yield from _mssfix(profile)
        yield _line("replay-window", profile.replay_window, profile.replay_time)

    def network(self, profile: ClientProfile) -> Iterator[str]:
        """Write addresses, routes and resolvers."""
        if profile.tun_mtu != _DEFAULT["tun_mtu"]:
            yield _line("tun-mtu", profile.tun_mtu)
        yield _line("tun-mtu-max", profile.tun_mtu_max)
        if profile.topology:
            yield _line("topology", profile.topology)
        if profile.ifconfig:
            yield _line("ifconfig", *profile.ifconfig)
        if profile.ifconfig6:
            yield _line("ifconfig-ipv6", *profile.ifconfig6)
        for network, gateway, metric in profile.routes:
            via = gateway or "default"
            if network.version == 4:
                where = (network.network_address, network.netmask)
                yield _line("route", *where, via, metric)
            else:
                yield _line("route-ipv6", network, via, metric)
        if profile.redirect_gateway is not None:
            yield _line("redirect-gateway", *profile.redirect_gateway)
        for address in profile.dns:
            kind = "DNS6" if ":" in address else "DNS"
            yield _line("dhcp-option", kind, address)
        for domain in profile.search:
            yield _line("dhcp-option", "DOMAIN-SEARCH", domain)

    def trust(self, check: ServerCheck) -> Iterator[str]:
        """Write what makes the server the right one."""
        if check.name:
            yield _line("verify-x509-name", check.name, check.name_type)
        if check.eku:
            yield _line("remote-cert-eku", check.eku)
        if check.ku is not None:
            masks = [f"{ku:x}" for ku in check.ku if check.ku != (ANY_USAGE,)]
            yield _line("remote-cert-ku", *masks)
        if check.ns_cert_type:
            yield _line("ns-cert-type", check.ns_cert_type)
        yield _line("x509-username-field", check.username_field)
        if check.verify_hash:
            name, value = check.verify_hash
            yield _line("verify-hash", value.hex(":"), name)
        if check.ca:
            yield from self._block("ca", check.ca.decode())
        if check.crl:
            yield from self._block("crl-verify", check.crl.decode())
        if check.revoked:
            serials = "\n".join(sorted(check.revoked))
            yield from self._block("crl-verify", serials)
        if check.fingerprints:
            lines = "\n".join(one.hex(":") for one in check.fingerprints)
            yield from self._block("peer-fingerprint", lines)

    def tls(self, tls: TlsOptions) -> Iterator[str]:
        """Write how TLS is spoken."""
        for name, value in (
            ("tls-version-min", tls.version_min),
            ("tls-version-max", tls.version_max),
            ("tls-cipher", tls.cipher),
            ("tls-ciphersuites", tls.ciphersuites),
            ("tls-groups", tls.groups),
            ("tls-cert-profile", tls.cert_profile),
        ):
            if value:
                yield _line(name, value)

    def identity(self, ours: Identity) -> Iterator[str]:
        """Write our certificate and key."""
        if ours.pkcs12:
            text = base64.b64encode(ours.pkcs12).decode()
            lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
            yield from self._block("pkcs12", "\n".join(lines), is_secret=True)
        if ours.chain and not ours.certificate:
            yield from self._block("extra-certs", ours.chain.decode())
        if ours.certificate:
            chain = (ours.certificate + ours.chain).decode()
            yield from self._block("cert", chain)
        if ours.key:
            yield from self._block("key", ours.key.decode(), is_secret=True)
        if ours.passphrase is not None:
            text = ours.passphrase.decode("utf-8", "surrogateescape")
            yield from self._block("askpass", text, is_secret=True)

    def login(self, profile: ClientProfile) -> Iterator[str]:
        """Write user, password and how they are asked for."""
        yield _line("auth-retry", profile.auth_retry)
        if profile.static_challenge:
            text, echo = profile.static_challenge
            how = ["concat"] * profile.static_challenge_concat
            yield _line("static-challenge", text, int(echo), *how)
        login = profile.auth_user_pass
        if login is None:
            return
        if login.username is None and login.password is None:
            yield "auth-user-pass"
            return
        text = f"{login.username or ''}\n{login.password or ''}"
        yield from self._block("auth-user-pass", text, is_secret=True)

    def wrap(self, wrap: ControlWrapKey) -> Iterator[str]:
        """Write the control wrap."""
        if wrap.kind == "plain":
            return
        if wrap.direction is not None:
            yield _line("key-direction", wrap.direction)
        if wrap.kind == "tls-crypt-v2":
            text = format_client_key_v2(ClientKeyV2(wrap.key, wrap.wkc))
        else:
            text = format_static_key(wrap.key)
        yield from self._block(wrap.kind, text, is_secret=True)

    def secret(self, profile: ClientProfile) -> Iterator[str]:
        """Write the static key of a profile without TLS."""
        if profile.secret is None:
            return
        key, direction = profile.secret
        if direction is not None:
            yield _line("key-direction", direction)
        text = format_static_key(key)
        yield from self._block("secret", text, is_secret=True)
