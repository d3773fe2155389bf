"""Without privileges: a tun device that exists, and commands for root.

A persistent tun device may be held by its owner, who may not configure it.
So nothing is configured: the commands that would do it are told, once for
each state they lead to. They can be run in a shell as they are.
"""

import errno
import os
import pwd
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from socket import if_indextoname
from typing import Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper.device import Device
from qubes_vpn.keeper.layers import Wanted
from qubes_vpn.keeper.unlocked import UnlockedLayers
from qubes_vpn.policy.phase import Address, Connected, Connecting, Interface
from qubes_vpn.system import tun
from qubes_vpn.system.rtnl import Rtnl

_WHY: Final = {
    errno.EPERM: "belongs to another user",
    errno.EBUSY: "is held by another program",
    errno.EINVAL: "is no tun device with one queue",
}

Tell = Callable[[tuple[str, ...]], None]


class ExistingDevice(Device):
    """A tun device that root made for us; it outlives us."""

    def __init__(self, name: str, rtnl: Rtnl, source: tun.TunSource) -> None:
        super().__init__(name, rtnl, source)
        self.addresses: tuple[Interface, ...] = ()
        self.mtu = 0

    def open(self, *, vnet_hdr: bool) -> tuple[int, int]:
        """Attach to the device: a descriptor, and offloads."""
        if self._rtnl.link(self.name) is None:
            raise OsRefusedError(
                f"device {self.name} does not exist; root makes it: ip tuntap"
                f" add dev {self.name} mode tun user {_user()}"
            )
        descriptor = self._source.take()
        try:
            return descriptor, tun.attach(
                descriptor, self.name, vnet_hdr=vnet_hdr
            )
        except OsRefusedError as error:
            os.close(descriptor)
            cause = error.__cause__
            number = cause.errno if isinstance(cause, OSError) else None
            if number not in _WHY:
                raise
            raise OsRefusedError(
                f"device {self.name} {_WHY[number]}"
            ) from error

    def configure(self, addresses: tuple[Interface, ...], mtu: int) -> bool:
        """Keep what the device should have."""
        self.addresses, self.mtu = addresses, mtu
        return False

    def found(self) -> set[Interface]:
        """Give the addresses that the device has."""
        return self._rtnl.addresses(self.link().index)

    def delete(self) -> None:
        """Leave it: it is not ours."""


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


class ToldLayers(UnlockedLayers):
    """Tells what to run where the others do it. tell: set by the owner."""

    mark = 0

    def __init__(self, uplink: str, gid: int, device: ExistingDevice) -> None:
        super().__init__(uplink, gid)
        self.tell: Tell = lambda _: None
        self._device = device
        # how a server's IPv4 or IPv6 address is reached outside the tunnel
        self._outside: dict[int, str] = {}
        self._told: tuple[str, ...] = ()

    def apply(self, wanted: Wanted) -> None:
        """Tell the commands, if there is something new. OsRefusedError."""
        self.wanted = wanted
        if isinstance(wanted.phase, Connecting):
            self._look_outside(wanted.phase.endpoint.address)
        elif isinstance(wanted.phase, Connected):
            self._tell_all(wanted.phase)

    def _look_outside(self, address: Address) -> None:
        """Learn the way to a server, while it is not the tunnel's."""
        index, gateway = self.rtnl.lookup(address)
        if index != self._device.link().index:
            via = f"via {gateway} " if gateway else ""
            self._outside[address.version] = f"{via}dev {if_indextoname(index)}"
        else:
            # a link in its own tunnel carries nothing, and tells a wrong MTU
            mend = "take back what was set before"
            if address.version in self._outside:
                mend = f"as root, {self._host_route(address)}"
            raise OsRefusedError(
                f"{address} is routed into {self._device.name} itself: {mend}"
            )

    def _host_route(self, address: Address) -> str:
        way = self._outside[address.version]
        return f"ip route replace {ip_network(address)} {way}"

    def _tell_all(self, phase: Connected) -> None:
        host = self._host_route(phase.endpoint.address)
        lines = (host, *self._settings(phase))
        if lines == self._told:
            return
        name, again = self._device.name, bool(self._told)
        clear = _clear(name) if again or self._device.found() else ()
        undo = "; ".join((*_clear(name), host.replace(" replace ", " del ")))
        self._told = lines
        self.tell(
            (
                f"# nothing is configured: run these as root to use {name}",
                *clear,
                *lines,
                *_resolvers(name, phase.dns),
                f"# take it back afterwards: {undo}",
            )
        )

    def _settings(self, phase: Connected) -> Iterator[str]:
        device = self._device
        yield f"ip link set dev {device.name} mtu {device.mtu} up"
        for address in device.addresses:
            yield f"ip addr replace {address} dev {device.name}"
        for net, metric in self.into_tunnel(phase):
            last = f" metric {metric}" if metric else ""
            yield f"ip route replace {net} dev {device.name}{last}"


def _clear(name: str) -> tuple[str, ...]:
    return f"ip addr flush dev {name}", f"ip -6 route flush dev {name}"


def _resolvers(name: str, dns: tuple[Address, ...]) -> Iterator[str]:
    if dns:
        found = " ".join(map(str, dns))
        yield (
            f"# resolvers in the tunnel: {found}; with systemd-resolved:"
            f" resolvectl dns {name} {found}; resolvectl domain {name} '~.'"
        )


def try_device(name: str) -> None:
    """See whether the device can be held, and let go. OsRefusedError."""
    device = ExistingDevice(name, Rtnl(), tun.TunSource())
    os.close(device.open(vnet_hdr=False)[0])
