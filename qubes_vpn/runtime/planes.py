"""Which data plane a session gets, and why.

The kernel's is asked for when the profile suits it; what the server then
pushes decides for good, and a session that does not suit the driver goes on
in userspace over the link that it has.
"""

import errno
import os
import socket
from ipaddress import ip_address
from typing import Final, TypeAlias

from qubes_vpn.config.profile import ClientProfile, Remote
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.dataplane import choose
from qubes_vpn.dataplane.base import Slot
from qubes_vpn.dataplane.kernel import CIPHERS, KernelPlane, unsuited
from qubes_vpn.dataplane.link import StreamLink
from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.peer_info import PlaneFeatures
from qubes_vpn.engine.proxy import relay_header
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient, KeeperRefusedError
from qubes_vpn.policy.phase import Address, Plane

AUTO: Final = "auto"
CHOICES: Final = (AUTO, *map(str, Plane))
TUN_READ: Final = 65_550
AnyPlane: TypeAlias = UserspacePlane | KernelPlane


class Planes:
    """The planes of one engine process: one session uses it at a time.

    choice: one of CHOICES; with "kernel" nothing else will do. plane and
    reason: of the session that was begun last. device: the tunnel's name.
    """

    def __init__(self, keeper: KeeperClient, choice: str = AUTO) -> None:
        self.plane = Plane.USERSPACE
        self.reason = ""
        self.device = ""
        self._keeper = keeper
        self._choice = choice
        self._absent = ""
        self._tun = -1
        self._headers = False
        self._offloads = 0

    @property
    def features(self) -> PlaneFeatures:
        """What may be offered to the server: the driver knows neither."""
        ours = self.plane is Plane.USERSPACE
        return PlaneFeatures(epoch=ours, occ=ours)

    def open_link(
        self, profile: ClientProfile, remote: Remote, index: int
    ) -> socket.socket:
        """Open the link to candidate `index`. Raises OsRefusedError."""
        self.reason = self._unsuited(profile, remote)
        if not self.reason:
            try:
                link = self._open(profile, remote, index, Plane.KERNEL)
            except KeeperRefusedError as error:
                if error.reason != "no-ovpn":
                    raise
                self.reason = self._absent = "this kernel has no ovpn"
            else:
                self._close_tun()
                return link
        if self._choice == Plane.KERNEL:
            raise OsRefusedError(f"no kernel plane: {self.reason}")
        # each datagram through a relay has a header: no offloads there
        relayed = bool(relay_header(remote))
        self._open_tun(headers=not relayed and choose.can_offload())
        return self._open(profile, remote, index, Plane.USERSPACE)

    def open_relay(
        self, profile: ClientProfile, remote: Remote, port: int
    ) -> socket.socket:
        """Open a link to a port of the proxy. Raises OsRefusedError."""
        _, descriptors = self._keeper.request(
            messages.OpenRelay(
                port,
                remote.lport,
                profile.sndbuf,
                profile.rcvbuf,
                local=_local(remote),
            )
        )
        return socket.socket(fileno=descriptors[0])

    def start(
        self,
        link: socket.socket,
        channel: DataChannel,
        *,
        stream: bool,
        header: bytes = b"",
    ) -> AnyPlane:
        """Give the plane that the handshake begins with."""
        if self.plane is Plane.KERNEL:
            return KernelPlane(self._keeper, link, channel, stream=stream)
        return UserspacePlane(
            link, self._tun, channel, stream=stream, header=header
        )

    def prepare(self) -> None:
        """Import what is slow to import, while the server takes its time."""
        if self._headers:
            choose.prepare()

    def settle(
        self,
        plane: AnyPlane,
        channel: DataChannel,
        settings: TunnelSettings,
        keys: DataKeys,
    ) -> AnyPlane:
        """Give the plane that these settings can use, with its first keys."""
        stream = isinstance(plane.link, StreamLink)
        if isinstance(plane, KernelPlane):
            self.reason = self._begin(plane, settings, keys)
            if not self.reason:
                return plane
            if self._choice == Plane.KERNEL:
                raise OsRefusedError(f"no kernel plane: {self.reason}")
            link, self.plane = plane.link, Plane.USERSPACE
            self._open_tun(headers=choose.can_offload())
            plane = UserspacePlane(link.sock, self._tun, channel, stream=stream)
            plane.resume(link)
        plane = self._faster(plane, plane.link.sock, channel, stream=stream)
        plane.install(Slot.PRIMARY, keys)
        return plane

    def _begin(
        self, plane: KernelPlane, settings: TunnelSettings, keys: DataKeys
    ) -> str:
        """Have the driver begin; or say why it does not."""
        why = unsuited(settings, keys) or plane.unready()
        if why:
            return why
        try:
            plane.begin(settings, keys)
            plane.install(Slot.PRIMARY, keys)
        except KeeperRefusedError as error:
            return f"the driver refuses: {error}"
        self.device = plane.device
        return ""

    def _faster(
        self,
        plane: UserspacePlane,
        link: socket.socket,
        channel: DataChannel,
        *,
        stream: bool,
    ) -> UserspacePlane:
        """Give the plane with offloads, where the device has them."""
        if not self._headers:
            return plane
        return choose.with_offloads(
            plane,
            link,
            self._tun,
            channel,
            stream=stream,
            offloads=self._offloads,
        )

    def _unsuited(self, profile: ClientProfile, remote: Remote) -> str:
        """Say why the kernel's plane is not even tried; "": it is."""
        if self._choice == Plane.USERSPACE:
            return "asked for"
        if self._absent:
            return self._absent
        if remote.proxy is not None:
            return "not through a proxy"
        if profile.secret is not None:
            return "not with a static key"
        if profile.compression:
            return "not with compression framing"
        if remote.fragment or profile.fragment:
            return "not with fragment"
        if CIPHERS.keys().isdisjoint(profile.data_ciphers):
            return "no cipher of the driver's"
        return ""

    def _open(
        self, profile: ClientProfile, remote: Remote, index: int, plane: Plane
    ) -> socket.socket:
        _, descriptors = self._keeper.request(
            messages.OpenLink(
                index,
                plane=plane,
                lport=remote.lport,
                sndbuf=profile.sndbuf,
                rcvbuf=profile.rcvbuf,
                local=_local(remote),
            )
        )
        self.plane = plane
        return socket.socket(fileno=descriptors[0])

    def _open_tun(self, *, headers: bool) -> None:
        """Have a tun device, with nothing of an earlier session in it."""
        if self._tun >= 0 and self._headers == headers:
            discard_queue(self._tun)
            return
        self._close_tun()
        self._headers = headers
        reply, descriptors = self._keeper.request(
            messages.OpenTun(vnet_hdr=self._headers)
        )
        assert isinstance(reply, messages.TunOpened)
        self._offloads = reply.offloads
        self.device = reply.device
        self._tun = descriptors[0]

    def _close_tun(self) -> None:
        if self._tun >= 0:
            os.close(self._tun)
            self._tun = -1
        self.device = ""


def _local(remote: Remote) -> Address | None:
    return ip_address(remote.local) if remote.local else None


def discard_queue(tun: int) -> None:
    """Throw away packets that wait in the device.

    They were sent to the tunnel as it was: the next server must not get
    them. Forwarding is closed, so no new ones of a qube come in.
    """
    for _ in range(100_000):
        try:
            os.read(tun, TUN_READ)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EIO):
                raise
            return
