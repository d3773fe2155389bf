"""Server profiles and the files of client-config-dir."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from qubes_vpn.config.server_profile import (
    Listen,
    TokenOptions,
    parse_client_config,
)
from qubes_vpn.errors import ConfigError
from qubes_vpn.wire.keyfile import AUTH_TOKEN_SERVER, format_pem

TOKEN = format_pem(bytes(128), AUTH_TOKEN_SERVER)


def test_a_small_profile(serve):
    profile = serve("")
    assert profile.listens == (Listen(),)
    assert profile.network4 == ip_network("10.8.0.0/24")
    assert profile.identity.certificate
    assert profile.client_check.ca
    assert not profile.wants_password
    assert profile.ping_restart == 0


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("port 1000\nproto tcp-server", "listens", (Listen("", 1000, "tcp"),)),
        ("proto udp6", "listens", (Listen("", 1194, "udp", 6),)),
        ("local *", "listens", (Listen(),)),
        ("local 192.0.2.1\nlocal fd00::1 443 tcp\nport 9", "listens", (Listen("192.0.2.1", 9, "udp", 4), Listen("fd00::1", 443, "tcp", 6))),
        ("bind ipv6only", "listens", (Listen("", 1194, "udp", 6),)),
        ("lport 7", "listens", (Listen("", 7),)),
        ("server-ipv6 fd00::/64", "network6", ip_network("fd00::/64")),
        ("topology net30", "topology", "net30"),
        ("ifconfig-ipv6-pool fd00::100/112", "pool6", (IPv6Address("fd00::100"), IPv6Address("fd00::ffff"))),
        ("keepalive 10 60", "keepalive", (10, 60)),
        ("keepalive 10 60", "ping", 10),
        ("keepalive 10 60", "ping_restart", 120),
        ("ping-restart 70", "ping_restart", 70),
        ("inactive 9 8", "inactive_bytes", 8),
        ("explicit-exit-notify", "explicit_exit_notify", 1),
        ("max-clients 5", "max_clients", 5),
        ("max-clients 0", "max_clients", 1),
        ("client-to-client", "client_to_client", True),
        ("duplicate-cn", "duplicate_cn", True),
        ("connect-freq 5 10", "connect_freq", (5, 10)),
        ("connect-freq-initial 5 10", "connect_freq_initial", (5, 10)),
        ('push "route 10.0.0.0 255.0.0.0"\npush ping', "push", ("route 10.0.0.0 255.0.0.0", "ping")),
        ('push "compress stub-v2"', "push", ("compress stub-v2",)),
        ("route 10.3.0.0 255.255.0.0", "routes", ((ip_network("10.3.0.0/16"), "", 0),)),
        ("route 10.3.0.0 255.255.0.0 net_gateway", "routes", ()),
        ("verify-client-cert optional", "verify_client_cert", "optional"),
        ("verify-client-cert", "verify_client_cert", "require"),
        ("username-as-common-name", "username_as_common_name", True),
        ("auth-gen-token", "auth_gen_token", TokenOptions()),
        ("auth-gen-token 3600 300 external-auth", "auth_gen_token", TokenOptions(3600, 300, True)),
        (f"auth-gen-token 0\n<auth-gen-token-secret>\n{TOKEN}</auth-gen-token-secret>", "auth_gen_token", TokenOptions(secret=bytes(128))),
        ("auth-gen-token-secret junk", "auth_gen_token", None),
        ("plugin /usr/lib/openvpn-plugin-auth-pam.so login", "pam_service", "login"),
        ("plugin /usr/lib/openvpn-plugin-auth-pam.so", "pam_service", "openvpn"),
        ("tls-crypt-v2 v2-server.key force-cookie", "force_cookie", True),
        ("tls-crypt-v2 v2-server.key", "tls_crypt_v2", bytes(128)),
        ("tls-crypt-v2-max-age 9", "tls_crypt_v2_max_age", 9),
        ("crl-verify some.pem", "crl_file", "some.pem"),
        ("crl-verify revoked dir", "crl_file", "revoked/"),
        ("crl-verify /revoked/ dir", "crl_file", "/revoked/"),
        ("cd etc\nclient-config-dir ccd", "client_config_dir", "etc/ccd"),
        ("client-config-dir /ccd\nccd-exclusive", "ccd_exclusive", True),
        ("ifconfig-pool-persist ipp 9", "persist_seconds", 9),
        ("status s.log 5\nstatus-version 3", "status_version", 3),
        ("status s.log 5", "status_file", "s.log"),
        ("reneg-sec 9", "reneg_sec", 9),
        ("", "reneg_sec_min", 3240),
        ("reneg-sec 100", "reneg_sec_min", 90),
        ("reneg-sec 100 60", "reneg_sec_min", 60),
        ("reneg-sec 0", "reneg_sec_min", 0),
        ("tun-mtu 1400", "tun_mtu", 1400),
        ("auth SHA256", "auth", "SHA256"),
        ("dh none", "notes", ()),
        ("dh 2048.pem", "notes", ((6, "dh", "keys are agreed on over elliptic curves"),)),
        ("dns server 1 address 192.0.2.1", "notes", ((6, "dns", "is for clients: push it"),)),
        ("ifconfig-push-constraint 10.8.0.64 255.255.255.192", "push_constraint", ip_network("10.8.0.64/26")),
        ("force-tls-key-material-export", "force_tls_key_material_export", True),
    ],
)  # fmt: skip
def test_directives_set_their_field(serve, lines, field, value):
    if lines.startswith("cd"):
        lines = "client-config-dir etc/ccd"
    assert getattr(serve(lines), field) == value


def test_cd_holds_for_names_too(serve):
    text = "cd etc\nclient-config-dir ccd\n"
    with pytest.raises(ConfigError, match=r"cannot read ca\.crt"):
        serve(text)


def test_both_wraps_beside_each_other(serve):
    profile = serve("tls-crypt-v2 v2-server.key\ntls-auth ta.key 0")
    assert profile.tls_crypt_v2
    assert profile.control_wrap.kind == "tls-auth"
    assert profile.control_wrap.direction == 0


def test_an_inline_list_is_read(serve, files):
    block = f"<crl-verify>\n{files['crl.pem'].decode()}</crl-verify>"
    profile = serve(block)
    assert profile.client_check.crl == files["crl.pem"]
    assert profile.crl_file == ""


def test_revoked_serial_numbers_inside_the_profile(serve):
    profile = serve("<crl-verify>\n17\n4\n</crl-verify>")
    assert profile.client_check.revoked == {"17", "4"}
    assert profile.crl_file == ""


MODE = """\
mode server
tls-server
ca ca.crt
cert server.crt
key server.key
"""


def test_addresses_without_the_server_directive(serve):
    lines = "ifconfig 10.9.0.1 255.255.255.0\nifconfig-pool 10.9.0.9 10.9.0.99"
    profile = serve(lines, MODE)
    assert profile.network4 == ip_network("10.9.0.0/24")
    assert profile.pool4 == (IPv4Address("10.9.0.9"), IPv4Address("10.9.0.99"))
    profile = serve("ifconfig-ipv6 fd00::1/64 fd00::2", MODE)
    assert profile.network6 == ip_network("fd00::/64")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("remote h", "6:1: remote is for a client's profile"),
        ("client", "6:1: client is for a client's profile"),
        ("dev tap", None),
        ("mode p2p", "6:6: mode p2p is not for a server"),
        ("secret ta.key", "6:1: secret is for two peers; a server needs ca, cert and key"),
        ("plugin x.so", "6:1: plugin is refused: no plugins are loaded"),
        ("client-connect /x", None),
        ("crl-verify revoked x", '6:20: crl-verify takes a file, or a folder and "dir"'),
        ("auth-user-pass-verify /x via-file", None),
        ("management-client-auth", None),
        ("tls-verify /x", None),
        ("comp-lzo", None),
        ("compress migrate", None),
        ("fragment 1300", "6:1: fragment is refused: a server neither cuts packets nor joins them; see mssfix"),
        ("proto tcp-client", "6:1: tcp-client is for a client; write tcp-server"),
        ("local host.example", "6:7: local needs an IP address"),
        ("local 192.0.2.1 1 udp\n" * 65 + "", None),
        ("server 10.8.0.0 255.255.255.252", "6:17: server needs a network of /8 to /29"),
        ("server 10.8.0.1 255.255.255.0", "6:8: server needs a network's address, without host bits"),
        ("server 10.8.0.0 255.255.255.0 x", "6:31: server takes nothing else but nopool"),
        ("ifconfig-pool 10.8.0.2 10.8.0.9", None),
        ("server 10.8.0.0 255.255.255.0 nopool\nifconfig-pool 10.8.0.9 10.8.0.2", None),
        ("server-ipv6 fd00::/48", "6:13: server-ipv6 needs /64 to /124"),
        ("tls-crypt-v2 v2-server.key x", "6:28: tls-crypt-v2 takes force-cookie or allow-noncookie"),
        ("tls-crypt-v2 ta.key", None),
        ("tls-auth ta.key\ntls-crypt ta.key", "7:1: tls-auth and tls-crypt exclude another"),
        ("verify-client-cert maybe", "6:20: verify-client-cert takes none, optional or require"),
        ("auth-gen-token x", "6:16: auth-gen-token takes LIFETIME RENEWAL external-auth"),
        ("auth-gen-token 3600 10", None),
        ("auth-gen-token\nauth-gen-token-secret junk", None),
        ('push "a,b"', "6:6: push needs one printable option, without commas"),
        ('push "compress lz4"', "6:6: push: compress: a server's packets are not framed for compression; take it out, and out of the clients' profiles"),
        ('push comp-lzo', None),
        ('push "comp-lzo no"', None),
        ("ccd-exclusive", " ccd-exclusive needs client-config-dir"),
        ("status-version 4", "6:16: status-version needs one of: 1, 2, 3"),
        ("key client.key", "6:1: key: it is not the key of the certificate in `cert`"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_problem(server_wrong, lines, problem):
    if lines.count("local") == 65:
        lines = "".join(f"local 192.0.2.{n}\n" for n in range(65))
    found = server_wrong(lines)
    assert problem is None or found == problem


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("server 10.8.0.0 255.255.255.0\nca ca.crt", " a server needs cert and key, or pkcs12"),
        ("server 10.8.0.0 255.255.255.0\ncert server.crt\nkey server.key", " would accept any client: ca or peer-fingerprint is missing"),
        ("ca ca.crt\ncert server.crt\nkey server.key", ' gives clients no addresses: "server NETWORK NETMASK" is missing'),
        ("ifconfig x 10.0.0.1\nca ca.crt", None),
        ("ifconfig 10.0.0.1 10.0.0.2\nca ca.crt\ncert server.crt\nkey server.key", "1:10: ifconfig needs ADDRESS NETMASK"),
        ("<html>", None),
    ],
)  # fmt: skip
def test_what_a_whole_profile_lacks(server_wrong, base, problem):
    found = server_wrong("", base + "\n")
    assert problem is None or found == problem


def test_a_client_s_own_file():
    config = parse_client_config(
        "ifconfig-push 10.8.0.9 255.255.255.0\n"
        "ifconfig-ipv6-push fd00::9/64\n"
        "iroute 192.168.1.0 255.255.255.0\niroute-ipv6 fd01::/64\n"
        'push "route 10.0.0.0 255.0.0.0"\npush-remove dns\npush-reset\n'
        "override-username bob\n",
        "ccd/one",
    )
    assert config.username == "bob"
    assert config.ifconfig4 == (IPv4Address("10.8.0.9"), "255.255.255.0")
    assert config.ifconfig6 == (IPv6Address("fd00::9"), 64)
    assert config.iroutes == (
        ip_network("192.168.1.0/24"),
        ip_network("fd01::/64"),
    )
    assert config.push == ("route 10.0.0.0 255.0.0.0",)
    assert config.push_remove == ("dns",)
    assert config.push_reset
    assert not config.disable
    assert parse_client_config("disable", "x").disable
    assert parse_client_config("", "x").ifconfig4 is None


@pytest.mark.parametrize(
    "text",
    [
        "ifconfig-push x y",
        "remote h",
        "config other",
        "verb 3",
        "vlan-pvid 1",
        f"override-username {'x' * 129}",
        "data-ciphers AES-256-GCM",
        "max-routes-per-client 1",
    ],
)
def test_what_a_client_s_own_file_cannot_hold(text):
    with pytest.raises(ConfigError) as caught:
        parse_client_config(text, "ccd/one")
    assert caught.value.problems[0].file == "ccd/one"
