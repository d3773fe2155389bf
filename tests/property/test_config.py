"""Lexer against a slow model; print and parse; no push reaches too far."""

import base64
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.config.lexer import LineError, split_line
from qubes_vpn.config.model import ClientProfile, Remote, ServerCheck
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.pulled import merge
from qubes_vpn.config.routing import PROTECTED, QUBES
from qubes_vpn.config.server_profile import parse_server_profile
from qubes_vpn.config.write import quoted, write_profile
from qubes_vpn.errors import ConfigError, SessionError
from qubes_vpn.wire.keyfile import (
    ClientKeyV2,
    format_client_key_v2,
    format_static_key,
)

# -- the lexer -----------------------------------------------------------------


def slow_split(line):  # noqa: C901  (one function, as there)
    """OpenVPN's parse_line, state by state. None: it refuses the line.

    A backslash at the end of a line is refused here, and there hides the
    newline: docs/protocol.md.
    """
    words, word, state, escaped = [], "", "out", False
    for char in [*line, "\0"]:
        if not escaped and char == "\\" and state != "single":
            escaped = True
            continue
        space = char in " \t\v\f\r\n\0"
        out = ""
        if state == "out" and not space:
            if char in "#;":
                return words
            if not escaped and char in "\"'":
                state = "double" if char == '"' else "single"
            else:
                out, state = char, "bare"
        elif state == "bare":
            if space and not escaped:
                state = "done"
            else:
                out = char
        elif state in {"double", "single"}:
            close = '"' if state == "double" else "'"
            if char == close and not (escaped and close == '"'):
                state = "done"
            else:
                out = char
        if escaped and char == "\0":
            return None
        if escaped and out and not (out in '\\"' or space):
            return None
        escaped = False
        if state == "done":
            words.append(word)
            word, state = "", "out"
        elif char != "\0":
            word += out
    return words if state == "out" else None


pieces = st.sampled_from(list("ab \t\"'\\#;\r\x0b\u00a0é"))
lines = st.lists(pieces, max_size=12).map("".join)


@given(lines)
def test_the_lexer_agrees_with_a_slow_model(line):
    expected = slow_split(line)
    try:
        found = [word for word, _ in split_line(line)]
    except LineError:
        found = None
    assert found == expected


text_of_a_word = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n"),
    max_size=40,
)


@given(st.lists(text_of_a_word, min_size=1, max_size=5))
def test_what_is_quoted_is_read_back(given_words):
    line = " ".join(map(quoted, given_words))
    assert [word for word, _ in split_line(line)] == given_words


@given(lines)
def test_words_stand_where_they_are_said_to(line):
    try:
        found = split_line(line)
    except LineError:
        return
    offsets = [offset for _, offset in found]
    assert offsets == sorted(set(offsets))
    assert all(line[offset] not in " \t\v\f\r\n" for offset in offsets)


# -- print and parse -------------------------------------------------------------


def _certificates():
    from datetime import UTC, datetime

    from qubes_vpn.crypto.pki import Algorithm, Usage, issue, make_authority

    now = datetime(2026, 11, 23, tzinfo=UTC)
    kind = Algorithm.P256
    ca = make_authority("CA", kind, now, 3650)
    one = issue(ca, "one", Usage.CLIENT, kind, now, 3650)
    return {
        "ca": ca.certificate.decode(),
        "cert": one.certificate.decode(),
        "key": one.key.decode(),
    }


CERTIFICATES = _certificates()
STATIC = format_static_key(bytes(range(256)))
V2 = format_client_key_v2(
    ClientKeyV2(bytes(256), bytes(288) + (290).to_bytes(2))
)
P12 = base64.encodebytes(b"\x30" + bytes(200)).decode()

seconds = st.integers(0, 100_000)
small = st.integers(0, 65535)
ports = st.integers(1024, 65535)
hosts = st.sampled_from(["vpn.example", "192.0.2.1", "2001:db8::1"])
v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).map(str)
words = st.text("abc XYZ\"'\\#;é", min_size=1, max_size=12)
protos = st.sampled_from(["udp", "udp4", "udp6", "tcp", "tcp4", "tcp6-client"])


def line(*parts):
    """A strategy of one line, of words and strategies of words."""
    made = [
        p if isinstance(p, st.SearchStrategy) else st.just(p) for p in parts
    ]
    return st.tuples(*made).map(
        lambda found: " ".join(quoted(str(word)) for word in found)
    )


def block(name, content):
    return st.just(f"<{name}>\n{content}</{name}>")


