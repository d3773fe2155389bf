"""IPv6 on the uplink, for as long as an endpoint needs it.

The lock turns IPv6 off on the uplink, which throws its addresses and routes
away; when the keeper has turned it on again they are put back, as the Qubes
agent's setup-ip sets them. Neighbours are found by the two messages that the
lock then lets through.
"""

from contextlib import closing
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from typing import Final

from qubes_vpn.errors import OsRefusedError

_MAIN_TABLE: Final = 254
_METRIC: Final = 1024
_EVERYTHING: Final = IPv6Network("::/0")


def configure(device: str, address: IPv6Address, gateway: IPv6Address) -> None:
    """Give the uplink its address and its gateway. Raises OsRefusedError."""
    # late: it is dear, and few uplinks need it
    from qubes_vpn.system.rtnl import Rtnl

    with closing(Rtnl()) as rtnl:
        link = rtnl.link(device)
        if link is None:
            raise OsRefusedError(f"device {device} is not there")
        index = link.index
        rtnl.add_address(index, IPv6Interface(address))
        host = IPv6Network(gateway)
        rtnl.replace_route(_MAIN_TABLE, host, index, _METRIC)
        rtnl.replace_route(_MAIN_TABLE, _EVERYTHING, index, _METRIC, gateway)
