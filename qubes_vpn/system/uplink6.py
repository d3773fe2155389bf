"""IPv6 on the uplink, for as long as an endpoint needs it.

The lock turns IPv6 off on the uplink, which throws its addresses and routes
away; when the keeper has turned it on again they are put back, as the Qubes
agent's setup-ip sets them. Neighbours are found by the two messages that the
lock then lets through.
"""

import socket
from ipaddress import IPv6Address

from qubes_vpn.errors import OsRefusedError

IFA_F_NODAD = 0x02


def configure(device: str, address: IPv6Address, gateway: IPv6Address) -> None:
    """Give the uplink its address and its gateway. Raises OsRefusedError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            index = route.link_lookup(ifname=device)[0]
            route.addr(
                "replace",
                index=index,
                address=str(address),
                prefixlen=128,
                family=socket.AF_INET6,
                flags=IFA_F_NODAD,
            )
            for words in (
                {"dst": f"{gateway}/128"},
                {"dst": "default", "gateway": str(gateway)},
            ):
                route.route(
                    "replace", oif=index, family=socket.AF_INET6, **words
                )
    except (NetlinkError, IndexError, OSError) as error:
        raise OsRefusedError(f"IPv6 on {device}: {error}") from error
