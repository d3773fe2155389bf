"""Client profiles: what a directive means, and what is wrong."""

from ipaddress import ip_network

import pytest

from qubes_vpn.config.document import (
    CONNECTIONS_MAX,
    DEPTH_MAX,
    FILE_MAX,
    no_files,
)
from qubes_vpn.config.login import NAME_ONLY
from qubes_vpn.config.profile import Credentials, Proxy, parse_client_profile
from qubes_vpn.errors import REASONS, ConfigError

FINGERPRINT = ":".join(["AB"] * 32)


def test_a_small_profile(having):
    profile = having("")
    (remote,) = profile.remotes
    assert (remote.host, remote.port, remote.proto) == (
        "192.0.2.1",
        1194,
        "udp",
    )
    assert profile.pull
    assert profile.auth_user_pass == Credentials("user", "pass")
    assert profile.server_check.ca.startswith(b"-----BEGIN CERTIFICATE")
    assert profile.data_ciphers[0] == "AES-256-GCM"
    assert profile.ping_restart == 120
    assert profile.notes == ()


EKU_CLIENT = "TLS Web Client Authentication"


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("cipher aes-128-cbc", "cipher", "AES-128-CBC"),
        ("data-ciphers AES-128-GCM:?X", "data_ciphers", ("AES-128-GCM",)),
        ("ncp-ciphers AES-192-GCM", "data_ciphers", ("AES-192-GCM",)),
        (
            "data-ciphers-fallback AES-256-CBC",
            "data_ciphers_fallback",
            "AES-256-CBC",
        ),
        ("data-ciphers-fallback BF-CBC", "data_ciphers_fallback", ""),
        (
            "cipher AES-128-CBC\ncompat-mode 2.3.0",
            "data_ciphers_fallback",
            "AES-128-CBC",
        ),
        (
            "data-ciphers-fallback AES-256-CBC\ncipher AES-128-CBC\ncompat-mode 2.3.0",
            "data_ciphers_fallback",
            "AES-256-CBC",
        ),
        ("cipher AES-128-CBC\ncompat-mode 2.4", "data_ciphers_fallback", ""),
        ("compat-mode 2.4\ncipher BF-CBC", "data_ciphers_fallback", ""),
        ("auth SHA512", "auth", "SHA512"),
        ("auth RIPEMD160", "auth", "SHA1"),
        ("keepalive 10 60", "ping", 10),
        ("keepalive 10 60", "ping_restart", 60),
        ("ping-exit 30", "ping_restart", 0),
        ("ping-exit 30", "ping_exit", 30),
        ("ping-exit 30\nping-restart 40", "ping_restart", 40),
        ("ping-exit 30\nping-restart 40", "ping_exit", 0),
        ("ping-restart 40\nping-exit 30", "ping_restart", 0),
        ("inactive 60 1000", "inactive_bytes", 1000),
        ("session-timeout 60", "session_timeout", 60),
        ("connect-retry 5", "connect_retry", (5, 30)),
        ("connect-retry 40", "connect_retry", (40, 40)),
        ("connect-retry 5 60", "connect_retry", (5, 60)),
        ("connect-retry-max unlimited", "connect_retry_max", 0),
        ("connect-retry-max 3", "connect_retry_max", 3),
        ("remote-random", "remote_random", True),
        ("reneg-sec 100 50", "reneg_sec_min", 50),
        ("reneg-bytes 1000", "reneg_bytes", 1000),
        ("replay-window 128 20", "replay_time", 20),
        ("route-nopull", "route_nopull", True),
        (
            'pull-filter ignore "route "',
            "pull_filters",
            (("ignore", "route "),),
        ),
        ("tun-mtu 1400", "tun_mtu", 1400),
        ("tun-mtu 9000", "tun_mtu_max", 9000),
        ("tun-mtu-max 1700", "tun_mtu_max", 1700),
        ("link-mtu 1500", "link_mtu", 1500),
        ("mssfix 1300", "mssfix", 1300),
        ("mssfix", "mssfix", -1),
        ("mssfix 1300", "mssfix_of", ""),
        ("mssfix 1300 mtu", "mssfix_of", "mtu"),
        ("mssfix 1300 fixed", "mssfix_of", "fixed"),
        ("mssfix", "mssfix_of", "mtu"),
        ("mssfix 1300\nmax-packet-size 900", "mssfix", 900),
        ("max-packet-size 900", "mssfix_of", "mtu"),
        ("max-packet-size 900\nmssfix 1300", "mssfix", 1300),
        ("max-packet-size 900\nmssfix", "mssfix", -1),
        ("max-packet-size 9000", "max_packet_size", 2048),
        ("fragment 1300", "fragment", 1300),
        ("sndbuf 1000", "sndbuf", 1000),
        ("topology subnet", "topology", "subnet"),
        (
            "ifconfig 10.0.0.2 255.255.255.0",
            "ifconfig",
            ("10.0.0.2", "255.255.255.0"),
        ),
        (
            "ifconfig-ipv6 fd00::2 fd00::1",
            "ifconfig6",
            ("fd00::2/64", "fd00::1"),
        ),
        (
            "route 10.0.0.0 255.0.0.0",
            "routes",
            ((ip_network("10.0.0.0/8"), "", 0),),
        ),
        (
            "route 10.1.2.3 255.0.0.0",
            "routes",
            ((ip_network("10.0.0.0/8"), "", 0),),
        ),
        ("route 10.1.2.3", "routes", ((ip_network("10.1.2.3/32"), "", 0),)),
        (
            "route 10.1.2.3 default default 7",
            "routes",
            ((ip_network("10.1.2.3/32"), "", 7),),
        ),
        (
            "route-metric 9\nroute 10.1.2.3",
            "routes",
            ((ip_network("10.1.2.3/32"), "", 9),),
        ),
        (
            "route 10.1.2.3 255.255.255.255 10.0.0.1 default",
            "routes",
            ((ip_network("10.1.2.3/32"), "10.0.0.1", 0),),
        ),
        (
            "route 10.1.2.3 255.255.255.255 vpn_gateway",
            "routes",
            ((ip_network("10.1.2.3/32"), "", 0),),
        ),
        (
            "route-ipv6 2000::/3 fd00::1 5",
            "routes",
            ((ip_network("2000::/3"), "fd00::1", 5),),
        ),
        ("route 10.1.2.3 255.255.255.255 net_gateway", "routes", ()),
        ("route vpn.example", "routes", ()),
        ("redirect-gateway def1 ipv6", "redirect_gateway", ("def1", "ipv6")),
        ("redirect-gateway", "redirect_gateway", ()),
        (
            "dhcp-option DNS 10.0.0.1\ndhcp-option DNS6 fd00::1",
            "dns",
            ("10.0.0.1", "fd00::1"),
        ),
        ("dhcp-option DOMAIN x.example", "search", ("x.example",)),
        (
            "dhcp-option ADAPTER_DOMAIN_SUFFIX x.example.",
            "search",
            ("x.example",),
        ),
        ("dhcp-option DNS nonsense\ndhcp-option WINS 1", "dns", ()),
        (
            "dns search-domains a.example b.example",
            "search",
            ("a.example", "b.example"),
        ),
        (
            "dns server 2 address 10.0.0.2\ndns server 1 address 10.0.0.1 [fd00::1]:53\ndhcp-option DNS 10.9.9.9",
            "dns",
            ("10.0.0.1", "fd00::1", "10.0.0.2"),
        ),
        ("dns server 1 address 10.0.0.1:53", "dns", ("10.0.0.1",)),
        ("dns server 1 address 10.0.0.1:5353", "dns", ()),
        (
            "dns server 1 address 10.0.0.1\ndns server 1 transport DoT",
            "dns",
            (),
        ),
        (
            "dns server 1 address 10.0.0.1\ndns server 1 transport plain\ndns server 1 sni x\ndns server 1 resolve-domains x.example",
            "dns",
            ("10.0.0.1",),
        ),
        ("block-ipv6", "block_ipv6", True),
        ("comp-lzo", "compression", "lzo-rx"),
        ("comp-lzo no", "allow_compression", "asym"),
        ("compress", "compression", "swap"),
        ("compress stub", "compression", "swap"),
        ("compress lz4\ncomp-lzo", "compression", "lzo-rx"),
        ("comp-lzo\ncompress migrate", "compression", ""),
        ("compress lz4-v2", "compression", "lz4-v2-rx"),
        ("allow-compression yes", "allow_compression", "yes"),
        ('static-challenge "Code?" 1', "static_challenge", ("Code?", True)),
        ("static-challenge x 0 concat", "static_challenge_concat", True),
        ("static-challenge x 0 scrv1", "static_challenge_concat", False),
        ("auth-user-pass username-only", "auth_user_pass", NAME_ONLY),
        ("auth-retry interact", "auth_retry", "interact"),
        (
            "push-peer-info\nsetenv UV_X 1\nsetenv Y 2",
            "peer_info",
            (("UV_X", "1"),),
        ),
        ("auth-user-pass", "auth_user_pass", Credentials()),
        ("auth-user-pass empty", "auth_user_pass", Credentials()),
        ("auth-user-pass nowhere", "auth_user_pass", Credentials()),
        (
            "<auth-user-pass>\nu\n</auth-user-pass>",
            "auth_user_pass",
            Credentials("u"),
        ),
        ("dev tun7", "dev", "tun7"),
    ],
)
def test_directives_set_their_field(having, lines, field, value):
    assert getattr(having(lines), field) == value


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("proto tcp", "proto", "tcp"),
        ("proto tcp6-client", "family", 6),
        ("port 443", "port", 443),
        ("rport 444\nport 443", "port", 443),
        ("port 443\nrport 444", "port", 444),
        ("lport 4000", "lport", 4000),
        ("local 192.0.2.9", "local", "192.0.2.9"),
        ("local *", "local", ""),
        ("local host.example", "local", ""),
        ("connect-timeout 9", "connect_timeout", 9),
        ("server-poll-timeout 8", "connect_timeout", 8),
        ("explicit-exit-notify", "explicit_exit_notify", 1),
        ("explicit-exit-notify 3", "explicit_exit_notify", 3),
        ("proto tcp\nexplicit-exit-notify 3", "explicit_exit_notify", 0),
        ("mssfix 1300", "mssfix", 1300),
        ("tun-mtu 1400", "tun_mtu", 1400),
        ("socks-proxy 192.0.2.8", "proxy", Proxy("socks", "192.0.2.8", 1080)),
        (
            "socks-proxy 192.0.2.8 9 auth",
            "proxy",
            Proxy("socks", "192.0.2.8", 9, "basic", "user", "pass"),
        ),
        (
            "proto tcp\nhttp-proxy 192.0.2.8 9",
            "proxy",
            Proxy("http", "192.0.2.8", 9),
        ),
        (
            "proto tcp\nhttp-proxy 192.0.2.8 9 auto",
            "proxy",
            Proxy("http", "192.0.2.8", 9, "auto"),
        ),
        (
            "proto tcp\nhttp-proxy 192.0.2.8 9 auth",
            "proxy",
            Proxy("http", "192.0.2.8", 9, "basic", "user", "pass"),
        ),
        (
            "proto tcp\nhttp-proxy 192.0.2.8 9 auth ntlm2",
            "proxy",
            Proxy("http", "192.0.2.8", 9, "ntlm2", "user", "pass"),
        ),
        (
            "proto tcp\n<http-proxy-user-pass>\nu\np\n</http-proxy-user-pass>\nhttp-proxy 192.0.2.8 9",
            "proxy",
            Proxy("http", "192.0.2.8", 9, "basic", "u", "p"),
        ),
        (
            'proto tcp\nhttp-proxy 192.0.2.8 9\nhttp-proxy-option AGENT "a b"\nhttp-proxy-option CUSTOM-HEADER X y\nhttp-proxy-option CUSTOM-HEADER "Z: w"\nhttp-proxy-option VERSION 1.1',
            "proxy",
            Proxy(
                "http",
                "192.0.2.8",
                9,
                user_agent="a b",
                headers=(("X", "y"), ("Z", "w")),
            ),
        ),
    ],
)
def test_directives_set_a_field_of_the_remote(having, lines, field, value):
    assert getattr(having(lines).remotes[0], field) == value


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("verify-x509-name n", "name_type", "subject"),
        ("verify-x509-name n name-prefix", "name_type", "name-prefix"),
        ("remote-cert-tls server", "eku", "TLS Web Server Authentication"),
        ("remote-cert-tls server", "ku", (0,)),
        ("remote-cert-tls client", "eku", "TLS Web Client Authentication"),
        ("remote-cert-ku a0 88", "ku", (0xA0, 0x88)),
        ("remote-cert-ku", "ku", (0,)),
        ("remote-cert-eku 1.2.3", "eku", "1.2.3"),
        ("remote-cert-eku 1.2\nremote-cert-tls client", "eku", EKU_CLIENT),
        ("remote-cert-tls client\nremote-cert-eku 1.2", "eku", "1.2"),
        ("remote-cert-ku 80\nremote-cert-tls client", "ku", (0,)),
        ("remote-cert-tls client\nremote-cert-ku 80", "ku", (0x80,)),
        ("remote-cert-tls client\nremote-cert-ku", "ku", (0,)),
        ("remote-cert-eku 1.2", "ku", None),
        ("remote-cert-ku 80", "eku", ""),
        ("ns-cert-type server", "ns_cert_type", "server"),
        ("x509-username-field emailAddress", "username_field", "emailAddress"),
        (f"peer-fingerprint {FINGERPRINT}", "fingerprints", (b"\xab" * 32,)),
        (
            f"<peer-fingerprint>\n# x\n\n{FINGERPRINT}\n{FINGERPRINT}\n</peer-fingerprint>",
            "fingerprints",
            (b"\xab" * 32,),
        ),
        (
            f"peer-fingerprint [inline]\n<peer-fingerprint>\n{FINGERPRINT}\n</peer-fingerprint>",
            "fingerprints",
            (b"\xab" * 32,),
        ),
        (
            f"verify-hash {FINGERPRINT} SHA256",
            "verify_hash",
            ("SHA256", b"\xab" * 32),
        ),
        (
            f"verify-hash {FINGERPRINT[:59]}",
            "verify_hash",
            ("SHA1", b"\xab" * 20),
        ),
        (
            f"<verify-hash>\n{FINGERPRINT}\n</verify-hash>",
            "verify_hash",
            ("SHA256", b"\xab" * 32),
        ),
    ],
)
def test_directives_set_a_field_of_the_check(having, lines, field, value):
    assert getattr(having(lines).server_check, field) == value


