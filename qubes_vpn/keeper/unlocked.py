"""Without the lock: an ordinary client on any Linux machine.

Nothing is closed. Routes go into main, more specific than its default by one
bit, and a host route keeps the link itself outside. All of it goes when the
phase does.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Final

from qubes_vpn.keeper.layers import Layers, Wanted
from qubes_vpn.policy import routes
from qubes_vpn.policy.phase import Blocked, Connected, Connecting
from qubes_vpn.system.rtnl import Network

_HALVES: Final[dict[int, tuple[Network, ...]]] = {
    4: (ip_network("0.0.0.0/1"), ip_network("128.0.0.0/1")),
    6: (ip_network("::/1"), ip_network("8000::/1")),
}


class UnlockedLayers(Layers):
    """Routes only. There is no layer, so nothing to check or to guard."""

    def __init__(self, uplink_name: str, gid: int) -> None:
        super().__init__(uplink_name, gid)
        self._host: Network | None = None

    def require_lock(self) -> None:
        """Nothing is needed."""

    def lock(self) -> tuple[str, ...]:
        """Nothing is locked."""
        return ()

    def reset(self) -> None:
        """Nothing was left: routes went with the device."""
        self.wanted = Wanted()

    def apply(self, wanted: Wanted) -> None:
        """Set or take back the routes. OsRefusedError."""
        self.wanted = wanted
        match wanted.phase:
            case Blocked():
                self._forget_host()
            case Connecting():
                self._keep_outside(wanted.phase)
            case Connected():
                self._into_tunnel(wanted.phase)

    def set_uplink_ipv6(self, *, wanted: bool) -> None:
        """Leave the machine's IPv6 as it is."""

    def forget_connections(self) -> None:
        """Leave the machine's connections as they are."""

    def forwarding_off(self) -> None:
        """Leave the machine's forwarding as it is."""

    def _keep_outside(self, phase: Connecting) -> None:
        """Route the endpoint as it is routed now, before the tunnel's."""
        address = phase.endpoint.address
        host = ip_network(address)
        if host == self._host:
            return
        self._forget_host()
        index, gateway = self.rtnl.lookup(address)
        self.rtnl.replace_route(routes.MAIN, host, index, 0, gateway)
        self._host = host

    def _into_tunnel(self, phase: Connected) -> None:
        index = self._index(phase.device)
        for part, metric in self.into_tunnel(phase):
            self.rtnl.replace_route(routes.MAIN, part, index, metric)

    def into_tunnel(self, phase: Connected) -> Iterator[tuple[Network, int]]:
        """Give what is routed into the tunnel, each with its metric."""
        for route in routes.routes(phase, self.wanted.destinations):
            net = route.destination
            if not route.device:
                continue
            whole = net in routes.EVERYTHING
            for part in _HALVES[net.version] if whole else (net,):
                yield part, route.metric

    def _forget_host(self) -> None:
        for route, body in self.rtnl.routes(routes.MAIN):
            if self._host is not None and route.destination == self._host:
                self.rtnl.delete_route(body)
        self._host = None
