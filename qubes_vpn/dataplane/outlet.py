"""From the tun to the link: what one read of the tun is made of."""

import os
from typing import Final

import numpy as np

from qubes_vpn.dataplane.link import DATAGRAM_MAX
from qubes_vpn.dataplane.seal import Sealer
from qubes_vpn.dataplane.segment import (
    NEEDS_CSUM,
    VNET,
    VNET_SIZE,
    SuperPacket,
    finish_checksum,
)
from qubes_vpn.errors import UntrustedInputError

# Where a packet of the tun begins, so that its payload is aligned.
_LEAD: Final = 6


class Outlet:
    """Reads packets and super-packets from a tun with virtio-net headers."""

    def __init__(self, tun: int) -> None:
        self._tun = tun
        self._data = np.zeros(_LEAD + VNET_SIZE + DATAGRAM_MAX, np.uint8)
        self._packet = self._data[_LEAD + VNET_SIZE :]
        self._view = self._data.data[_LEAD:]
        self._buffers = (self._view,)

    def read(self) -> memoryview:
        """Read once; give the packet, from its IP header. Raises OSError."""
        size = os.readv(self._tun, self._buffers)
        return self._view[VNET_SIZE:size]

    def seal(
        self, packet: memoryview, sealer: Sealer, now: float
    ) -> tuple[int, int]:
        """Seal what was read last; return how many packets it was.

        And their bytes. What is refused is counted in the sealer's channel.
        """
        vnet = VNET.unpack_from(self._view)
        size = len(packet)
        try:
            if vnet[1]:
                cut = SuperPacket(packet, self._packet, vnet)
                count = sealer.add_segments(cut, now)
                size += (count - 1) * (cut.size - cut.mss)
            else:
                if vnet[0] & NEEDS_CSUM:
                    finish_checksum(packet, vnet[4], vnet[5])
                count = int(sealer.add(packet, now))
        except UntrustedInputError as error:
            sealer.channel.drop(error.reason)
            return 0, 0
        if not count:
            return 0, 0
        sealer.channel.traffic.tun_bytes += size
        return count, size
