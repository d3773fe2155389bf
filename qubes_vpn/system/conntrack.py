"""Forgetting tracked connections.

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from typing import Final

from qubes_vpn.system.netlink import Requests
from qubes_vpn.system.pyroute import netlink, nfctsocket, nfnetlink

_DELETE: Final = (
    nfnetlink.NFNL_SUBSYS_CTNETLINK << 8 | nfctsocket.IPCTNL_MSG_CT_DELETE
)


class Conntrack:
    """One netfilter netlink socket for requests."""

    def __init__(self) -> None:
        self._sock = Requests(netlink.NETLINK_NETFILTER, {})

    def flush(self) -> None:
        """Forget every connection: all that is forwarded is the tunnel's.

        Our own link is not tracked, so it loses nothing. NetlinkError
        where the kernel has no conntrack netlink.
        """
        self._sock.request("conntrack", _DELETE, nfctsocket.nfct_msg())
