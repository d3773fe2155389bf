"""The data plane in our own process, many packets at a time.

Needs a tun with virtio-net headers (IFF_VNET_HDR), and numpy. Up: the kernel
hands over TCP and UDP super-packets, which are cut, sealed in one buffer and
sent in one call (UDP_SEGMENT). Down: datagrams come as one (UDP_GRO) or are
gathered, opened at a stride, and consecutive packets of a flow go to the tun
as one super-packet. What does not fit goes the way of the scalar plane.
"""

import socket
from typing import Final

from qubes_vpn.dataplane.inlet import Inlet
from qubes_vpn.dataplane.link import Address, StreamLink
from qubes_vpn.dataplane.outlet import Outlet
from qubes_vpn.dataplane.receive import Pace, Receiver
from qubes_vpn.dataplane.seal import Sealer
from qubes_vpn.dataplane.segment import Array
from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine.data_channel import DataChannel

# linux/if_tun.h: TUNSETOFFLOAD bits.
TUN_F_USO4: Final = 0x20
# Packets from the tun before the link has its turn.
_BURST: Final = 256


class OffloadPlane(UserspacePlane):
    """A UserspacePlane with offloads; used in the same way.

    offloads: the TUN_F_* bits that the tun took.
    """

    def __init__(
        self,
        link: socket.socket,
        tun: int,
        channel: DataChannel,
        *,
        stream: bool = False,
        offloads: int = 0,
    ) -> None:
        super().__init__(link, tun, channel, stream=stream)
        self._sealer = Sealer(self._link, channel)
        self._outlet = Outlet(tun)
        self._inlet = Inlet(tun, channel, udp=bool(offloads & TUN_F_USO4))
        self._receiver = (
            None
            if stream
            else Receiver(link, self._inlet, channel.drop, connected=True)
        )
        self._pace = Pace()

    # --- up -----------------------------------------------------------------

    def _from_tun(self, now: float) -> None:
        sealer, outlet, taken = self._sealer, self._outlet, 0
        while taken < _BURST and self._link.has_room():
            try:
                packet = outlet.read()
            except BlockingIOError:
                break
            except OSError as error:
                sealer.flush()
                self._tun_failed(error)
                return
            count, size = outlet.seal(packet, sealer, now)
            self._tx_packets += count
            self._tx_bytes += size
            taken += count or 1
        sealer.flush()
        self._link_tx_bytes += sealer.link_bytes
        sealer.link_bytes = 0

    # --- down ---------------------------------------------------------------

    def _from_link(self, control: list[bytes], now: float) -> None:
        # While more goes out than comes in, what comes are acknowledgements,
        # and a sender whose window is full waits for them.
        self._pace.rest(self._rx_packets - self._tx_packets)
        inlet = self._inlet
        inlet.now, inlet.control = now, control
        if self._receiver is not None:
            self._receiver.receive(self)
        elif isinstance(self._link, StreamLink):
            data, at = self._link.receive(), 0
            while taken := inlet.take_frames(data[at:]):
                at += taken
            self._link.consume(at)
        self._rx_packets, self._rx_bytes = inlet.packets, inlet.size
        self._link_rx_bytes = inlet.link_size

    def took_rows(self, sizes: list[int], sources: list[Address]) -> None:
        """Take what the receiver read: all from our peer."""
        del sources
        self._inlet.take_rows(sizes)

    def took_joined(self, joined: Array, each: int, source: Address) -> None:
        """Take what the receiver read: all from our peer."""
        del source
        self._inlet.take_joined(joined, each)
