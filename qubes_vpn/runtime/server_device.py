"""A server's tunnel device, with its addresses and routes."""

import os
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.dataplane import choose
from qubes_vpn.errors import OsRefusedError, UnavailableError
from qubes_vpn.system import ovpn, tun
from qubes_vpn.system.rtnl import Link, Rtnl

_MAIN_TABLE: Final = 254
_DEVICES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Device:
    """The device. descriptor: of a tun device; None: the kernel's driver.

    why: what keeps the kernel from doing it. offloads: the TUN_F_* bits that
    a tun with virtio-net headers took; None without such headers.
    """

    name: str
    index: int
    descriptor: int | None = None
    why: str = ""
    offloads: int | None = None

    def close(self) -> None:
        """Remove the device."""
        if self.descriptor is not None:
            os.close(self.descriptor)
        else:
            with closing(Rtnl()) as rtnl:
                rtnl.delete_link(self.name)


def unsuited(profile: ServerProfile) -> str:
    """Say why the driver cannot serve this profile; "": it can.

    Its own reverse-path check knows no networks behind clients, which
    client-config-dir may give, and it does not route between clients.
    """
    if any(listen.proto != "udp" for listen in profile.listens):
        return "not over TCP"
    if profile.client_config_dir:
        return "not with client-config-dir"
    if profile.client_to_client:
        return "not with client-to-client"
    if profile.topology != "subnet":
        return f"not with topology {profile.topology}"
    return ""


def open_device(profile: ServerProfile, plane: str = "auto") -> Device:
    """Make the tunnel device with its addresses and routes.

    plane: auto, kernel or userspace. Raises OsRefusedError, and
    UnavailableError where the kernel was asked for and cannot.
    """
    why = "not asked for" if plane == "userspace" else unsuited(profile)
    if not why:
        try:
            ovpn.Ovpn().close()
        except UnavailableError as error:
            why = str(error)
    if why and plane == "kernel":
        raise UnavailableError(f"no kernel data plane: {why}")
    with closing(Rtnl()) as rtnl:
        return _make(rtnl, profile, why)


def _make(rtnl: Rtnl, profile: ServerProfile, why: str) -> Device:
    name = profile.dev
    if name == "tun":
        free = (f"tun{number}" for number in range(_DEVICES_MAX))
        name = next(n for n in free if rtnl.link(n) is None)
    descriptor = offloads = None
    if why:
        headers = choose.can_offload()
        descriptor = tun.TunSource().take()
        taken = tun.attach(descriptor, name, vnet_hdr=headers)
        offloads = taken if headers else None
    else:
        rtnl.add_link(name, ovpn.KIND, [ovpn.MANY_PEERS])
    link = rtnl.link(name)
    if link is None:
        raise OsRefusedError(f"device {name} is not there")
    _configure(rtnl, link, profile)
    return Device(name, link.index, descriptor, why, offloads)


def _configure(rtnl: Rtnl, link: Link, profile: ServerProfile) -> None:
    rtnl.set_link(link, up=True, mtu=profile.tun_mtu)
    if profile.network4:
        first, prefix = profile.network4[1], profile.network4.prefixlen
        rtnl.add_address(link.index, IPv4Interface((first, prefix)))
    if profile.network6:
        first6, prefix = profile.network6[1], profile.network6.prefixlen
        rtnl.add_address(link.index, IPv6Interface((first6, prefix)))
    for network, _gateway, metric in profile.routes:
        rtnl.replace_route(_MAIN_TABLE, network, link.index, metric)