ONE_LINE = st.one_of(
    line("remote", hosts, ports, protos),
    line("proto", protos),
    line("port", ports),
    line("lport", ports),
    line("local", v4),
    line("connect-timeout", seconds),
    line("explicit-exit-notify", st.integers(0, 3)),
    line("remote-random"),
    line("float"),
    line("mssfix", small),
    line("tun-mtu", st.integers(68, 65535)),
    line("max-packet-size", st.integers(68, 65535)),
    line("ping", seconds),
    line("ping-restart", seconds),
    line("ping-exit", seconds),
    line("ping-timer-rem"),
    line("inactive", seconds, seconds),
    line("session-timeout", seconds),
    line("hand-window", seconds),
    line("tran-window", seconds),
    line("tls-timeout", seconds),
    line("reneg-sec", seconds, seconds),
    line("reneg-bytes", seconds),
    line("reneg-pkts", seconds),
    line("replay-window", st.integers(0, 65536), st.integers(0, 600)),
    line("resolv-retry", seconds),
    line("connect-retry", seconds, seconds),
    line("connect-retry-max", seconds),
    line("sndbuf", seconds),
    line("rcvbuf", seconds),
    line("cipher", st.sampled_from(["AES-256-CBC", "BF-CBC", "none"])),
    line("data-ciphers", st.sampled_from(["AES-256-GCM", "AES-128-CBC:AES-256-GCM"])),
    line("data-ciphers-fallback", st.just("AES-256-CBC")),
    line("compat-mode", st.sampled_from(["2.3.0", "2.4", "2.5.1"])),
    line("auth", st.sampled_from(["SHA512", "sha1", "none", "SHA-256"])),
    line("comp-lzo"),
    line("compress", st.sampled_from(["stub", "stub-v2", "lz4", "migrate"])),
    line("allow-compression", st.sampled_from(["yes", "no", "asym"])),
    line("topology", st.sampled_from(["subnet", "net30", "p2p"])),
    line("ifconfig", v4, st.just("255.255.255.0")),
    line("ifconfig-ipv6", v6, v6),
    line("route", v4, st.just("255.255.0.0")),
    line("route", v4, st.just("default"), v4, small),
    line("route-metric", small),
    st.tuples(v6, st.integers(0, 128)).map(lambda p: f"route-ipv6 {p[0]}/{p[1]}"),
    line("redirect-gateway", st.sampled_from(["def1", "ipv6", "!ipv4"])),
    line("dhcp-option", "DNS", v4),
    line("dhcp-option", "DNS6", v6),
    line("dns", "server", st.integers(-128, 127), "address", st.just("9.9.9.9")),
    line("dns", "search-domains", "a.example", "b.example"),
    line("block-ipv6"),
    line("route-nopull"),
    line("pull-filter", st.sampled_from(["accept", "ignore", "reject"]), words),
    line("auth-retry", st.sampled_from(["none", "interact"])),
    line("auth-nocache"),
    line("static-challenge", words, st.integers(0, 1)),
    line("push-peer-info"),
    line("setenv", "UV_ONE", words),
    line("verify-x509-name", words, st.sampled_from(["name", "subject"])),
    line("remote-cert-tls", "server"),
    line("remote-cert-ku", "a0", "88"),
    line("remote-cert-eku", words),
    line("ns-cert-type", "server"),
    line("x509-username-field", words),
    line("peer-fingerprint", ":".join(["0A"] * 32)),
    line("tls-version-min", st.sampled_from(["1.0", "1.2", "1.3"])),
    line("tls-version-max", "1.3"),
    line("tls-cipher", words),
    line("tls-ciphersuites", words),
    line("tls-groups", words),
    line("tls-cert-profile", "preferred"),
    line("key-direction", st.integers(0, 1)),
    line("socks-proxy", hosts, ports),
    line("verb", small),
    block("auth-user-pass", "us er\np\\ass\n"),
    block("auth-user-pass", "user\n"),
    block("askpass", "pass phrase\n"),
    block("socks-proxy-user-pass", "u\np\n"),
    block("extra-certs", CERTIFICATES["ca"]),
    block("connection", "remote c 1 tcp\nhttp-proxy p 8080\n"),
    block("connection", f"remote d\n<tls-crypt>\n{STATIC}</tls-crypt>\n"),
    block("connection", "remote e\nmssfix 0\nfragment 1300\n"),
)  # fmt: skip
WRAPS = st.sampled_from(
    [
        "",
        f"<tls-auth>\n{STATIC}</tls-auth>\n",
        f"<tls-crypt>\n{STATIC}</tls-crypt>\n",
        f"<tls-crypt-v2>\n{V2}</tls-crypt-v2>\n",
    ]
)
WHO = st.sampled_from(
    [
        "auth-user-pass\n",
        f"<cert>\n{CERTIFICATES['cert']}</cert>\n<key>\n{CERTIFICATES['key']}</key>\n",
        f"<pkcs12>\n{P12}</pkcs12>\n",
    ]
)
HEAD = f"client\ndev tun\nremote h\n<ca>\n{CERTIFICATES['ca']}</ca>\n"
profiles = st.tuples(st.just(HEAD), WHO, WRAPS, st.lists(ONE_LINE, max_size=25))