@pytest.mark.parametrize(
    ("lines", "kind", "direction", "digest"),
    [
        ("", "plain", None, "SHA1"),
        ("tls-auth ta.key", "tls-auth", None, "SHA1"),
        ("tls-auth ta.key 1", "tls-auth", 1, "SHA1"),
        (
            "auth SHA256\ntls-auth ta.key\nkey-direction 0",
            "tls-auth",
            0,
            "SHA256",
        ),
        ("key-direction 0\ntls-auth ta.key 1", "tls-auth", 1, "SHA1"),
        ("tls-crypt ta.key", "tls-crypt", None, "SHA1"),
        ("tls-crypt-v2 v2.key", "tls-crypt-v2", None, "SHA1"),
    ],
)
def test_control_wraps(having, lines, kind, direction, digest):
    wrap = having(lines).control_wrap
    assert (wrap.kind, wrap.direction, wrap.digest) == (kind, direction, digest)
    assert len(wrap.key) == (0 if kind == "plain" else 256)
    assert bool(wrap.wkc) == (kind == "tls-crypt-v2")


def test_tls_options(having):
    tls = having("tls-version-max 1.1\ntls-cipher A\ntls-groups X25519").tls
    assert (tls.version_min, tls.version_max) == ("1.1", "1.1")
    assert (tls.cipher, tls.groups) == ("A", "X25519")
    assert having("tls-version-min 1.3 or-highest").tls.version_min == "1.3"


