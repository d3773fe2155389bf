"""What `check` says: for people, and for programs."""

import json
from datetime import UTC, datetime

import pytest

from qubes_vpn.config.explain import (
    LISTED_MAX,
    carries_everything,
    describe,
    explain,
    warnings,
)
from qubes_vpn.config.explain_server import describe_server, explain_server
from qubes_vpn.config.model import (
    ClientProfile,
    ControlWrapKey,
    Identity,
    Remote,
    ServerCheck,
)
from qubes_vpn.errors import REASONS

NOW = datetime(2026, 11, 24, tzinfo=UTC).timestamp()
FINGERPRINT = ":".join(["AB"] * 32)
# An RSA key of 1024 bits, signed with SHA-1: current libraries make no such.
WEAK = b"""\
-----BEGIN CERTIFICATE-----
MIIBijCB9AIBATANBgkqhkiG9w0BAQUFADANMQswCQYDVQQDDAJDQTAeFw0yNjEx
MjMxMzM5MTFaFw0zNTAyMDkxMzM5MTFaMA8xDTALBgNVBAMMBHdlYWswgZ8wDQYJ
KoZIhvcNAQEBBQADgY0AMIGJAoGBANYpPejO/N0PGnehc4F3jQ2Vpl0rCWQ6ZqSo
3euiFDo/YLODDuGAb7+VLfUCQUfveeEmzZ5JBdAxHHHAzYx4sE54JAMybK1PQ3CI
gB7Atjl9556KgXLxApPUBAZMRbqXv6Fzr21AnQ7hZG8tzhxHQhJiZTkCbWb+Frdn
kF2gWa3FAgMBAAEwDQYJKoZIhvcNAQEFBQADgYEAPhB5NJVyfEtZfGPXw7aIHyVH
rOfGVwLLtiqG3QFylfocDOllXS6hltUcIFhjxbs7WvzCXjzU0OSU2FAJzyeWD8E+
/fmvVhlb3wTfOTaeZdx/9oNrkODRYteupgxhgdzzxXaLTF1qLgmE7Yqn4TpJsubS
18zINiOO553s1kLFIBI=
-----END CERTIFICATE-----
"""
STRONG = "remote-cert-tls server\ntls-crypt ta.key\n"


def said(profile, now=NOW):
    return "\n".join(
        line for one in explain(profile, now) for line in one.lines
    )


def codes(profile, now=NOW):
    return [one.code for one in warnings(profile, now)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "192.0.2.1 port 1194, UDP"),
        ("proto tcp6", "TCP over IPv6"),
        ("proto tcp\nhttp-proxy 192.0.2.8 9", "through the HTTP proxy 192.0.2.8:9"),
        ("remote b\nremote-random", "in random order"),
        ("remote b", "in this order"),
        ("remote b\n" * 20, "and 5 more"),
        ("", "signed by CN=Test CA"),
        (f"peer-fingerprint {FINGERPRINT}", "one of 1 known fingerprints"),
        (f"verify-hash {FINGERPRINT} SHA256", "the SHA256 hash"),
        ("verify-x509-name n", "its subject is n"),
        ("verify-x509-name n name", "its name is n"),
        ("verify-x509-name n name-prefix", "its name begins with n"),
        ("remote-cert-tls server", "is for TLS Web Server Authentication"),
        ("ns-cert-type server", "its Netscape type is server"),
        ("crl-verify crl.pem", "not on the profile's revocation list"),
        ("cert client.crt\nkey client.key", "certificate CN=client, EC secp256r1"),
        ("", "a user name and password of the profile"),
        ("auth-user-pass", "that you are asked for"),
        ('static-challenge "x" 1', "an answer to a challenge"),
        ("", "as the server chooses"),
        ("data-ciphers-fallback AES-256-CBC", "if it cannot choose: AES-256-CBC"),
        ("tls-auth ta.key", "authenticated (tls-auth)"),
        ("tls-crypt ta.key", "encrypted (tls-crypt)"),
        ("", "without a key of its own"),
        ("ifconfig 10.8.0.2 10.8.0.1", "own address 10.8.0.2"),
        ("ifconfig-ipv6 fd00::2 fd00::1", "own address fd00::2/64"),
        ("redirect-gateway", "everything goes into the tunnel"),
        ("", "carries what the server says"),
        ("route 10.0.0.0 255.0.0.0", "carries: 10.0.0.0/8"),
        ("route 10.0.0.0 255.0.0.0\nroute-nopull", "what is not carried is blocked"),
        ("dhcp-option DNS 10.8.0.1", "resolvers: 10.8.0.1"),
        ("dhcp-option DOMAIN x.example", "domains: x.example"),
        ("route-nopull", "none: route-nopull"),
        ("verb 3", "line 6, verb: messages go to the journal"),
        ("setenv UV_X '\x1b[2J'", "192.0.2.1"),
        ("verify-x509-name '\x1b[2J'", "\\x1b[2J"),
    ],
)  # fmt: skip
def test_a_person_is_told(having, lines, expected):
    text = said(having(lines))
    assert expected in text
    assert "\x1b" not in text


