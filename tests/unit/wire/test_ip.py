from ipaddress import ip_address

import pytest

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.ip import parse_ip

SRC4, DST4 = ip_address("10.8.0.2").packed, ip_address("10.8.0.1").packed
SRC6, DST6 = ip_address("fd00::2").packed, ip_address("fd00::1").packed


def ipv4(first=0x45, length=24, body=bytes(4)):
    head = bytes((first, 0)) + length.to_bytes(2) + bytes(8)
    return head + SRC4 + DST4 + body


def ipv6(payload=4, body=bytes(4)):
    return (
        b"\x60\0\0\0" + payload.to_bytes(2) + b"\x11\x40" + SRC6 + DST6 + body
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_headers_give_their_addresses(kind):
    assert parse_ip(kind(ipv4())) == (4, 24, SRC4, DST4)
    assert parse_ip(kind(ipv6())) == (6, 44, SRC6, DST6)


def test_padding_after_the_packet_is_allowed():
    assert parse_ip(ipv4() + bytes(9)).length == 24
    assert parse_ip(ipv6() + bytes(9)).length == 44


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "not-ip"),
        (b"\x00" * 60, "not-ip"),
        (b"\x70" * 60, "not-ip"),
        (ipv4()[:19], "truncated-ip"),
        (ipv6()[:39], "truncated-ip"),
        (ipv4(length=25), "bad-ip-length"),
        (ipv4(length=19), "bad-ip-length"),
        (ipv4(first=0x44), "bad-ip-length"),
        (ipv4(first=0x4F), "bad-ip-length"),
        (ipv6(payload=5), "bad-ip-length"),
    ],
)
def test_headers_that_are_wrong(packet, reason):
    with pytest.raises(MalformedPacketError) as caught:
        parse_ip(packet)
    assert caught.value.reason == reason


def test_the_smallest_packets():
    assert parse_ip(ipv4(length=20, body=b"")).length == 20
    assert parse_ip(ipv6(payload=0, body=b"")).length == 40