def test_certificates_and_chain(having, files):
    profile = having("cert client.crt\nkey client.key\nextra-certs ca.crt")
    assert profile.identity.certificate == files["client.crt"]
    assert profile.identity.chain == files["ca.crt"]
    assert profile.identity.key == files["client.key"]


def test_a_list_of_revoked_certificates(having, files):
    check = having("crl-verify crl.pem").server_check
    assert (check.crl, check.crl_path) == (files["crl.pem"], "crl.pem")
    check = having("crl-verify x/crls dir").server_check
    assert check.revoked == {"17", "-4"}
    assert (check.crl, check.crl_path) == (b"", "x/crls/")
    check = having("crl-verify x/crls/ dir").server_check
    assert (check.revoked, check.crl_path) == ({"17", "-4"}, "x/crls/")
    for given in ("", "crl-verify [inline] dir\n"):
        block = f"{given}<crl-verify>\n 17\n18\n</crl-verify>"
        check = having(block).server_check
        assert (check.revoked, check.crl_path) == ({"17", "18"}, "")
    check = having(f"<crl-verify>\n{files['crl.pem'].decode()}</crl-verify>")
    assert check.server_check.crl == files["crl.pem"]
    assert check.server_check.crl_path == ""


def test_blocks_instead_of_files(parse, files):
    text = "client\nremote h\nca [inline]\nauth-user-pass\n<ca>\nBegin:\n"
    text += files["ca.crt"].decode() + "</ca>\ntls-auth [inline] 1\n"
    text += "<tls-auth>\n" + files["ta.key"].decode() + "</tls-auth>"
    profile = parse(text.replace("\n", "\r\n"))
    assert profile.server_check.ca == files["ca.crt"]
    assert profile.control_wrap.direction == 1


