"""Layer 3: what may pass the uplink device itself, whoever sends it.

Egress and ingress of the device see what layer 1 cannot: raw sockets, the
kernel's own multicast, flows that a flowtable took over. Allowed are ARP for
our own address and packets of our sockets. The static text is also the file
lockdown/netdev.nft. Variables as in policy.firewall.
"""

from collections.abc import Iterable
from typing import Final

from qubes_vpn.policy.firewall import (
    KEEPER_GID,
    LINK_OUT_TEXT,
    LINK_SET_TEXT,
    LINK_SETS,
    ND_TEXT,
    OWN_SETS,
    link_elements,
    link_in_text,
    links,
)
from qubes_vpn.policy.phase import Address, Endpoint, Phase

TABLE: Final = "netdev qubes_vpn"

STATIC: Final = f"""\
# Layer 3 of the lock: nothing passes the uplink.
# Made from qubes_vpn/policy/uplink.py, and equal to it by a test.
# Load: nft -D uplink=eth0 -D gid={KEEPER_GID} -f netdev.nft
add table {TABLE}
delete table {TABLE}
table {TABLE} {{
{LINK_SET_TEXT}\

	chain egress {{
		type filter hook egress device $uplink priority -500; policy drop;
		ether type arp arp saddr ip @address4 counter accept
{LINK_OUT_TEXT}\
		ip6 saddr @address6 {ND_TEXT} counter accept
		counter drop
	}}
	chain ingress {{
		type filter hook ingress device $uplink priority -500; policy drop;
		ether type arp arp daddr ip @address4 counter accept
{link_in_text("counter accept")}\
		ip6 daddr {{ fe80::/10, ff02::1:ff00:0/104 }} {ND_TEXT} jump neighbours
		ip6 daddr @address6 {ND_TEXT} jump neighbours
		counter drop
	}}
	# no neighbour is heard while no endpoint has an IPv6 address
	chain neighbours {{
	}}
}}
"""


def render(
    phase: Phase,
    addresses: Iterable[Address] = (),
    resolver: Endpoint | None = None,
) -> str:
    """Give the transaction that makes the whole table anew, in `phase`.

    addresses: the uplink's own, as they are now.
    """
    return STATIC + _additions(phase, addresses, resolver)


def change(
    phase: Phase,
    addresses: Iterable[Address] = (),
    resolver: Endpoint | None = None,
) -> str:
    """Give the transaction that brings a loaded table to `phase`."""
    flush = [f"flush set {TABLE} {name}\n" for name in (*LINK_SETS, *OWN_SETS)]
    flush.append(f"flush chain {TABLE} neighbours\n")
    return "".join(flush) + _additions(phase, addresses, resolver)


def _additions(
    phase: Phase, addresses: Iterable[Address], resolver: Endpoint | None
) -> str:
    lines = list(link_elements(TABLE, phase, addresses, resolver))
    if any(end.address.version == 6 for _, end in links(phase, resolver)):
        lines.append(f"add rule {TABLE} neighbours counter accept")
    return "".join(f"{line}\n" for line in lines)
