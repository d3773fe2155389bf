"""What a client says of itself, and what two points make of it.

The options strings are those that Debian's openvpn 2.6.14 found consistent
with its own (no "used inconsistently" in the server's log).
"""

from dataclasses import replace

import pytest

from qubes_vpn.config.model import ClientProfile, Remote, ServerCheck
from qubes_vpn.engine.peer_info import (
    PlaneFeatures,
    Platform,
    options_string,
    peer_info,
)
from qubes_vpn.engine.pull import apply_update, choose_cipher, occ_cipher
from qubes_vpn.engine.settle import (
    P2P_PEER_ID,
    Situation,
    block_limit,
    own_settings,
)
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.key_method import KeyMethodMessage, KeySource
from tests.unit.engine.pair import profiles

UDP = Remote("192.0.2.1")
TCP = Remote("192.0.2.1", proto="tcp")
PROFILE = ClientProfile((UDP,), ServerCheck(), auth="SHA256")
FEATURES = PlaneFeatures()
WITH_EPOCH = PlaneFeatures(epoch=True)
SOURCE = KeySource(bytes(32), bytes(32))


def peer(options="", info=""):
    return KeyMethodMessage(SOURCE, options, peer_info=info)


@pytest.mark.parametrize(
    ("changes", "remote", "expected"),
    [
        (
            {"control_wrap": profiles("tls-auth")[0].control_wrap},
            UDP,
            "V4,dev-type tun,link-mtu 1553,tun-mtu 1500,proto UDPv4,keydir 1,"
            "auth SHA256,keysize 128,tls-auth,key-method 2,tls-client",
        ),
        (
            {"cipher": "AES-256-CBC", "data_ciphers": ("AES-256-CBC",)},
            TCP,
            "V4,dev-type tun,link-mtu 1571,tun-mtu 1500,proto TCPv4_CLIENT,"
            "cipher AES-256-CBC,auth SHA256,keysize 256,key-method 2,tls-client",
        ),
        (
            {"cipher": "AES-256-GCM", "compression": "stub", "fragment": 1300},
            Remote("2001:db8::1", family=6),
            "V4,dev-type tun,link-mtu 1521,tun-mtu 1500,proto UDPv6,comp-lzo,"
            "mtu-dynamic,cipher AES-256-GCM,auth [null-digest],keysize 256,"
            "key-method 2,tls-client",
        ),
    ],
)
def test_options_string(changes, remote, expected):
    profile = replace(PROFILE, **changes)
    assert options_string(profile, remote, FEATURES) == expected


def test_peer_info_with_a_pull():
    assert peer_info(PROFILE, WITH_EPOCH, Platform()).splitlines() == [
        "IV_VER=2.7.0",
        "IV_PLAT=linux",
        "IV_TCPNL=1",
        "IV_MTU=1600",
        "IV_NCP=2",
        "IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305",
        f"IV_PROTO={7070 | 1 << 10}",
        "IV_LZO_STUB=1",
        "IV_COMP_STUB=1",
        "IV_COMP_STUBv2=1",
        "IV_GUI_VER=qubes_vpn",
        "IV_SSO=webauth,crtext",
    ]


def test_peer_info_of_a_plane_with_less_and_details_on_request():
    features = PlaneFeatures(framing=False, ciphers=frozenset({"AES-128-GCM"}))
    platform = Platform(details=(("IV_SSL", "OpenSSL"),))
    profile = replace(PROFILE, peer_info=(("UV_ID", "7"),))
    quiet = peer_info(profile, features, platform)
    assert "IV_CIPHERS=AES-128-GCM\n" in quiet
    assert "STUB" not in quiet
    assert "IV_NCP" not in quiet
    assert "UV_ID" not in quiet
    loud = peer_info(replace(profile, push_peer_info=True), features, platform)
    assert loud == f"{quiet}IV_SSL=OpenSSL\nUV_ID=7\n"


def test_peer_info_without_a_pull_offers_to_agree():
    info = peer_info(replace(PROFILE, pull=False), FEATURES, Platform())
    bits = int(info.split("IV_PROTO=")[1].split()[0])
    assert bits & 1 << 5
    assert not bits & (1 << 2 | 1 << 4 | 1 << 8)
    assert "IV_MTU" not in info


# --- the cipher ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("pushed", "said", "fallback", "expected"),
    [
        (("cipher AES-128-GCM",), "cipher AES-256-GCM", "", "AES-128-GCM"),
        (("cipher aes-128-gcm",), "", "", "AES-128-GCM"),
        (("cipher AES-256-CBC",), "", "AES-256-CBC", "AES-256-CBC"),
        ((), "V4,cipher AES-128-GCM,auth SHA1", "", "AES-128-GCM"),
        ((), "V4,cipher AES-256-CBC", "AES-256-CBC", "AES-256-CBC"),
        ((), "V4,auth SHA1", "AES-256-CBC", "AES-256-CBC"),
    ],
)
def test_the_cipher_is_pushed_or_said_or_the_fallback(
    pushed, said, fallback, expected
):
    profile = replace(PROFILE, data_ciphers_fallback=fallback)
    assert choose_cipher(profile, FEATURES, pushed, said) == expected