def test_a_block_may_stand_before_its_directive(parse, files):
    text = f"client\nremote h\n<ca>\n{files['ca.crt'].decode()}</ca>\n"
    text += "ca [inline]\nauth-user-pass\nextra-certs ca.crt\n"
    profile = parse(text)
    assert profile.server_check.ca == profile.identity.chain == files["ca.crt"]


def test_the_last_of_several_counts_and_is_the_only_one_read(parse, files):
    text = "client\nremote h\nca nowhere\nauth-user-pass\nca ca.crt"
    assert parse(text).server_check.ca == files["ca.crt"]


def test_connection_blocks_know_what_stood_before(having, files):
    profile = having(
        "port 1000\nmssfix 1200\n<connection>\nremote a\n</connection>\n"
        "mssfix 1100\n<connection>\nremote b 2000 tcp\nmssfix 0\n"
        "tls-crypt ta.key\n</connection>\nproto tcp"
    )
    a, b = profile.remotes
    assert (a.host, a.port, a.proto, a.mssfix) == ("a", 1000, "udp", 1200)
    assert (b.host, b.port, b.proto, b.mssfix) == ("b", 2000, "tcp", 0)
    assert a.control_wrap is None
    assert b.control_wrap.kind == "tls-crypt"
    assert "instead" in {n: r for _, n, r in profile.notes}["remote"]


def test_control_packets_of_a_block_may_have_a_size_of_their_own(having):
    profile = having(
        "<connection>\nremote a\nmax-packet-size 1000\n</connection>\n"
        "<connection>\nremote b\n</connection>"
    )
    a, b = profile.remotes
    assert (a.max_packet_size, a.mssfix, a.mssfix_of) == (1000, 1000, "mtu")
    assert b.max_packet_size is None
    assert profile.max_packet_size == 1250


def test_key_direction_of_a_block_may_come_from_the_profile(having):
    profile = having(
        "key-direction 1\n<connection>\nremote a\ntls-auth ta.key\n</connection>"
    )
    assert profile.remotes[0].control_wrap.direction == 1


def test_nested_config_and_cd(files):
    asked = []

    def read(name):
        asked.append(name)
        return {"etc/more": b"ca ca.crt\n", "etc/ca.crt": files["ca.crt"]}[name]

    text = "client\nremote h\nauth-user-pass\ncd etc/\nconfig more"
    parse_client_profile(text, "p", read)
    assert asked == ["etc/more", "etc/ca.crt"]


def test_a_server_s_ipv6_address_says_the_family(having):
    lines = "<connection>\nremote 2001:db8::1\n</connection>"
    assert having(lines).remotes[0].family == 6


def test_text_that_must_hold_everything():
    with pytest.raises(ConfigError, match="no other file is read here"):
        parse_client_profile("client\nremote h\nca x", "p", no_files)


def test_more_ciphers(having):
    standard = having("").data_ciphers
    assert standard == ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
    more = having("data-ciphers DEFAULT:AES-192-GCM").data_ciphers
    assert more == (*standard, "AES-192-GCM")
    newer = having("cipher AES-128-CBC\ncompat-mode 2.6").data_ciphers
    assert newer == standard


