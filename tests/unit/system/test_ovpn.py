"""What we say to the driver, as another implementation of netlink reads it."""

import struct
from ipaddress import ip_address

import pytest
from pyroute2.netlink import genlmsg, nla

from qubes_vpn.system import ovpn

KEY = ovpn.Key(1, 5, 2, b"E" * 32, b"e" * 8, b"D" * 32, b"d" * 8)


class Message(genlmsg):
    """linux/ovpn.h, the part that we use."""

    prefix = "OVPN_A_"
    nla_map = (
        ("OVPN_A_UNSPEC", "none"),
        ("OVPN_A_IFINDEX", "uint32"),
        ("OVPN_A_PEER", "peer"),
        ("OVPN_A_KEYCONF", "keyconf"),
    )

    class peer(nla):  # noqa: N801 as pyroute2 names them
        nla_map = (
            ("UNSPEC", "none"),
            ("ID", "uint32"),
            ("REMOTE_IPV4", "ip4addr"),
            ("REMOTE_IPV6", "ip6addr"),
            ("REMOTE_IPV6_SCOPE_ID", "uint32"),
            ("REMOTE_PORT", "be16"),
            ("SOCKET", "uint32"),
        )

    class keyconf(nla):  # noqa: N801
        nla_map = (
            ("UNSPEC", "none"),
            ("PEER_ID", "uint32"),
            ("SLOT", "uint32"),
            ("KEY_ID", "uint32"),
            ("CIPHER_ALG", "uint32"),
            ("ENCRYPT_DIR", "keydir"),
            ("DECRYPT_DIR", "keydir"),
        )

        class keydir(nla):  # noqa: N801
            nla_map = (
                ("UNSPEC", "none"),
                ("CIPHER_KEY", "cdata"),
                ("NONCE_TAIL", "cdata"),
            )


def read(payload):
    """Give command, index and the other attribute."""
    header = struct.pack("=IHHII", 16 + len(payload), 30, 5, 1, 0)
    message = Message(header + payload)
    message.decode()
    assert message["version"] == 1
    (_, index), (name, value) = message["attrs"]
    return message["cmd"], index, name, dict(value["attrs"])


@pytest.mark.parametrize("address", ["192.0.2.10", "2001:db8::1"])
def test_a_peer_over_udp_has_its_remote(address):
    remote = ip_address(address), 1194
    command, index, name, peer = read(
        ovpn.encode_new_peer(7, 0xABCDEF, 9, remote)
    )
    assert (command, index, name) == (1, 7, "OVPN_A_PEER")
    kind = f"REMOTE_IPV{remote[0].version}"
    expected = {"ID": 0xABCDEF, "SOCKET": 9, "REMOTE_PORT": 1194, kind: address}
    assert peer == expected


def test_a_peer_over_tcp_has_none():
    peer = read(ovpn.encode_new_peer(7, 3, 9, None))[3]
    assert peer == {"ID": 3, "SOCKET": 9}


def test_a_key_has_everything_in_its_place():
    command, index, name, conf = read(ovpn.encode_new_key(7, 3, KEY))
    assert (command, index, name) == (6, 7, "OVPN_A_KEYCONF")
    encrypt = dict(conf.pop("ENCRYPT_DIR")["attrs"])
    decrypt = dict(conf.pop("DECRYPT_DIR")["attrs"])
    assert conf == {"PEER_ID": 3, "SLOT": 1, "KEY_ID": 5, "CIPHER_ALG": 2}
    assert encrypt == {"CIPHER_KEY": b"E" * 32, "NONCE_TAIL": b"e" * 8}
    assert decrypt == {"CIPHER_KEY": b"D" * 32, "NONCE_TAIL": b"d" * 8}


def test_a_key_shows_no_secret():
    assert "E" * 8 not in repr(KEY)
    assert "eeee" not in repr(KEY)


# Peer 0 of device 5 was silent for too long.
EXPIRED = bytes.fromhex(
    "05010000"  # PEER_DEL_NTF
    "0800010005000000"  # IFINDEX 5
    "14000280"  # PEER
    "0800010000000000"  # ID 0
    "08000f0002000000"  # DEL_REASON 2
)


def test_a_notification_says_why():
    assert list(ovpn.decode_news(EXPIRED)) == [ovpn.PeerNews(5, 0, "expired")]


def test_a_reason_of_a_newer_kernel_has_its_number():
    newer = EXPIRED[:-4] + struct.pack("=I", 9)
    assert list(ovpn.decode_news(newer)) == [ovpn.PeerNews(5, 0, "reason-9")]


def test_other_notifications_say_nothing():
    assert list(ovpn.decode_news(b"\x0b" + EXPIRED[1:])) == []
