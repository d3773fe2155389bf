"""Which resolver a query of a qube goes to, as rules of nft.

Every query to port 53 of every vif is redirected to the tunnel's resolvers,
before the agent's own redirection; what is not one of them is dropped. With
no resolver a query is dropped.

A user may choose to pass queries through: one to a resolver that the qube
chose goes there, in the tunnel. Qubes' own two addresses are nobody's choice,
and no resolver is there: they stay the tunnel's resolvers.
"""

from collections.abc import Iterator
from typing import Final

from qubes_vpn.policy.phase import Address, Connected

# The two addresses that every qube has for its resolvers.
QUBES_PRIMARY: Final = "10.139.1.1"
QUBES_SECONDARY: Final = "10.139.1.2"

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


def _of(dns: tuple[Address, ...], version: int) -> list[Address]:
    return [address for address in dns if address.version == version]