def test_domains_are_listed_once_and_not_without_end(having):
    lines = "dhcp-option DOMAIN a.b\n" * 2
    assert having(lines).search == ("a.b",)
    lines = "".join(f"dhcp-option DOMAIN n{n}.b\n" for n in range(99))
    assert len(having(lines).search) == 32


def test_a_damaged_extra_certificate_is_one_of_the_certificate(problems):
    damaged = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"
    text = (
        "client\nremote h\nca ca.crt\ncert client.crt\nkey client.key\n"
        f"<extra-certs>\n{damaged}\n</extra-certs>\n"
    )
    (found,) = problems(text)
    assert found.startswith("p.ovpn:6:1: extra-certs: it holds a damaged")


def test_the_password_of_an_http_proxy_may_be_inline(having):
    (remote,) = having(
        "proto tcp\nhttp-proxy h 1 [inline] ntlm2\n"
        "<http-proxy-user-pass>\nu\np\n</http-proxy-user-pass>"
    ).remotes
    assert (remote.proxy.auth, remote.proxy.password) == ("ntlm2", "p")


def test_static_key_mode(parse):
    text = "remote h\nifconfig 10.0.0.1 10.0.0.2\nsecret ta.key 1\ncipher AES-256-CBC"
    profile = parse(text)
    assert profile.secret == (bytes(range(256)), 1)
    assert not profile.pull


def test_unknown_directives_that_may_be(having):
    for lines in (
        "ignore-unknown-option foo bar\nfoo 1",
        "setenv opt foo 1",
        "setenv FORWARD_COMPATIBLE 1\nfoo",
    ):
        assert [n for _, n, _ in having(lines).notes] == ["foo"]
    assert having("setenv opt").notes[0][1] == "opt"
    assert "left out" in having("setenv opt up").notes[0][2]
    assert having("setenv opt ping 7").ping == 7


def test_notes_say_what_is_not_applied(having):
    notes = having(
        "up /x\npersist-tun\nauth-token x\nfloat\nresolv-retry 5"
    ).notes
    assert [line for line, _, _ in notes] == [6, 7, 8, 9, 10]
    assert all(reason for _, _, reason in notes)


def test_an_encrypted_key_waits_for_its_passphrase(parse, files):
    from cryptography.hazmat.primitives import serialization as form

    key = form.load_pem_private_key(files["client.key"], None)
    locked = key.private_bytes(
        form.Encoding.PEM,
        form.PrivateFormat.PKCS8,
        form.BestAvailableEncryption(b"open"),
    )
    some = files | {"k": locked, "pw": b"open\r\n", "bad": b"no\n"}

    def read(name):
        return some[name]

    text = "client\nremote h\nca ca.crt\ncert client.crt\nkey k\n"
    assert parse_client_profile(text, "p", read).identity.passphrase is None
    opened = parse_client_profile(text + "askpass pw", "p", read)
    assert opened.identity.passphrase == b"open"
    assert parse_client_profile(text + "askpass", "p", read)
    with pytest.raises(ConfigError, match=r"p:5:1: key: wrong passphrase"):
        parse_client_profile(text + "askpass bad", "p", read)


def test_pkcs12(parse, files):
    import base64

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.serialization import pkcs12

    bundle = pkcs12.serialize_key_and_certificates(
        b"me",
        form.load_pem_private_key(files["client.key"], None),
        x509.load_pem_x509_certificate(files["client.crt"]),
        None,
        form.BestAvailableEncryption(b"open"),
    )
    some = {"b": bundle, "pw": b"open\n", "no": b"no\n"}
    text = "client\nremote h\n"

    def read(name):
        return some[name]

    profile = parse_client_profile(text + "pkcs12 b", "p", read)
    assert profile.identity.pkcs12 == bundle
    inline = base64.encodebytes(bundle).decode()
    block = f"<pkcs12>\n{inline}</pkcs12>"
    assert parse(text + block).identity.pkcs12 == bundle
    assert parse_client_profile(text + "pkcs12 b\naskpass pw", "p", read)
    with pytest.raises(ConfigError, match="pkcs12: wrong passphrase"):
        parse_client_profile(text + "pkcs12 b\naskpass no", "p", read)


