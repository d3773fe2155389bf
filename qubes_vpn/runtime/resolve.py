"""Turning the remotes of a profile into numbered candidates.

A name is asked for by one query of each family to one resolver, through a
socket that the keeper makes and that nothing else may use. Only addresses
come from the answer: port and protocol are the profile's.
"""

import json
import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from qubes_vpn.config.profile import ClientProfile, Remote
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.policy.phase import Address, Endpoint, Transport
from qubes_vpn.runtime.messages import Candidate

ADDRESSES_MAX: Final = 32
CANDIDATES_MAX: Final = 512
QUERY_TIMEOUT: Final = 3.0
TRIES: Final = 3

OpenSocket = Callable[[Address], socket.socket]


def literal(host: str) -> Address | None:
    """Give the address that `host` is, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def query(
    name: str, family: int, resolver: Address, open_socket: OpenSocket
) -> list[Address]:
    """Ask one resolver for the addresses of a name; [] when it has none.

    family: 4 or 6. Answers to other questions are not answers.
    """
    import dns.exception
    import dns.message
    import dns.rdataclass
    import dns.rdatatype

    kind = dns.rdatatype.A if family == 4 else dns.rdatatype.AAAA
    try:
        question = dns.message.make_query(name, kind)
    except dns.exception.DNSException:
        return []
    with open_socket(resolver) as sock:
        for _ in range(TRIES):
            sock.settimeout(QUERY_TIMEOUT)
            try:
                sock.send(question.to_wire())
                answer = dns.message.from_wire(sock.recv(4096))
            except (OSError, dns.exception.DNSException):
                continue
            if question.is_response(answer):
                return [
                    ip_address(item.address)
                    for records in answer.answer
                    if records.rdtype == kind
                    and records.rdclass == dns.rdataclass.IN
                    for item in records
                ][:ADDRESSES_MAX]
    return []


@dataclass(slots=True)
class AddressCache:
    """Addresses that names had when they were last asked for.

    path: state.json, or "" for none. Losing it costs one query: a file that
    cannot be read or written is not an error.
    """

    path: str = ""
    addresses: dict[str, list[str]] = field(default_factory=dict)

    def load(self) -> None:
        """Read the file, when it is there and makes sense."""
        if not self.path:
            return
        try:
            stored = json.loads(Path(self.path).read_text())["addresses"]
            self.addresses = {
                str(name): [str(ip_address(text)) for text in texts]
                for name, texts in stored.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.addresses = {}

    def get(self, name: str, family: int) -> list[Address]:
        """Give what is known of a name in a family."""
        known = map(ip_address, self.addresses.get(name, ()))
        return [each for each in known if each.version == family]

    def store(
        self, name: str, family: int, addresses: Sequence[Address]
    ) -> None:
        """Remember addresses, in the file too if it can be written."""
        others = self.get(name, 10 - family)
        self.addresses[name] = list(map(str, [*others, *addresses]))
        if not self.path:
            return
        temporary = Path(f"{self.path}.new")
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
            )
            with os.fdopen(descriptor, "w") as stream:
                json.dump({"v": 1, "addresses": self.addresses}, stream)
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)


def lookup(
    keeper: KeeperClient,
    resolver: Address,
    cache: AddressCache,
    name: str,
    family: int,
) -> list[Address]:
    """Ask, through the keeper, for a name; give what is known if in vain."""

    def open_socket(address: Address) -> socket.socket:
        _, descriptors = keeper.request(messages.OpenResolver(address))
        return socket.socket(fileno=descriptors[0])

    try:
        found = query(name, family, resolver, open_socket)
    finally:
        keeper.request(messages.CloseResolver())
    if found:
        cache.store(name, family, found)
    return found or cache.get(name, family)


def _families(remote: Remote) -> tuple[int, ...]:
    return (remote.family,) if remote.family else (4, 6)


def candidates(
    profile: ClientProfile, lookup: Callable[[str, int], Sequence[Address]]
) -> tuple[Candidate, ...]:
    """Number every address of every remote, in the order to try them.

    lookup: gives the addresses of a name in a family, or none.
    """
    order = list(enumerate(profile.remotes))
    if profile.remote_random:
        random.SystemRandom().shuffle(order)
    found: list[Candidate] = []
    for number, remote in order:
        # a proxy is what we connect to; it finds the server by itself
        target = remote.proxy or remote
        transport = Transport.TCP if remote.proxy else Transport(remote.proto)
        relays = remote.proxy is not None and remote.proto == "udp"
        address = literal(target.host)
        for family in _families(remote):
            addresses: Sequence[Address]
            if address is not None:
                addresses = [address] if address.version == family else []
            else:
                addresses = lookup(target.host, family)
            found.extend(
                Candidate(
                    number,
                    target.host,
                    Endpoint(each, transport, target.port, relays),
                )
                for each in addresses
                if usable(each)
            )
    return tuple(found[:CANDIDATES_MAX])


def usable(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether a server can be there: not here, and not everywhere."""
    return not (
        address.is_multicast or address.is_unspecified or address.is_loopback
    )