@pytest.mark.parametrize(
    ("pushed", "said", "fallback"),
    [
        (("cipher AES-256-CBC",), "", ""),
        (("cipher none",), "", "AES-256-CBC"),
        ((), "V4,cipher BF-CBC", "AES-256-CBC"),
        ((), "", ""),
    ],
)
def test_no_other_cipher_is_used(pushed, said, fallback):
    profile = replace(PROFILE, data_ciphers_fallback=fallback)
    with pytest.raises(SessionError, match="cipher-refused"):
        choose_cipher(profile, FEATURES, pushed, said)


def test_a_plane_limits_the_ciphers():
    features = PlaneFeatures(ciphers=frozenset({"AES-128-GCM"}))
    with pytest.raises(SessionError, match="cipher-refused"):
        choose_cipher(PROFILE, features, ("cipher AES-256-GCM",), "")


def test_occ_cipher():
    assert occ_cipher("V4,dev-type tun,cipher BF-CBC,auth SHA1") == "BF-CBC"
    assert occ_cipher("V4,ciphers x") == ""


# --- updates -------------------------------------------------------------------

BEFORE = ("route 10.0.0.0", "route 10.1.0.0", "dns server 1", "ping 5")


@pytest.mark.parametrize(
    ("update", "after"),
    [
        (("route 10.2.0.0",), ("dns server 1", "ping 5", "route 10.2.0.0")),
        (
            ("route 10.2.0.0", "route 10.3.0.0"),
            ("dns server 1", "ping 5", "route 10.2.0.0", "route 10.3.0.0"),
        ),
        (("-route",), ("dns server 1", "ping 5")),
        (("-?route", "?-dns"), ("dns server 1", "ping 5")),
        (("?cipher x", "?unheard of"), BEFORE),
        (("route 10.2.0.0", "-route"), ("dns server 1", "ping 5")),
        (("ping 9",), None),
        (("cipher AES-128-GCM",), None),
    ],
)
def test_updates(update, after):
    """An entry "?-dns" is an optional option of that name: unknown, so ignored."""
    if after is None:
        with pytest.raises(SessionError, match="bad-push"):
            apply_update(BEFORE, update)
    else:
        assert apply_update(BEFORE, update) == after


# --- without a pull ------------------------------------------------------------


def situation(features=FEATURES, **changes):
    changes = {
        "pull": False,
        "ifconfig": ("10.0.0.2", "10.0.0.1"),
        **changes,
    }
    return Situation(replace(PROFILE, **changes), UDP, features)


NCP = f"IV_PROTO={1 << 1 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10}\n"


def test_two_points_agree():
    theirs = peer("", f"{NCP}IV_CIPHERS=AES-128-CBC:AES-128-GCM:AES-256-GCM\n")
    found = own_settings(situation(WITH_EPOCH), theirs, None)
    assert (found.cipher, found.peer_id) == ("AES-128-GCM", P2P_PEER_ID)
    assert (found.cc_exit, found.dyn_tls_crypt) == (True, True)
    assert (found.aead_epoch, found.tls_ekm) == (True, False)
    assert not own_settings(situation(), theirs, None).aead_epoch


def test_two_points_fall_back():
    theirs = peer("V4,cipher AES-256-CBC", f"{NCP}IV_CIPHERS=BF-CBC\n")
    where = situation(WITH_EPOCH, data_ciphers_fallback="AES-256-CBC")
    found = own_settings(where, theirs, None)
    assert (found.cipher, found.aead_epoch) == ("AES-256-CBC", False)
    with pytest.raises(SessionError, match="cipher-refused"):
        own_settings(situation(), theirs, None)


@pytest.mark.parametrize("info", ["", "IV_PROTO=x\n", "IV_PROTO=2\n"])
def test_a_point_that_does_not_negotiate(info):
    found = own_settings(situation(), peer("V4,cipher AES-256-GCM", info), None)
    assert (found.cipher, found.peer_id) == ("AES-256-GCM", None)


def test_a_stream_sends_no_goodbye_in_its_data():
    remote = replace(UDP, explicit_exit_notify=2)
    where = Situation(PROFILE, remote, FEATURES)
    push = ("cipher AES-256-GCM", "ifconfig 10.0.0.2 10.0.0.1")
    assert where.merge(push, "").explicit_exit_notify == 2
    streaming = replace(where, stream=True)
    assert streaming.merge(push, "").explicit_exit_notify == 0


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({"compression": "stub"}, PlaneFeatures(framing=False)),
        ({"aead_epoch": True, "peer_id": 1}, FEATURES),
        (
            {"aead_epoch": True, "peer_id": 1, "cipher": "AES-256-CBC"},
            WITH_EPOCH,
        ),
    ],
)
def test_what_the_plane_cannot_do_is_refused(fields, features):
    where = Situation(PROFILE, UDP, features)
    plain = where.merge(
        ("cipher AES-256-GCM", "ifconfig 10.0.0.2 10.0.0.1"), ""
    )
    with pytest.raises(SessionError, match="bad-push"):
        where.checked(replace(plain, **fields))


def test_only_gcm_keys_wear_out():
    where = situation()
    settings = where.merge((), "cipher AES-256-GCM")
    assert block_limit(settings) < 1 << 36
    assert block_limit(replace(settings, cipher="CHACHA20-POLY1305")) == 0
    assert block_limit(replace(settings, aead_epoch=True)) == 0