# -- what is wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("prto udp", '6:1: unknown directive "prto"; do you mean "proto"?'),
        ("zzzzzz", '6:1: unknown directive "zzzzzz"'),
        ("z\x1bz", "6:1: unknown directive \"'z\\x1bz'\""),
        ("x" * 50, f'6:1: unknown directive "{"x" * 40}..."'),
        ("remote", "6:1: remote needs host [port] [proto]"),
        ("remote a 1 udp x", "6:16: remote takes host [port] [proto]"),
        ("nobind x", "6:8: nobind takes no argument"),
        ("remote a 0", "6:10: remote needs a port from 1 to 65535"),
        ("remote 'a b'", "6:8: remote needs a host name or an address"),
        ("proto sctp", None),
        ("proto tcp-server", "3:1: tcp-server is for a server; write tcp"),
        ("lport 80", "6:7: lport below 1024 is refused: use nobind"),
        ("nobind\nlport 4000", "7:1: lport and nobind contradict each other"),
        ("nobind\nbind", "7:1: bind and nobind contradict each other"),
        ("fragment 1300\nproto tcp", "3:1: fragment needs UDP"),
        ("http-proxy a 1", "3:1: http-proxy needs TCP: write proto tcp"),
        (
            "proto tcp\nhttp-proxy a 1 auth x",
            "7:21: http-proxy: unknown method",
        ),
        (
            "proto tcp\nhttp-proxy a 1 auth ntlm",
            "7:21: http-proxy: write ntlm2, ntlm is unsafe",
        ),
        ("proto tcp\nhttp-proxy a 1\nhttp-proxy-option X y", None),
        ('proto tcp\nhttp-proxy a 1\nhttp-proxy-option AGENT "\x01"', None),
        ("proto tcp\nhttp-proxy a 1\nsocks-proxy b", None),
        (
            "socks-proxy b 1 nowhere",
            "6:17: socks-proxy: cannot read nowhere: No such file or directory",
        ),
        (
            "proto-force tcp",
            "6:13: proto-force: no server is reached by tcp",
        ),
        (
            "pkcs11-id x",
            "6:1: pkcs11-id is refused: keys on a token are not supported; export the key to a file",
        ),
        (
            "dev tap",
            "6:5: tap (layer 2) is not supported; ask for a profile with dev tun",
        ),
        ("mode server", "6:6: mode server is for a server's profile"),
        (
            "server 10.8.0.0 255.255.255.0",
            "6:1: server is for a server's profile",
        ),
        ("iroute 10.8.0.0", "6:1: iroute is for a server's profile"),
        (
            "genkey",
            "6:1: genkey is refused: is a command of openvpn itself, not part of a profile",
        ),
        (
            "tls-auth ta.key\ntls-crypt ta.key",
            "7:1: tls-auth and tls-crypt exclude another",
        ),
        (
            "tls-auth junk",
            "6:10: tls-auth (junk): no OpenVPN Static key V1 found",
        ),
        (
            "<tls-crypt>\nx\n</tls-crypt>",
            "6:1: tls-crypt: no OpenVPN Static key V1 found",
        ),
        ("tls-crypt-v2 ta.key", None),
        (
            "auth none\ntls-auth ta.key",
            "6:6: tls-auth needs a digest, not auth none",
        ),
        ("auth WHAT", "6:6: auth: unknown digest WHAT"),
        (
            "auth RIPEMD160\ntls-auth ta.key",
            "6:6: auth: unknown digest RIPEMD160",
        ),
        ("cert client.crt", "6:1: cert needs key beside it"),
        ("key client.key", "6:1: key needs cert beside it"),
        (
            "cert client.crt\nkey other.key",
            "7:1: key: it is not the key of the certificate in `cert`",
        ),
        ("cert ta.key\nkey client.key", None),
        ("pkcs12 junk", "6:1: pkcs12: is not a PKCS#12 file"),
        ("<pkcs12>\n$\n</pkcs12>", "6:1: pkcs12: is not base64"),
        (
            "pkcs12 junk\ncert client.crt",
            "6:1: pkcs12 and cert exclude another",
        ),
        ("ca empty", "6:4: ca (empty): is empty"),
        ("ca junk", "6:4: ca (junk): holds nothing whole in PEM form"),
        ("ca [inline]", "6:4: no <ca> block in this profile"),
        (
            "auth-user-pass [inline]",
            "6:16: no <auth-user-pass> block in this profile",
        ),
        ("ca client.key", None),
        (
            "ca nowhere",
            "6:4: ca: cannot read nowhere: No such file or directory",
        ),
        (
            "ca /etc/ca.crt",
            "6:4: ca: cannot read /etc/ca.crt: No such file or directory; ca.crt lies beside the profile, where import looks",
        ),
        (
            "ca /etc/none.crt",
            "6:4: ca: cannot read /etc/none.crt: No such file or directory",
        ),
        ('ca ""', "6:4: ca: cannot read : not a file name"),
        (
            "<ca>\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n</ca>",
            "6:1: ca: it holds a damaged certificate",
        ),
        (
            "<ca>\n-----BEGIN CERTIFICATE-----\nAAAA\n</ca>",
            "6:1: ca: holds nothing whole in PEM form",
        ),
        (
            "crl-verify ca.crt",
            "6:1: crl-verify: it holds no PEM revocation list",
        ),
        (
            "crl-verify crl.pem folder",
            '6:20: crl-verify takes a file, or a folder and "dir"',
        ),
        (
            "crl-verify none dir",
            "6:12: crl-verify: cannot read none/: No such file or directory",
        ),
        (
            "<crl-verify>\n12\nx\n</crl-verify>",
            "6:1: crl-verify: holds nothing whole in PEM form",
        ),
        ("peer-fingerprint AA", None),
        (
            "peer-fingerprint xx",
            "6:18: peer-fingerprint needs a hash as hexadecimal pairs, such as AB:CD:...",
        ),
        ("<peer-fingerprint>\nxx\n</peer-fingerprint>", None),
        (
            "verify-hash AA:BB",
            "6:13: verify-hash needs a SHA1 hash, or a hash and SHA256",
        ),
        (
            f"verify-hash {FINGERPRINT} SHA256\nverify-hash {FINGERPRINT} SHA256",
            "7:1: verify-hash: one hash is supported",
        ),
        (
            f"verify-hash {FINGERPRINT} SHA256\npeer-fingerprint {FINGERPRINT}",
            "7:1: peer-fingerprint and verify-hash exclude another",
        ),
        ("peer-fingerprint [inline] x", "6:27: peer-fingerprint takes hash"),
        (
            "verify-x509-name a b",
            "6:20: verify-x509-name needs subject, name or name-prefix",
        ),
        (
            "tls-version-min 1.3\ntls-version-max 1.2",
            "7:17: tls-version-max is below tls-version-min",
        ),
        (
            "tls-version-min 9",
            "6:17: tls-version-min needs one of: 1.0, 1.1, 1.2, 1.3",
        ),
        ("keepalive 0 5", "6:11: keepalive needs numbers over 0"),
        (
            "keepalive 10 15",
            "6:14: keepalive: the second is at least twice the first",
        ),
        ("keepalive 10 60\nping 5", "6:1: keepalive and ping exclude another"),
        (
            "data-ciphers FOO",
            "6:14: data-ciphers: none of these ciphers is supported",
        ),
        ("compat-mode 2", "6:13: compat-mode needs a version such as 2.4.0"),
        ("compat-mode 2.x", "6:13: compat-mode needs a version such as 2.4.0"),
        (
            "connect-retry-max x",
            "6:19: connect-retry-max needs a number or unlimited",
        ),
        ("pull-filter x y", "6:13: pull-filter needs accept, ignore or reject"),
        ("topology x", "6:10: topology needs one of: net30, p2p, subnet"),
        ("ifconfig 10.0.0.1 10.0.0.1", "6:19: ifconfig needs two addresses"),
        ("ifconfig-ipv6 x y", None),
        (
            "route 10.0.0.0 255.0.255.0",
            "6:16: route needs a netmask such as 255.255.255.0",
        ),
        (
            "route-ipv6 x",
            "6:12: route-ipv6 needs an IPv6 network such as 2001:db8::/32",
        ),
        (
            "route-ipv6-gateway fe80::1%eth0",
            "6:20: route-ipv6-gateway needs an IPv6 address",
        ),
        ("route-gateway x", "6:15: route-gateway needs an IPv4 address"),
        (
            "remote-cert-ku zz",
            "6:16: remote-cert-ku needs hexadecimal key usage masks, such as a0",
        ),
        ("redirect-gateway x", None),
        (
            "dns server x address 10.0.0.1",
            "6:5: dns: dns server needs a number from -128 to 127",
        ),
        (
            "dns server 200 address 10.0.0.1",
            "6:5: dns: dns server needs a number from -128 to 127",
        ),
        (
            "dns server 1 address",
            "6:5: dns: dns takes search-domains or server N KEYWORD VALUE",
        ),
        ("dns server 1 x y", "6:5: dns: dns server: unknown keyword x"),
        (
            "dns server 1 address 127.0.0.1",
            "6:5: dns: 127.0.0.1 is not the address of a resolver",
        ),
        ("dns search-domains a..b", "6:5: dns: needs a domain name"),
        (
            "static-challenge x 0 md5",
            "6:22: static-challenge takes scrv1 or concat",
        ),
        (
            "static-challenge x 0\nauth-user-pass username-only",
            "6:1: static-challenge needs a password to be asked for",
        ),
        ("compress x", "6:10: compress: unknown algorithm x"),
        ("comp-lzo x", "6:10: comp-lzo takes yes, no or adaptive"),
        (
            "tun-mtu 1400\nlink-mtu 1400",
            "7:1: tun-mtu and link-mtu exclude another",
        ),
        (
            "auth-user-pass latin",
            "6:16: auth-user-pass (latin): is not UTF-8 text",
        ),
        (
            "<auth-user-pass>\nu\n" + "p" * 4097 + "\n</auth-user-pass>",
            "8:1: auth-user-pass: is too long",
        ),
        ("<verb>\n</verb>", "6:1: verb cannot be written as a block"),
        ("connection x", "6:1: connection is a block: <connection>"),
        (
            "<connection>\n</connection>",
            "6:1: a connection block needs a remote",
        ),
        (
            "<connection>\nremote a\nverb 3\n</connection>",
            "8:1: verb cannot stand in a connection block",
        ),
        (
            "<connection>\nremote a 0\nremote b\n</connection>",
            "7:10: remote needs a port from 1 to 65535",
        ),
        (
            "<connection>\nremote a\nfoo\n</connection>",
            '8:1: unknown directive "foo"',
        ),
        (
            "<connection>\nremote a\nlport 80\n</connection>",
            "8:7: lport below 1024 is refused: use nobind",
        ),
        ("<connection>\nremote a\n", None),
        (
            "config nowhere",
            "6:8: config: cannot read nowhere: No such file or directory",
        ),
        ("secret ta.key", "6:1: secret and client exclude another"),
        ("plugin", "6:1: plugin needs text..."),
        ("dhcp-option", "6:1: dhcp-option needs text [text...]"),
        ("setenv", "6:1: setenv needs text [text...]"),
    ],
)
def test_one_thing_wrong_is_one_problem(wrong, lines, problem):
    found = wrong(lines)
    assert problem is None or found == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "client\nca ca.crt\nauth-user-pass",
            'p.ovpn: names no server: a line "remote HOST PORT" is missing',
        ),
        (
            "client\nremote h\nauth-user-pass",
            "p.ovpn: would accept any server: ca or peer-fingerprint is missing; ask the operator for the certificate",
        ),
        (
            "client\nremote h\nca ca.crt",
            "p.ovpn: does not say who you are: cert and key, pkcs12 or auth-user-pass is missing",
        ),
        (
            "remote h\nca ca.crt\nauth-user-pass",
            'p.ovpn: the line "client" is missing (or tls-client, or secret)',
        ),
        (
            "tls-client\nremote h\nca ca.crt\nauth-user-pass",
            "p.ovpn:4:1: auth-user-pass needs client, or pull",
        ),
        (
            "remote h\nsecret ta.key",
            "p.ovpn: secret needs ifconfig: nobody pushes addresses",
        ),
        (
            "auth RIPEMD160\nremote h\nsecret ta.key\nifconfig 10.0.0.1 10.0.0.2",
            "p.ovpn:1:6: auth: unknown digest RIPEMD160",
        ),
        (
            "client\n" + "remote h\n" * 600 + "ca ca.crt\nauth-user-pass",
            "p.ovpn: over 512 servers",
        ),
    ],
)
def test_what_a_whole_profile_lacks(problems, text, problem):
    assert problems(text) == [problem]


