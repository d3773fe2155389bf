"""The tunnel device: made, configured and taken away."""

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.policy.phase import Interface
from qubes_vpn.system import sysctl, tun
from qubes_vpn.system.rtnl import Link, Rtnl


class Device:
    """One tun device by its name. The engine holds it, we only shape it."""

    def __init__(self, name: str, rtnl: Rtnl, source: tun.TunSource) -> None:
        self.name = name
        self._rtnl = rtnl
        self._source = source

    def open(self, *, vnet_hdr: bool) -> tuple[int, int]:
        """Make the device anew: its descriptor, for the engine, and offloads.

        The caller closes its copy once it is handed over.
        """
        self._rtnl.delete_link(self.name)
        descriptor = self._source.take()
        offloads = tun.attach(descriptor, self.name, vnet_hdr=vnet_hdr)
        # no solicitation of ours goes to the server
        self._set_ipv6(wanted=False)
        return descriptor, offloads

    def link(self) -> Link:
        """Give the device as it is. OsRefusedError when it is not there."""
        link = self._rtnl.link(self.name)
        if link is None:
            raise OsRefusedError(f"device {self.name} is not there")
        return link

    def configure(self, addresses: tuple[Interface, ...], mtu: int) -> bool:
        """Set addresses and MTU; True when an address before this is gone.

        The device is in group 0: neither an uplink nor a vif.
        """
        link = self.link()
        self._set_ipv6(wanted=any(each.version == 6 for each in addresses))
        before = self._rtnl.addresses(link.index)
        gone = before - set(addresses)
        for address in gone:
            self._rtnl.delete_address(link.index, address)
        self._rtnl.set_link(link, up=True, mtu=mtu, group=0)
        for address in addresses:
            if address not in before:
                self._rtnl.add_address(link.index, address)
        return bool(gone)

    def matches(self, addresses: tuple[Interface, ...], mtu: int) -> bool:
        """Tell whether the device is still as `configure` left it."""
        link = self.link()
        found = self._rtnl.addresses(link.index)
        return link.up and link.mtu == mtu and found == set(addresses)

    def delete(self) -> None:
        """Take the device away, also from an engine that is stopped."""
        self._rtnl.delete_link(self.name)

    def _set_ipv6(self, *, wanted: bool) -> None:
        path = f"net/ipv6/conf/{self.name}"
        # no link-local address of its own: 1 is IN6_ADDR_GEN_MODE_NONE
        sysctl.write(f"{path}/addr_gen_mode", 1)
        sysctl.write(f"{path}/disable_ipv6", 0 if wanted else 1)