def test_a_static_key_is_explained(parse):
    text = "remote h\nifconfig 10.0.0.1 10.0.0.2\nsecret ta.key\ncipher AES-256-CBC"
    profile = parse(text)
    assert "one key for ever" in said(profile)
    assert codes(profile) == ["QV-123"]
    assert describe(profile, NOW)["authentication"]["static_key"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (STRONG, []),
        ("tls-crypt ta.key", ["QV-122"]),
        ("remote-cert-tls server", ["QV-126"]),
        (STRONG + "data-ciphers AES-256-CBC", ["QV-123"]),
        (STRONG + "tls-version-min 1.0", ["QV-123"]),
        (STRONG + "tls-cert-profile insecure", ["QV-123"]),
        (STRONG + "comp-lzo", ["QV-125"]),
        (STRONG + "remote localhost", ["QV-127"]),
        (STRONG + "route-nopull\nroute 10.0.0.0 255.0.0.0", ["QV-124"]),
    ],
)
def test_weak_settings_are_named(having, lines, expected):
    assert codes(having(lines)) == expected
    assert set(expected) <= set(REASONS)


@pytest.mark.parametrize(
    ("days", "expected"),
    [(-2, ["QV-120"]), (0, []), (3640, ["QV-121"]), (4000, ["QV-120"])],
)
def test_expiry(having, days, expected):
    assert codes(having(STRONG), NOW + days * 86400) == expected


def test_weak_certificates_are_named():
    profile = ClientProfile(
        (Remote("h"),),
        ServerCheck(ca=WEAK, eku="x"),
        control_wrap=ControlWrapKey("tls-crypt"),
    )
    texts = [one.text for one in warnings(profile, NOW)]
    assert texts == [
        "CN=weak has an RSA key of only 1024 bits",
        "CN=weak is signed with sha1",
    ]
    early = warnings(profile, NOW - 86400 * 5)
    assert "is not valid yet" in early[0].text


def test_a_fingerprint_alone_is_explained():
    check = ServerCheck(fingerprints=(bytes(32),))
    text = said(ClientProfile((Remote("h"),), check))
    assert "one of 1 known fingerprints" in text
    assert "signed by" not in text


def test_a_pkcs12_file_is_explained():
    profile = ClientProfile(
        (Remote("h"),), ServerCheck(), identity=Identity(pkcs12=b"0")
    )
    assert "an authority of the PKCS#12 file" in said(profile)
    assert "a certificate in a PKCS#12 file" in said(profile)


def test_partly_carried_says_what_and_that_the_rest_is_blocked(having):
    routes = "".join(f"route 10.{n}.0.0 255.255.0.0\n" for n in range(20))
    profile = having(STRONG + "route-nopull\n" + routes)
    (warning,) = warnings(profile, NOW)
    assert "carries only 10.0.0.0/16" in warning.text
    assert f"and {20 - LISTED_MAX} more" in warning.text
    assert "the rest is blocked: use another qube" in warning.text


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", None),
        ("redirect-gateway def1", True),
        ("route 0.0.0.0 0.0.0.0", True),
        ("route 10.0.0.0 255.0.0.0", None),
        ("route 10.0.0.0 255.0.0.0\nroute-nopull", False),
        ("route-nopull", None),
    ],
)
def test_what_is_carried(having, lines, expected):
    assert carries_everything(having(lines)) is expected


def test_nothing_secret_is_said(having):
    profile = having(
        "cert client.crt\nkey client.key\ntls-crypt ta.key\nsocks-proxy a 1 auth"
    )
    for text in (said(profile), json.dumps(describe(profile, NOW))):
        for secret in (
            "user\n",
            '"user"',
            "pass\n",
            '"pass"',
            "PRIVATE",
            "0001",
        ):
            assert secret not in text


def test_the_object_has_a_stable_shape(having):
    value = describe(having("socks-proxy a 1\nverb 3"), NOW)
    assert list(value) == [
        "v",
        "kind",
        "ok",
        "servers",
        "identity",
        "authentication",
        "encryption",
        "routes",
        "dns",
        "search",
        "not_applied",
        "warnings",
    ]
    assert value["servers"][0]["proxy"] == {
        "kind": "socks",
        "host": "a",
        "port": 1,
    }
    json.dumps(value)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "every address port 1194, UDP"),
        ("proto udp4", "IPv4 only"),
        ("", "its certificate is signed by CN=Test CA"),
        (f"peer-fingerprint {FINGERPRINT}", "known fingerprint"),
        ("verify-client-cert optional", "or it has no certificate"),
        ("verify-client-cert none", "no more than 1024"),
        ("plugin auth-pam.so", "it knows a user name and password"),
        ("crl-verify x", "not on the revocation list"),
        ("client-config-dir ccd\nccd-exclusive", "a file of its name in ccd"),
        ("tls-crypt-v2 v2-server.key", "control: tls-crypt-v2"),
        (
            "tls-crypt-v2 v2-server.key\ntls-auth ta.key",
            "tls-crypt-v2, tls-auth",
        ),
        ("", "control: plain"),
        ("server-ipv6 fd00::/64", "an address of fd00::/64"),
        ("push ping", "ping"),
        ("verb 3", "verb: messages"),
    ],
)
def test_a_server_is_explained(serve, lines, expected):
    profile = serve(lines)
    sections = explain_server(profile)
    text = "\n".join(line for one in sections for line in one.lines)
    assert expected in text
    assert describe_server(profile)["kind"] == "server"
