"""The kernel settings that the lock rests on, as paths below /proc/sys.

A `*` stands for every device, `all` and `default` too; where the kernel takes
the greater of a device's value and that of `all`, `all` is enough. The same
lines are in lockdown/sysctls. They are put in force again after every change of
ip_forward, because clearing that sets accept_redirects.

rp_filter is loose: the way back from the tunnel is looked up in main, which
has no route into it. arp_ignore is 1, not 2: the uplink's address is a /32,
and 2 would not answer for it.
"""

from typing import Final

SETTINGS: Final[tuple[tuple[str, int], ...]] = (
    ("net/ipv4/conf/*/accept_redirects", 0),
    ("net/ipv4/conf/*/secure_redirects", 0),
    ("net/ipv4/conf/*/send_redirects", 0),
    ("net/ipv4/conf/*/accept_source_route", 0),
    ("net/ipv4/conf/*/route_localnet", 0),
    ("net/ipv4/conf/*/bc_forwarding", 0),
    ("net/ipv4/conf/*/log_martians", 0),
    ("net/ipv4/conf/all/arp_ignore", 1),
    ("net/ipv4/conf/all/arp_announce", 2),
    ("net/ipv4/conf/all/rp_filter", 2),
    ("net/ipv6/conf/*/accept_redirects", 0),
    ("net/ipv6/conf/*/accept_source_route", 0),
    ("net/ipv6/conf/*/accept_ra", 0),
    ("net/netfilter/nf_conntrack_tcp_loose", 0),
)
FORWARDING: Final = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def disable_ipv6(uplink: str) -> str:
    """Give the path that turns IPv6 off on the uplink."""
    return f"net/ipv6/conf/{uplink}/disable_ipv6"
