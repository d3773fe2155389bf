"""Which client has which address inside the tunnel.

Sticky: a client that comes back gets what it had, as long as nobody else
needed it. The state is a value (`remembered`), so that a file can keep it.
"""

from collections.abc import Callable, Iterator, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from typing import Generic, TypeVar

from qubes_vpn.config.server_profile import ClientConfig, ServerProfile
from qubes_vpn.engine.push_options import Lease
from qubes_vpn.errors import SessionError

A = TypeVar("A", IPv4Address, IPv6Address)
N = IPv4Network | IPv6Network

# An IPv6 prefix has more addresses than there can be clients; the pool
# begins where OpenVPN's does (server-ipv6: prefix::1000).
IPV6_POOL_OFFSET = 0x1000


class AddressPool(Generic[A]):
    """The addresses of one family, and who has them.

    Addresses outside first..last can be taken by name only (ifconfig-push).
    """

    def __init__(self, first: A, last: A, *, taken: tuple[A, ...]) -> None:
        """taken: the server's own, never given away."""
        self._make: Callable[[int], A] = type(first)
        self._first = int(first)
        self._last = int(last)
        self._owner: dict[int, int] = {int(address): -1 for address in taken}
        self._remembered: dict[str, int] = {}
        self._next = self._first

    def owner(self, address: A) -> int | None:
        """Give the client that has the address; -1: nobody may."""
        return self._owner.get(int(address))

    def take(self, client: int, name: str) -> A | None:
        """Give the client a free address, the one `name` had if possible.

        None: all are in use. name "": it is not remembered.
        """
        had = self._remembered.get(name)
        if had is not None and had not in self._owner:
            return self._give(had, client, name)
        for candidate in self._candidates():
            if candidate not in self._owner:
                self._next = candidate + 1
                return self._give(candidate, client, name)
        return None

    def _candidates(self) -> Iterator[int]:
        """Walk round once; what somebody had comes last, oldest first."""
        used = set(self._remembered.values())
        start = self._next if self._next <= self._last else self._first
        # as many as can be in the way, and one: it need not walk a /64
        size = min(
            self._last - self._first + 1, len(used) + len(self._owner) + 1
        )
        span = self._last - self._first + 1
        for step in range(size):
            candidate = self._first + (start - self._first + step) % span
            if candidate not in used:
                yield candidate
        yield from list(self._remembered.values())

    def claim(self, address: A, client: int) -> bool:
        """Give the client this very address; False when another has it."""
        owner = self._owner.setdefault(int(address), client)
        return owner == client

    def release(self, client: int) -> None:
        """Take back all that the client has."""
        for address in [a for a, c in self._owner.items() if c == client]:
            del self._owner[address]

    def remembered(self) -> dict[str, A]:
        """Give names and their last addresses, the oldest first."""
        return {
            name: self._make(value) for name, value in self._remembered.items()
        }

    def remember(self, entries: Mapping[str, A]) -> None:
        """Restore what `remembered` gave; what is outside the pool is not."""
        for name, address in entries.items():
            if self._first <= int(address) <= self._last:
                self._remembered[name] = int(address)

    def _give(self, address: int, client: int, name: str) -> A:
        self._owner[address] = client
        for other in [n for n, a in self._remembered.items() if a == address]:
            del self._remembered[other]
        if name:
            self._remembered[name] = address
        return self._make(address)


def pool4(
    network: IPv4Network, given: tuple[IPv4Address, IPv4Address] | None
) -> AddressPool[IPv4Address]:
    """Make the pool of `server`; its first host is the server's own."""
    own = network.network_address + 1
    edges = (network.network_address, network.broadcast_address)
    first, last = given or (own + 1, network.broadcast_address - 1)
    return AddressPool(first, last, taken=(own, *edges))


def pool6(
    network: IPv6Network, given: tuple[IPv6Address, IPv6Address] | None
) -> AddressPool[IPv6Address]:
    """Make the pool of `server-ipv6`; its first host is the server's own."""
    own = network.network_address + 1
    offset = IPV6_POOL_OFFSET if network.num_addresses > 0x2000 else 2
    first, last = given or (
        network.network_address + offset,
        network.broadcast_address,
    )
    return AddressPool(first, last, taken=(own, network.network_address))


class Leases:
    """The addresses of all clients of a server, of both families."""

    def __init__(self, profile: ServerProfile) -> None:
        self._profile = profile
        self.pool4: AddressPool[IPv4Address] | None = None
        self.pool6: AddressPool[IPv6Address] | None = None
        if profile.network4:
            self.pool4 = pool4(profile.network4, profile.pool4)
        if profile.network6:
            self.pool6 = pool6(profile.network6, profile.pool6)

    def give(self, client: int, name: str, config: ClientConfig) -> Lease:
        """Give addresses. Raises SessionError "no-address"."""
        try:
            address4, operand4 = self._give4(client, name, config)
            address6, prefix6 = self._give6(client, name, config)
        except SessionError:
            self.release(client)
            raise
        return Lease(address4, operand4, address6, prefix6)

    def release(self, client: int) -> None:
        """Take back all that the client has."""
        for pool in (self.pool4, self.pool6):
            if pool is not None:
                pool.release(client)

    def _give4(
        self, client: int, name: str, config: ClientConfig
    ) -> tuple[IPv4Address | None, str]:
        pool, network = self.pool4, self._profile.network4
        if config.ifconfig4:
            address, operand = config.ifconfig4
            bounds = self._profile.push_constraint
            if bounds and address not in bounds:
                raise SessionError("no-address", str(address))
            if pool and not pool.claim(address, client):
                raise SessionError("no-address", str(address))
            return address, operand
        if pool is None or network is None:
            return None, ""
        taken = pool.take(client, name)
        if taken is None:
            raise SessionError("no-address")
        if self._profile.topology == "subnet":
            return taken, str(network.netmask)
        return taken, str(network.network_address + 1)

    def _give6(
        self, client: int, name: str, config: ClientConfig
    ) -> tuple[IPv6Address | None, int]:
        pool, network = self.pool6, self._profile.network6
        if config.ifconfig6:
            address, prefix = config.ifconfig6
            if pool and not pool.claim(address, client):
                raise SessionError("no-address", str(address))
            return address, prefix
        if pool is None or network is None:
            return None, 64
        taken = pool.take(client, name)
        if taken is None:
            raise SessionError("no-address")
        return taken, network.prefixlen