def test_every_problem_is_reported_in_order(problems):
    found = problems("client\nfoo\nremote h 0\n<ca>\nx")
    assert [one.split(":")[1] for one in found] == ["2", "3", "4"]


def test_a_profile_that_names_itself_ends(files):
    def read(name):
        return b"config p.ovpn\n"

    with pytest.raises(ConfigError, match=f"more than {DEPTH_MAX} deep"):
        parse_client_profile("config p.ovpn", "p.ovpn", read)


def test_only_certificates_are_taken_of_ca(parse, files):
    mixed = (files["ca.crt"] + files["client.key"]).decode()
    text = f"client\nremote h\nauth-user-pass\n<ca>\n{mixed}</ca>"
    assert parse(text).server_check.ca == files["ca.crt"]


def test_a_profile_has_no_more_than_1008_routes(having):
    lines = "".join(f"route 10.{n >> 8}.{n & 255}.0\n" for n in range(1100))
    profile = having(lines)
    assert len(profile.routes) == 1008
    assert len(profile.notes) == 1100 - 1008


def test_sizes_have_limits(wrong, parse):
    blocks = "<connection>\nremote a\n</connection>\n" * (CONNECTIONS_MAX + 1)
    assert wrong(blocks).endswith(f"over {CONNECTIONS_MAX} connections")
    with pytest.raises(ConfigError, match=f"over {FILE_MAX} bytes"):
        parse_client_profile("ca x", "p", lambda name: bytes(FILE_MAX + 1))
    with pytest.raises(ConfigError, match="too many directives"):
        parse("verb 3\n" * 100_001)
    with pytest.raises(ConfigError) as caught:
        parse("foo\n" + "nobind x\n" * 1000)
    assert len(caught.value.problems) < 110


