"""A server's tunnel device, with its addresses and routes."""

from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.system import tun
from qubes_vpn.system.rtnl import Rtnl

_MAIN_TABLE: Final = 254
_DEVICES_MAX: Final = 256


def open_device(profile: ServerProfile) -> tuple[int, str]:
    """Make the tunnel device with its addresses and routes.

    Gives its descriptor and name. Raises OsRefusedError.
    """
    rtnl = Rtnl()
    name = profile.dev
    if name == "tun":
        free = (f"tun{number}" for number in range(_DEVICES_MAX))
        name = next(n for n in free if rtnl.link(n) is None)
    descriptor = tun.TunSource().take()
    tun.attach(descriptor, name, vnet_hdr=False)
    link = rtnl.link(name)
    if link is None:
        raise OsRefusedError(f"device {name} is not there")
    rtnl.set_link(link, up=True, mtu=profile.tun_mtu)
    if profile.network4:
        first, prefix = profile.network4[1], profile.network4.prefixlen
        rtnl.add_address(link.index, IPv4Interface((first, prefix)))
    if profile.network6:
        first6, prefix = profile.network6[1], profile.network6.prefixlen
        rtnl.add_address(link.index, IPv6Interface((first6, prefix)))
    for network, _gateway, metric in profile.routes:
        rtnl.replace_route(_MAIN_TABLE, network, link.index, metric)
    return descriptor, name
