"""Any list of a VPN qube makes rules for servers in dom0, or is refused whole.

Each rule names one address, one protocol and one port; never a range, a
qube, or more than there may be.
"""

import re

from qubes_vpn.qubes.admin.pin import (
    DROP,
    ENDPOINTS_MAX,
    parse_endpoints,
    pinned_rules,
)
from qubes_vpn.qubes.admin.plan import AdminError

RULE = re.compile(
    r"action=accept dst(4=[0-9.]+/32|6=[0-9a-f:.]+/128)"
    r" proto=(udp|tcp) dstports=([0-9]+)-\3"
)
SEEDS = (
    b"192.0.2.1 udp 1194\n2001:db8::1 tcp 443\n",
    b"192.0.2.1 udp 1194\r\n",
    b"10.137.0.5 udp 53\n",
    b"::ffff:10.137.0.5 udp 53\n",
    b"0.0.0.0 udp 53\n",
    b"192.0.2.1 udp 0\n192.0.2.1 udp 65536\n",
    b"1.1.1.1 udp 1\n" * 40,
    b"\x0b192.0.2.1 udp 1194\x1c",
)


def one_input(data: bytes) -> None:
    """Read the list as dom0 does."""
    try:
        endpoints = parse_endpoints("sys-vpn", data)
    except AdminError as error:
        assert str(error).isascii()
        return
    *rules, last = pinned_rules(endpoints)
    assert last == DROP
    assert len(rules) <= ENDPOINTS_MAX
    assert len(set(rules)) == len(rules)
    for rule, endpoint in zip(rules, endpoints, strict=True):
        assert RULE.fullmatch(rule)
        assert not getattr(endpoint.address, "ipv4_mapped", None)
        address = str(endpoint.address)
        assert not address.startswith(("10.137.", "127.", "0.0.0.0"))
