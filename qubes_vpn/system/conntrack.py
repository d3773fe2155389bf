"""Forgetting tracked connections.

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

import struct
from typing import Final

from qubes_vpn.system.netlink import NETLINK_NETFILTER, NetlinkSocket

_CT_DELETE: Final = 1 << 8 | 2


class Conntrack:
    """One netfilter netlink socket for requests."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket(NETLINK_NETFILTER)

    def flush(self) -> None:
        """Forget every connection: all that is forwarded is the tunnel's.

        Our own link is not tracked, so it loses nothing. NetlinkError
        where the kernel has no conntrack netlink.
        """
        everything = struct.pack("=BBH", 0, 0, 0)
        self._sock.request("conntrack", _CT_DELETE, everything)
