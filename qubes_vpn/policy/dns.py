"""Which resolver a query of a qube goes to, as rules of nft.

Every query to port 53 of every vif is redirected to the tunnel's resolvers,
before the agent's own redirection; what is not one of them is dropped. With
no resolver a query is dropped.

A user may choose to pass queries through: one to a resolver that the qube
chose goes there, in the tunnel. Qubes' own two addresses are nobody's choice,
and no resolver is there: they stay the tunnel's resolvers.

Reverse lookups of private addresses are nobody's business outside, and no
resolver there knows them: the qube answers them itself (runtime.reverse), in
every phase. They are known by their bytes, packet by packet, and followed in a
conntrack zone of their own: so the next question from the same port goes where
it belongs, and nothing of one flow is answered as the other.
Source: RFC 6303; RFC 1035, section 4.1 (a question follows 12 bytes of header).
"""

from collections.abc import Iterator, Sequence
from typing import Final

from qubes_vpn.policy.phase import Address, Connected

# The two addresses that every qube has for its resolvers.
QUBES_PRIMARY: Final = "10.139.1.1"
QUBES_SECONDARY: Final = "10.139.1.2"

# Where reverse lookups are answered, and the conntrack zone they are in.
REVERSE_PORT: Final = 7053
REVERSE_ZONE: Final = 7078

_UDP_AND_HEADER: Final = 8 + 12
_QUERY: Final = "iifgroup 2 meta l4proto { tcp, udp } th dport"
_REJECT: Final = "counter reject with icmpx admin-prohibited"


def redirect_rules(phase: Connected) -> Iterator[str]:
    """Give the rules of the chain `resolvers`, which port 53 goes through."""
    four, six = _of(phase.dns, 4), _of(phase.dns, 6)
    if four[1:]:
        yield f"ip daddr {QUBES_SECONDARY} counter dnat ip to {four[1]}"
    if four:
        match = "meta nfproto ipv4"
        if phase.dns_passthrough:
            match = f"ip daddr {{ {QUBES_PRIMARY}, {QUBES_SECONDARY} }}"
        yield f"{match} counter dnat ip to {four[0]}"
    if six and not phase.dns_passthrough:
        yield f"meta nfproto ipv6 counter dnat ip6 to {six[0]}"


def filter_rules(phase: Connected) -> Iterator[str]:
    """Give the rules of the chain `phase` that let no other resolver pass."""
    if phase.block_dot:
        # a refusal, so that programs ask port 53 at once
        yield f"{_QUERY} 853 {_REJECT}"
    if phase.dns_passthrough:
        qubes = f"ip daddr {{ {QUBES_PRIMARY}, {QUBES_SECONDARY} }}"
        yield f"{_QUERY} 53 {qubes} counter drop"
        return
    for version, ip in ((4, "ip"), (6, "ip6")):
        found = ", ".join(map(str, _of(phase.dns, version)))
        match = f" {ip} daddr != {{ {found} }}" if found else ""
        yield (f"meta nfproto ipv{version} {_QUERY} 53{match} counter drop")


def reverse_rules() -> Iterator[str]:
    """Give the rules of the chain `reverse`: they match such questions.

    10/8, 172.16/12, 192.168/16, 169.254/16 and fd00::/8, by full addresses.
    Letters of any case. The labels before the network's are of 1 to 3 digits,
    so it may begin at several places.
    """
    four = _name("in-addr", "arpa") + b"\0"
    local = [_name(str(number), "172") for number in range(16, 32)]
    for hosts, heads in (
        (3, [_name("10")]),
        (2, [_name("168", "192"), _name("254", "169")]),
        (2, local),
    ):
        size = len(heads[0])
        for start in range(2 * hosts, 4 * hosts + 1):
            yield _bytes(start, heads) + _bytes(start + size, [four])
    # 30 labels of one digit
    yield _bytes(60, [_name("d", "f", "ip6", "arpa") + b"\0"])


def _name(*labels: str) -> bytes:
    return b"".join(bytes([len(each)]) + each.encode() for each in labels)


def _bytes(start: int, values: Sequence[bytes]) -> str:
    """Match values of one size at a place in the question, in any case."""
    mask = bytes(0xDF if chr(byte).isalpha() else 0xFF for byte in values[0])
    wanted = [
        "0x" + bytes(map(int.__and__, value, mask)).hex() for value in values
    ]
    at, bits = 8 * (_UDP_AND_HEADER + start), 8 * len(mask)
    if wanted[1:]:
        return f"@th,{at},{bits} {{ {', '.join(wanted)} }} "
    return f"@th,{at},{bits} & 0x{mask.hex()} == {wanted[0]} "


def _of(dns: tuple[Address, ...], version: int) -> list[Address]:
    return [address for address in dns if address.version == version]
