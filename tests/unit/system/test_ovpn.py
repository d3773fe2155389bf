"""What we say to the driver, read by linux/ovpn.h's numbers and no library."""

import struct
from contextlib import closing
from ipaddress import ip_address

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from qubes_vpn.errors import UnavailableError
from qubes_vpn.system import netlink, ovpn

KEY = ovpn.Key(1, 5, 2, b"E" * 32, b"e" * 8, b"D" * 32, b"d" * 8)
IFINDEX, PEER, KEYCONF = 1, 2, 3
NESTED = 0x8000


def attributes(data):
    """Give what is in it by number, nested ones with their flag."""
    found = {}
    while data:
        size, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:size]
        data = data[size + -size % 4 :]
    return found


def encoded(message):
    message.encode()
    (size,) = struct.unpack_from("=I", message.data)
    assert size == len(message.data)
    return bytes(message.data)


def read(message):
    """Give command, index and the other attribute."""
    data = encoded(message)
    command, version, rest = struct.unpack_from("=BBH", data, 16)
    assert (version, rest) == (1, 0)
    found = attributes(data[20:])
    (index,) = struct.unpack("=I", found.pop(IFINDEX))
    ((kind, inner),) = found.items()
    assert kind & NESTED
    return command, index, kind - NESTED, attributes(inner)


def u32(number):
    return struct.pack("=I", number)


@pytest.mark.parametrize("address", ["192.0.2.10", "2001:db8::1"])
def test_a_peer_over_udp_has_its_remote(address):
    remote = ip_address(address), 1194
    command, index, kind, peer = read(ovpn.new_peer(7, 0xABCDEF, 9, remote))
    assert (command, index, kind) == (1, 7, PEER)
    number = 2 if remote[0].version == 4 else 3
    assert peer == {
        1: u32(0xABCDEF),
        number: remote[0].packed,
        5: b"\x04\xaa",
        6: u32(9),
    }


def test_a_peer_over_tcp_has_none():
    assert read(ovpn.new_peer(7, 3, 9, None))[3] == {1: u32(3), 6: u32(9)}


def test_one_of_many_peers_has_its_addresses_inside():
    inside = ip_address("10.8.0.2"), ip_address("2001:db8::2")
    peer = read(ovpn.new_peer(7, 3, 9, None, inside))[3]
    assert (peer[8], peer[9]) == tuple(each.packed for each in inside)


def test_a_key_has_everything_in_its_place():
    command, index, kind, conf = read(ovpn.new_key(7, 3, KEY))
    assert (command, index, kind) == (6, 7, KEYCONF)
    encrypt = attributes(conf.pop(5 | NESTED))
    decrypt = attributes(conf.pop(6 | NESTED))
    assert conf == {1: u32(3), 2: u32(1), 3: u32(5), 4: u32(2)}
    assert encrypt == {1: b"E" * 32, 2: b"e" * 8}
    assert decrypt == {1: b"D" * 32, 2: b"d" * 8}


def test_a_device_for_many_peers_is_asked_for():
    info = [("IFLA_INFO_KIND", ovpn.KIND)]
    info.append(("IFLA_INFO_DATA", {"attrs": [ovpn.MANY_PEERS]}))
    asked = netlink.message(ifinfmsg, [("IFLA_LINKINFO", {"attrs": info})])
    linkinfo = attributes(encoded(asked)[32:])[18]
    assert attributes(linkinfo) == {1: b"ovpn\0", 2: b"\x05\0\x01\0\x01\0\0\0"}


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


def news(body):
    header = struct.pack("=IHHII", 16 + len(body), 30, 0, 0, 0)
    message = ovpn.OvpnMessage(header + body)
    message.decode()
    return list(ovpn.read_news(message))


def test_a_notification_says_why():
    assert news(EXPIRED) == [ovpn.PeerNews(5, 0, "expired")]


def test_a_reason_of_a_newer_kernel_has_its_number():
    newer = EXPIRED[:-4] + struct.pack("=I", 9)
    assert news(newer) == [ovpn.PeerNews(5, 0, "reason-9")]


def test_other_notifications_say_nothing():
    assert news(b"\x0b" + EXPIRED[1:]) == []


# The keys of peer 0 of device 5 have made all the packets they may.
WORN_OUT = bytes.fromhex(
    "09010000"  # KEY_SWAP_NTF
    "0800010005000000"  # IFINDEX 5
    "0c000380"  # KEYCONF
    "0800010000000000"  # PEER_ID 0
)


def test_a_notification_says_that_keys_are_worn_out():
    assert news(WORN_OUT) == [ovpn.PeerNews(5, 0, ovpn.KEYS_WORN_OUT)]


def test_a_family_is_found_with_its_group(monkeypatch):
    """By the one family that every kernel has."""
    monkeypatch.setattr(ovpn, "KIND", "nlctrl")
    monkeypatch.setattr(ovpn, "GROUP", "notify")
    with closing(ovpn.Ovpn()) as driver, closing(driver.news()) as news:
        assert driver._family == 16
        assert list(news.receive()) == []
    monkeypatch.setattr(ovpn, "GROUP", "nobody")
    with pytest.raises(UnavailableError, match="notifications"):
        ovpn.Ovpn()


def test_a_kernel_without_it_has_none(monkeypatch, capfd):
    monkeypatch.setattr(ovpn, "KIND", "no-such-family")
    with pytest.raises(UnavailableError, match="in this kernel"):
        ovpn.Ovpn()
    assert capfd.readouterr() == ("", "")