def test_problems_have_a_row_in_the_table_of_reasons(problems):
    for text in ("foo", "client x", "server-ipv6 x", '"', "ca x", ""):
        with pytest.raises(ConfigError) as caught:
            parse_client_profile(text, "p", lambda name: b"")
        assert all(one.code in REASONS for one in caught.value.problems)


def test_nothing_secret_is_shown(having, files):
    profile = having(
        "cert client.crt\nkey client.key\ntls-crypt ta.key\n"
        "socks-proxy a 1 auth\n<askpass>\nhidden\n</askpass>"
    )
    shown = repr(profile)
    for secret in ("pass'", "hidden", "PRIVATE", "0b0c0d"):
        assert secret not in shown
    assert profile.identity.passphrase == b"hidden"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("PK\x03\x04....", "zip archive"),
        ("\x1f\udc8b\x08", "compressed"),
        ("<!DOCTYPE html><html>", "web page"),
        ("  <html lang=en>", "web page"),
        ("[Interface]\nPrivateKey = x\n[Peer]", "WireGuard"),
        ("# c\n[peer]\r\n", "WireGuard"),
        ("config setup\nconn x\n", "IPsec"),
        ("conn %default\n  keyexchange=ikev2", "IPsec"),
        ('{"a": 1}', "JSON"),
        ("[{}]", "JSON"),
        ("-----BEGIN CERTIFICATE-----\nx", "certificate or a key"),
        ("[vpn]\nclient = yes\nconnect = a.example:443\n", "stunnel"),
    ],
)
def test_what_is_not_a_profile_is_recognised(problems, text, what):
    (found,) = problems(text)
    assert what in found


@pytest.mark.parametrize("word", ["scramble", "stunnel", "obfsproxy"])
def test_obfuscation_is_recognised(wrong, word):
    assert "obfuscat" in wrong(f"{word} obfuscate x")


def test_only_servers_of_the_forced_protocol_are_left(having):
    both = "remote a 1 tcp\nremote b 2 udp6\nproto-force "
    for word, hosts in (
        ("tcp-client", ["a"]),
        ("udp4", ["192.0.2.1", "b"]),
    ):
        remotes = having(both + word).remotes
        assert [remote.host for remote in remotes] == hosts
    blocks = (
        "<connection>\nremote c 1 tcp\n</connection>\n"
        "<connection>\nremote d 1 udp\n</connection>\n"
    )
    (one,) = having(blocks + "proto-force tcp").remotes
    assert one.host == "c"
