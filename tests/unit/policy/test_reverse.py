"""Which questions the filter takes for reverse lookups of private addresses."""

import re
from ipaddress import ip_address, ip_network

from dns import message
from hypothesis import example, given
from hypothesis import strategies as st

from qubes_vpn.policy import dns


def matches(rule, payload):
    """Match the bytes of a datagram as nft does."""
    for at, bits, mask, values in re.findall(
        r"@th,(\d+),(\d+) (?:& 0x([0-9a-f]+) == )?(\{[^}]*\}|0x[0-9a-f]+)", rule
    ):
        start, size = int(at) // 8, int(bits) // 8
        found = payload[start : start + size]
        if mask:
            found = bytes(map(int.__and__, found, bytes.fromhex(mask)))
        if found.hex() not in re.findall("0x([0-9a-f]+)", values):
            return False
    return True


@given(st.ip_addresses())
@example(ip_address("10.137.0.5"))
@example(ip_address("172.16.0.0"))
@example(ip_address("172.32.0.0"))
@example(ip_address("192.168.255.255"))
@example(ip_address("192.169.0.1"))
@example(ip_address("169.254.0.1"))
@example(ip_address("1.2.3.10"))
@example(ip_address("fd09:24ef:4179::a89:5"))
@example(ip_address("fc09::1"))
def test_reverse_lookups_of_private_addresses_are_known(address):
    """A udp header, a DNS header, the question."""
    networks = (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        "fd00::/8",
    )
    private = any(address in ip_network(each) for each in networks)
    query = message.make_query(address.reverse_pointer, "PTR").to_wire()
    rules = list(dns.reverse_rules())
    assert any(matches(rule, bytes(8) + query) for rule in rules) == private