def no_files(name):
    raise OSError(2, "no such file")


def parsed(text):
    try:
        return parse_client_profile(text, "p", no_files)
    except ConfigError:
        return None


@given(profiles)
def test_a_profile_that_is_printed_parses_to_the_same(parts):
    head, who, wrap, more = parts
    text, profile = head + who + wrap, parsed(head + who + wrap)
    for one in more:  # those that do not contradict what is there
        longer = f"{text}{one}\n"
        found = parsed(longer)
        text, profile = (longer, found) if found else (text, profile)
    again = parse_client_profile(write_profile(profile), "q", no_files)
    assert replace(again, notes=()) == replace(profile, notes=())


@given(profiles)
def test_a_redacted_profile_holds_no_secret(parts):
    head, who, wrap, _ = parts
    profile = parsed(head + who + wrap)
    shown = write_profile(profile, redact=True)
    assert "PRIVATE KEY" not in shown
    assert "0001020304" not in shown
    assert P12[:40] not in shown


@given(ONE_LINE)
def test_each_line_alone_is_accepted(one):
    exceptions = ("ping-exit", "lport", "fragment")
    profile = parsed(HEAD + "auth-user-pass\n" + one)
    assert profile is not None or one.split()[0] in exceptions


# -- any text ---------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "remote",
        "<ca>",
        "</ca>",
        "<connection>",
        "</connection>",
        "setenv opt",
        "client",
        "server",
        "dns",
        "route",
        "config",
        "ca",
        "[inline]",
        '"',
        "\\",
    ]
)
anything = st.lists(
    st.one_of(NAMES, st.text(max_size=8), st.sampled_from(["\n", " ", "\r\n"])),
    max_size=40,
).map("".join)


@given(anything)
def test_any_text_is_a_profile_or_a_config_error(text):
    for parse in (parse_client_profile, parse_server_profile):
        error = None
        try:
            parse(text, "p", no_files)
        except ConfigError as caught:
            error = caught
        if error is not None:
            assert error.problems
            assert str(error).replace("\n", "").isprintable()


# -- pushes -----------------------------------------------------------------------

OPTION = st.one_of(
    ONE_LINE,
    line("route", v4, v4),
    line(
        "route",
        v4,
        st.sampled_from(["255.0.0.0", "255.255.255.255"]),
        "net_gateway",
    ),
    line("ifconfig", v4, v4),
    line("dhcp-option", "DNS", v4),
    line("tun-mtu", small),
    st.text(max_size=30),
)
PUSHED_TO = ClientProfile((Remote("192.0.2.10"),), ServerCheck())


@given(st.lists(OPTION, max_size=30))
def test_no_push_reaches_outside_the_tunnel(options):
    try:
        settings = merge(PUSHED_TO, PUSHED_TO.remotes[0], options)
    except SessionError:  # an address of Qubes' own
        assert any(one.startswith("ifconfig") for one in options)
        return
    endpoint = ip_address("192.0.2.10")
    own = [ip.network for ip in (settings.ifconfig4, settings.ifconfig6) if ip]
    own += [ip_network(settings.peer4)] if settings.peer4 else []
    for route in settings.routes:
        network = route.network
        if network in own:
            continue
        assert not any(
            network.version == one.version and network.subnet_of(one)
            for one in PROTECTED
        )
        assert endpoint not in network or network.prefixlen < 16
    for address in (settings.ifconfig4, settings.ifconfig6, *settings.dns):
        if address is not None:
            bare = getattr(address, "ip", address)
            assert not any(
                bare in one for one in QUBES if one.version == bare.version
            )
    assert len(settings.dns) <= 8
    assert 68 <= settings.mtu <= 1600
    assert all(name.isprintable() for name, _ in settings.refused)
