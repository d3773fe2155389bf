"""A profile as text again; what properties do not reach."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from qubes_vpn.config.login import NAME_ONLY
from qubes_vpn.config.model import (
    ClientProfile,
    ControlWrapKey,
    Credentials,
    Proxy,
    Remote,
    ServerCheck,
)
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.write import REDACTED, quoted, write_profile

STATIC = bytes(range(256))
CHECK = ServerCheck(fingerprints=(bytes(32),))
ASK = Credentials()


def no_files(name):
    raise FileNotFoundError(2, name)


def again(profile):
    text = write_profile(profile)
    found = parse_client_profile(text, "p", no_files)
    return replace(found, notes=())


@pytest.mark.parametrize(
    "remote",
    [
        Remote("h"),
        Remote("2001:db8::1", 443, "tcp", 6),
        Remote(
            "h",
            lport=4000,
            local="192.0.2.1",
            mssfix=0,
            mssfix_of="",
            tun_mtu=1400,
        ),
        Remote("h", mssfix=1300, mssfix_of=""),
        Remote("h", mssfix=1000, max_packet_size=1000),
        Remote("h", mssfix=1300, mssfix_of="fixed"),
        Remote("h", explicit_exit_notify=2, fragment=1300),
        Remote("h", control_wrap=ControlWrapKey("tls-auth", STATIC, 1)),
        Remote("h", proto="tcp", proxy=Proxy("http", "p", 1, "auto")),
        Remote(
            "h",
            proto="tcp",
            proxy=Proxy(
                "http", "p", 1, "ntlm2", "u", "p", "a b", (("X", "y"),)
            ),
        ),
        Remote("h", proxy=Proxy("socks", "p", 1, "basic", "u", "p")),
        Remote("h", proxy=Proxy("socks", "p", 1)),
    ],
)
def test_remotes(remote):
    profile = ClientProfile((remote, remote), CHECK, auth_user_pass=ASK)
    assert again(profile) == replace(profile, ping_restart=120)


@pytest.mark.parametrize("direction", [None, 0, 1])
def test_a_static_key(direction):
    profile = ClientProfile(
        (Remote("h"),),
        ServerCheck(),
        secret=(STATIC, direction),
        pull=False,
        cipher="AES-256-CBC",
        ifconfig=("10.0.0.1", "10.0.0.2"),
    )
    assert again(profile) == profile


def test_everything_at_once():
    profile = ClientProfile(
        (Remote("h"),),
        ServerCheck(
            fingerprints=(bytes(32),),
            verify_hash=None,
            name="n m",
            name_type="name",
            eku="1.2",
            ku=(0,),
            ns_cert_type="server",
        ),
        auth_user_pass=ASK,
        data_ciphers_fallback="AES-256-CBC",
        compression="lz4-rx",
        allow_compression="asym",
        route_nopull=True,
        pull_filters=(("reject", "a b"),),
        tun_mtu=1400,
        topology="p2p",
        redirect_gateway=("def1", "ipv6"),
        dns=("9.9.9.9", "fd00::1"),
        search=("a.b",),
        routes=(
            (ip_network("10.0.0.0/8"), "10.0.0.1", 3),
            (ip_network("2001:db8::/32"), "", 0),
        ),
        ifconfig6=("fd00::2/64", "fd00::1"),
        static_challenge=("a b", True),
        static_challenge_concat=True,
    )
    assert again(profile) == profile
    nameless = replace(profile, auth_user_pass=NAME_ONLY, static_challenge=None)
    nameless = replace(nameless, static_challenge_concat=False)
    assert again(nameless) == nameless
    hashed = replace(
        profile,
        server_check=ServerCheck(verify_hash=("SHA1", bytes(20))),
    )
    assert 'verify-hash "00:00' in write_profile(hashed)


def test_without_pull(files, parse):
    profile = parse(
        "tls-client\nremote h\nca ca.crt\ncert client.crt\nkey client.key\n"
        "crl-verify crl.pem\n"
    )
    found = again(profile)
    assert found == profile
    assert not found.pull


def test_revoked_serial_numbers(having):
    profile = having("crl-verify x/crls dir")
    assert profile.server_check.revoked
    assert again(profile) == profile


def test_more_certificates_without_one_of_our_own(files, parse):
    profile = parse(
        "client\nremote h\nca ca.crt\nauth-user-pass\nextra-certs ca.crt\n"
    )
    assert again(profile) == profile


def test_a_passphrase(having):
    profile = having(
        "cert client.crt\nkey client.key\n<askpass>\na b\n</askpass>"
    )
    assert profile.identity.passphrase == b"a b"
    assert again(profile) == profile


def test_secrets_can_be_left_out():
    profile = ClientProfile(
        (Remote("h", proxy=Proxy("socks", "p", 1, "basic", "uu", "pp")),),
        CHECK,
        auth_user_pass=Credentials("name", "hidden"),
        control_wrap=ControlWrapKey("tls-crypt", STATIC),
    )
    text = write_profile(profile, redact=True)
    assert text.count(REDACTED) == 3
    for secret in ("hidden", "uu", "pp", "0001"):
        assert secret not in text


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("a-b.c_1", "a-b.c_1"),
        ("", '""'),
        ("a b", '"a b"'),
        ('"\\', '"\\"\\\\"'),
        ("é", '"é"'),
        ("-", '"-"'),
    ],
)
def test_words_are_quoted_where_they_must(word, text):
    assert quoted(word) == text
