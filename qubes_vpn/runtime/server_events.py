"""What the server's parts call each other with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qubes_vpn.engine.hello import Source

if TYPE_CHECKING:
    from qubes_vpn.runtime.server_clients import Client


@dataclass(frozen=True, slots=True)
class OnEvents:
    """What the loop calls with the selector's events of a descriptor."""

    call: Callable[[int], None]


class Control(Protocol):
    """What the loop does with what the plane meets."""

    def control(self, datagram: bytes, source: Source) -> None:
        """Take a control packet."""

    def moved(self, client: "Client", source: Source) -> bool:
        """Tell whether the client may be at this source from now on."""

    def closed(self, source: Source) -> None:
        """Take note that a TCP connection has ended."""

    def gone(self, client: "Client", reason: str) -> None:
        """Take note that the plane has lost a client."""
