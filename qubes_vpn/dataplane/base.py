"""What a data plane is, whoever moves the packets.

The runtime opens it with a link socket and a tunnel device, installs the
keys that the engine derived, and closes it. `readable` names the
descriptors that the loop watches; `pump` is called when one of them is
ready and returns the control datagrams that the link delivered.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from qubes_vpn.crypto.keys import DataKeys


class Slot(IntEnum):
    """Key slots, by the kernel driver's names and numbers."""

    PRIMARY = 0
    SECONDARY = 1


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets and bytes since open; inner ones unless named link.

    drops: counts by stable reason slug.
    """

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    link_rx_bytes: int = 0
    link_tx_bytes: int = 0
    drops: tuple[tuple[str, int], ...] = ()


class DataPlane(Protocol):
    """Moves packets between the tunnel device and the link."""

    def open(self, device: str) -> None:
        """Start to use `device`. Raises OsRefusedError."""

    def install(self, slot: Slot, keys: DataKeys) -> None:
        """Put keys into a slot; a SECONDARY key decrypts only."""

    def swap(self) -> None:
        """Exchange the slots: what was SECONDARY encrypts from now on."""

    def remove(self, slot: Slot) -> None:
        """Forget the keys of a slot."""

    def readable(self) -> Iterable[int]:
        """Give the descriptors to watch for input."""

    def pump(self, descriptor: int, now: float) -> list[bytes]:
        """Move what is there; return the control packets met on the way."""

    def send_control(self, datagram: bytes) -> None:
        """Send a control packet on the link."""

    def send_data(self, payload: bytes, now: float) -> None:
        """Encrypt and send one payload that is not from the tunnel device."""

    def counters(self) -> Counters:
        """Give a snapshot of the counters."""

    def close(self) -> None:
        """Forget all keys and let go of the device."""
